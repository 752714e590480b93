"""Command `clipkit export`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clipkit.cli.inputs import check_models
from clipkit.export_formats import FORMATS, export_format

if TYPE_CHECKING:
    from clipkit.images import ImageLike

_COMPARED = 64
"""Number of the user's images on which an export is verified: enough for various image sizes, few enough for seconds.
"""
_INT8 = "; ".join(f"With --to {name}: {row.options['int8']}" for name, row in FORMATS.items() if "int8" in row.options)


def export(
    model: Annotated[
        str,
        typer.Argument(metavar="M", help="Model to export: a run, a folder, a Hub repository, or open_clip:ARCH/TAG."),
    ],
    to: Annotated[
        str,
        typer.Option(
            help="Format. " + ", ".join(f"{name} (for {row.summary})" for name, row in FORMATS.items()) + ".",
            metavar="|".join(FORMATS),
            autocompletion=lambda: [(name, f"for {row.summary}") for name, row in FORMATS.items()],
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="New folder for the exported model.")],
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
            help="Maximum absolute difference between a feature value of the exported model and of the original model; "
            "if a difference is larger, the export fails. Default: 1e-5; with --to onnx: 1e-4.",
            min=0,
        ),
    ] = None,
) -> None:
    """Export a model to another library, and verify its features.

    The export is loaded with the other library. If its features differ from those of clipkit, the export fails.
    """
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
        print(f"  {proof.changed} of {proof.captions} captions are most similar to a different image than before")
    for note in proof.notes:
        print(f"  note: {note}")
    print("load it with:")
    print("\n".join(f"  {line}" for line in proof.usage.splitlines()))


def _samples(data: str) -> tuple[list["ImageLike"], list[str]]:
    """Return evenly spaced images and captions of the user's data."""
    from clipkit.data import read_pairs
    from clipkit.data.sequences import evenly_spaced

    pairs = read_pairs(data)
    images: list[ImageLike] = [pairs.images[image] for image in evenly_spaced(len(pairs.images), _COMPARED)]
    return images, [pairs.captions[row] for row in evenly_spaced(len(pairs.captions), _COMPARED)]
