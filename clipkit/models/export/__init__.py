"""Export of models to other libraries.

Each export is verified: the other library loads it and encodes images and captions.
"""

from clipkit.export_formats import FORMATS
from clipkit.models.export.exporting import export
from clipkit.models.export.format import Format, Proof

__all__ = ["FORMATS", "Format", "Proof", "export"]
