"""Embedding: encode a dataset once, over processes, and keep the features."""
