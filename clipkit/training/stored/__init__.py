"""Stored inputs: the output of the frozen first part of a tower is kept on disk, and read in each step."""
