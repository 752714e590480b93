"""Tables of the export formats of models and indexes, without heavy imports.

To add a format of models, write a class that implements `Format` in a new file of `clipkit/models/export`, and add a
row here. To add a format of indexes, write a function in `clipkit/search/export.py`, and add a row to the table there
and a row here.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from clipkit.errors import ModelError, UserError
from clipkit.extras import check_extra


@dataclass(frozen=True)
class ExportFormat:
    """An export format of models: a summary, the options, and the class that writes the format."""

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
    """Return the row of an export format of models, after checking the names of the format and the options.

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


@dataclass(frozen=True)
class IndexFormat:
    """Description of an export format of indexes: one line about it, and Python code that opens the exported index."""

    summary: str
    usage: str
    """Python code with the placeholders {out} (path of the exported index), {column} (column of the features) and
    {model} (name of the model)."""
    extra: str | None = None
    """Name of the library that writes the format, which is also the name of the extra in pyproject.toml."""


INDEX_FORMATS = {
    "numpy": IndexFormat(
        "features.npy and rows.jsonl",
        "import numpy\n"
        'features = numpy.load("{out}/features.npy", mmap_mode="r")  # row n belongs to line n of rows.jsonl',
    ),
    "parquet": IndexFormat(
        "one file, for pandas and databases",
        'import pandas\ntable = pandas.read_parquet("{out}")  # features are in the column {column}',
    ),
    "lancedb": IndexFormat(
        "a vector database",
        "import clipkit, lancedb\n"
        'table = lancedb.connect("{out}").open_table("images")\n'
        'query = clipkit.load("{model}").encode_text(["two dogs in snow"])[0].numpy()\n'
        'rows = table.search(query, vector_column_name="{column}").distance_type("cosine").limit(10).to_list()',
        extra="lancedb",
    ),
}


def index_format(name: str) -> IndexFormat:
    """Return the row of an export format of indexes, after checking that its library is installed.

    Raises:
        UserError: the format does not exist, or its library is not installed.
    """
    if name not in INDEX_FORMATS:
        raise UserError(f"{name}: is not an export format of an index; use one of {', '.join(INDEX_FORMATS)}")
    row = INDEX_FORMATS[name]
    if row.extra is not None:
        check_extra(row.extra, [row.extra])
    return row
