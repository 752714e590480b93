"""Data sources: one file per kind of source, each of which gives rows by role."""
