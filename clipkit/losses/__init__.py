"""Contrastive losses: pure functions of gathered features; no ranks, devices or models."""

from clipkit.losses.infonce import infonce
from clipkit.losses.sigmoid import sigmoid

__all__ = ["infonce", "sigmoid"]
