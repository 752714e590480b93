"""Stored inputs: what the frozen first part of a tower computes is kept on disk, and read in each step."""
