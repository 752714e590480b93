"""Command `clipkit export`: write a model or an index in the format of another library."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clipkit.cli.inputs import check_models
from clipkit.errors import UserError
from clipkit.export_formats import FORMATS, INDEX_FORMATS, export_format, index_format
from clipkit.findings import counted
from clipkit.overwriting import check_new
from clipkit.search.folder import check_is_index, is_index

if TYPE_CHECKING:
    from clipkit.images import ImageLike

_COMPARED = 64
"""Number of the user's images on which an export is verified: enough for various sizes, checked in seconds.
"""
_INT8 = "; ".join(f"With --to {name}: {row.options['int8']}" for name, row in FORMATS.items() if "int8" in row.options)


def export(
    model: Annotated[
        str,
        typer.Argument(
            metavar="M",
            help="Model to export: a run, a folder, a Hub repository, or open_clip:ARCH/TAG; or an index that clipkit "
            "embed wrote.",
        ),
    ],
    to: Annotated[
        str,
        typer.Option(
            help="Format. Of a model: "
            + ", ".join(f"{name} (for {row.summary})" for name, row in FORMATS.items())
            + ". Of an index: "
            + ", ".join(f"{name} ({row.summary})" for name, row in INDEX_FORMATS.items())
            + ".",
            metavar="|".join((*FORMATS, *INDEX_FORMATS)),
            autocompletion=lambda: [(name, row.summary) for name, row in (*FORMATS.items(), *INDEX_FORMATS.items())],
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="New folder; with --to parquet, a new file.")],
    data: Annotated[
        str | None,
        typer.Option(
            metavar="D", help="Images and captions for verifying the export. Default: built-in images and captions."
        ),
    ] = None,
    int8: Annotated[bool, typer.Option("--int8", help=f"{_INT8}.")] = False,
    tolerance: Annotated[
        float | None,
        typer.Option(
            metavar="X",
            help="Largest allowed absolute difference between a feature value of the exported model and of the "
            "original model. If a difference is larger, the export fails. Default: 1e-5; with --to onnx: "
            "1e-4; with --int8 no limit, but the mean cosine similarity must be at least 0.99.",
            min=0,
        ),
    ] = None,
) -> None:
    """Export a model or an index to another library.

    To verify the export of a model, the command loads the exported model with the other library. If this model computes
    different features than the original model, the export fails.
    """
    if to in INDEX_FORMATS or is_index(Path(model)):
        _export_index(Path(model), to, out, {"--data": data, "--int8": int8 or None, "--tolerance": tolerance})
        return
    export_format(to, ["int8"] * int8)
    check_models(model)
    images, captions = _samples(data) if data is not None else (None, None)
    from clipkit.models import load
    from clipkit.models.export import export as write

    proof = write(load(model, device="cpu"), to, out, int8=int8, tolerance=tolerance, images=images, captions=captions)
    print(f"{out}: exported to {to}, loaded again and compared with {model}")
    print(f"  {proof.images} images: maximum difference of a feature value {proof.image_difference:.1e}")
    print(f"  {proof.captions} captions: maximum difference of a feature value {proof.text_difference:.1e}")
    if int8:
        print(
            f"  8-bit weights: mean cosine with the original features {proof.image_cosine:.4f} (images) "
            f"and {proof.text_cosine:.4f} (captions)"
        )
        print(
            f"  {proof.changed} of {proof.captions} captions are most similar to a different image than with the "
            "original model"
        )
    for note in proof.notes:
        print(f"  note: {note}")
    print("load it with:")
    print("\n".join(f"  {line}" for line in proof.usage.splitlines()))


def _export_index(folder: Path, to: str, out: Path, options: Mapping[str, object]) -> None:
    """Export an index and print code that opens the exported index.

    Raises:
        UserError: the folder is not an index, the format is unknown, an option is only for models, or `out` exists.
    """
    check_is_index(folder)
    row = index_format(to)
    for option, value in options.items():
        if value is not None:
            raise UserError(f"{option}: applies only to models, but {folder} is an index; leave out {option}")
    check_new(out)
    from clipkit.search import Index
    from clipkit.search.export import column_of_features

    index = Index(folder)
    index.export(to, out)
    print(f"{out}: exported to {to}, {counted(len(index), 'image')} with features of width {index.features.shape[1]}")
    print("open it with:")
    usage = row.usage.format(out=out, column=column_of_features(index), model=index.manifest["model"]["name"])
    print("\n".join(f"  {line}" for line in usage.splitlines()))


def _samples(data: str) -> tuple[list["ImageLike"], list[str]]:
    """Return evenly spaced images and captions of the user's data."""
    from clipkit.data import read_pairs
    from clipkit.data.sequences import evenly_spaced

    pairs = read_pairs(data)
    images: list[ImageLike] = [pairs.images[image] for image in evenly_spaced(len(pairs.images), _COMPARED)]
    return images, [pairs.captions[row] for row in evenly_spaced(len(pairs.captions), _COMPARED)]
