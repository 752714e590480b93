"""Towers."""

from pathlib import Path

import torch

import clipkit
from clipkit.models.towers import TRUNK_FEATURES


def test_stored_trunk_features_replace_the_inputs(tiny_clip: Path) -> None:
    tower = clipkit.load(tiny_clip).image
    pixels = torch.randn(3, 3, 32, 32, device=next(tower.parameters()).device)
    stored = tower.trunk(pixel_values=pixels)
    torch.testing.assert_close(tower({TRUNK_FEATURES: stored}), tower({"pixel_values": pixels}))
