"""Embedding: encode a dataset once, on one or several processes, and cache the features."""
