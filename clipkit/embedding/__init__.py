"""Embedding: encode a dataset once, over several processes, and cache the features."""
