"""Export: folders that other libraries open, each verified by that library on real images and captions."""

from clipkit.export_formats import FORMATS
from clipkit.models.export.exporting import export
from clipkit.models.export.format import Format, Proof

__all__ = ["FORMATS", "Format", "Proof", "export"]
