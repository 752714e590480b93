"""Dual encoders with an image tower and a text tower, from transformers, open_clip, timm or clipkit."""

from typing import TYPE_CHECKING

from clipkit.lazy import on_first_use

if TYPE_CHECKING:
    from clipkit.models.composed import compose
    from clipkit.models.dual_encoder import DualEncoder
    from clipkit.models.loading import load
    from clipkit.models.towers import ImageTower, TextTower, Tower

# The same names as in the imports above, which only type checkers read.
_NAMES = {
    "composed": "compose",
    "dual_encoder": "DualEncoder",
    "loading": "load",
    "towers": "ImageTower TextTower Tower",
}
__getattr__ = on_first_use(__name__, _NAMES)
