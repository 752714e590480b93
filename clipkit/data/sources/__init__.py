"""Readers of data sources, one file per kind of source. Each reader returns `Rows`: columns by role, e.g. caption."""
