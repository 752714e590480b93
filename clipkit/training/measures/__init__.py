"""Measurements during a run, one file each."""
