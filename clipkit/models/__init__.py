"""Dual encoders: two towers, a scale and a bias, from transformers, open_clip, timm or clipkit."""

from clipkit.models.composed import compose
from clipkit.models.dual_encoder import DualEncoder
from clipkit.models.loading import load
from clipkit.models.towers import ImageTower, TextTower, Tower

__all__ = ["DualEncoder", "ImageTower", "TextTower", "Tower", "compose", "load"]
