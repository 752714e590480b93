"""Stored inputs: outputs of the frozen first layers of a tower, kept on disk as inputs of the trained layers."""
