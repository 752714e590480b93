"""Table of the export formats for the command line and `clipkit.export`, without heavy imports.

To add a format, write a file in `clipkit/models/export` with a class that follows `Format`, and add a row here.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from clipkit.errors import ModelError


@dataclass(frozen=True)
class ExportFormat:
    """Class that writes an export format, its summary and its options."""

    module: str
    """Name of the module in `clipkit.models.export`."""
    class_name: str
    summary: str
    options: Mapping[str, str] = field(default_factory=dict)
    """Keyword arguments of the class, with a help text for each."""


FORMATS = {
    "transformers": ExportFormat("transformers", "Transformers", "from_pretrained and pipeline"),
    "open_clip": ExportFormat("open_clip", "OpenClip", "create_model_from_pretrained"),
    "sentence-transformers": ExportFormat("sentence_transformers", "SentenceTransformers", "SentenceTransformer"),
    "onnx": ExportFormat(
        "onnx",
        "Onnx",
        "onnxruntime, without torch",
        {"int8": "quantize the weights to 8 bits (a quarter of the size) and print how much the features change"},
    ),
}


def export_format(name: str, options: Iterable[str] = ()) -> ExportFormat:
    """Return the description of an export format, after checking that it exists and has the given options.

    Args:
        name: name of the format.
        options: names of the options to use with it.

    Raises:
        ModelError: the format does not exist, or does not have one of the options.
    """
    if name not in FORMATS:
        raise ModelError(f"{name}: is not an export format; use one of {', '.join(FORMATS)}")
    for option in options:
        if option not in FORMATS[name].options:
            supporting = ", ".join(other for other, row in FORMATS.items() if option in row.options)
            raise ModelError(
                f"the option {option} applies to the format {supporting}, not to {name}; leave out this option"
            )
    return FORMATS[name]
