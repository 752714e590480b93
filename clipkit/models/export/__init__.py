"""Export of models to other libraries; each export is loaded by that library and verified on images and captions."""

from clipkit.export_formats import FORMATS
from clipkit.models.export.exporting import export
from clipkit.models.export.format import Format, Proof

__all__ = ["FORMATS", "Format", "Proof", "export"]
