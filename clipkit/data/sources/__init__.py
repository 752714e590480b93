"""Readers of data sources, one file per kind of source; each reader returns rows with their columns by role."""
