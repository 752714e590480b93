"""Ways out: folders that other libraries open, each proven by that library on real images and captions."""

from clipkit.models.export.exporting import FORMATS, export
from clipkit.models.export.format import Format, Proof

__all__ = ["FORMATS", "Format", "Proof", "export"]
