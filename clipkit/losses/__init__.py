"""Contrastive losses: pure functions of gathered features; no ranks, devices or models."""

from clipkit.losses.infonce import infonce

__all__ = ["infonce"]
