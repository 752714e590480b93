"""`clipkit export` and `clipkit merge`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clipkit.cli.inputs import check_models
from clipkit.errors import OutputError, UserError
from clipkit.export_formats import FORMATS, export_format

if TYPE_CHECKING:
    from PIL import Image

_COMPARED = 64
"""Images of the user's data that an export is verified on: enough for every shape and length, encoded in seconds."""
_INT8 = "; ".join(f"{name}: {row.options['int8']}" for name, row in FORMATS.items() if "int8" in row.options)


def export(
    model: Annotated[str, typer.Argument(metavar="M", help="A model, as `clipkit models` lists them, or a run.")],
    to: Annotated[
        str,
        typer.Option(
            help="Format: " + "; ".join(f"{name}: for {row.summary}" for name, row in FORMATS.items()) + ".",
            metavar="|".join(FORMATS),
        ),
    ],
    out: Annotated[Path, typer.Option(help="A new folder.")],
    data: Annotated[
        str | None,
        typer.Option(metavar="D", help="Images and captions to verify the export on. Default: a few built-in ones."),
    ] = None,
    int8: Annotated[bool, typer.Option("--int8", help=f"{_INT8}.")] = False,
    tolerance: Annotated[
        float | None, typer.Option(help="Largest allowed difference of a feature value.", min=0)
    ] = None,
) -> None:
    """Write a model for another library, and verify that the library computes the same features."""
    export_format(to, ["int8"] * int8)
    check_models(model)
    images, captions = _samples(data) if data is not None else (None, None)
    from clipkit.models import load
    from clipkit.models.export import export as write

    proof = write(load(model, device="cpu"), to, out, int8=int8, tolerance=tolerance, images=images, captions=captions)
    print(f"{out}: written for {to}, opened with it and compared with {model}")
    print(f"  {proof.images} images: largest difference of a feature value {proof.image_difference:.1e}")
    print(f"  {proof.captions} captions: {proof.text_difference:.1e}")
    if int8:
        print(f"  8-bit weights: mean cosine with the model {proof.image_cosine:.4f} and {proof.text_cosine:.4f}")
        print(f"  {proof.changed} of {proof.captions} captions have another most similar image")
    for note in proof.notes:
        print(f"  note: {note}")
    print("open it with")
    print("\n".join(f"  {line}" for line in proof.usage.splitlines()))


def merge(
    models: Annotated[list[str], typer.Argument(metavar="BASE TUNED", help="Two models, or more for their mean.")],
    out: Annotated[Path, typer.Option(help="A new folder.")],
    alpha: Annotated[
        float | None,
        typer.Option(help="Share of TUNED: 0 is BASE, 1 is TUNED. Default: equal shares.", min=0, max=1),
    ] = None,
) -> None:
    """Average the weights of models of one architecture: interpolate two (WiSE-FT), or a soup of several."""
    if len(models) < 2:
        raise UserError(f"{models[0]}: is a single model; give two or more")
    if alpha is not None and len(models) != 2:
        raise UserError(f"--alpha {alpha}: needs exactly two models, not {len(models)}; leave it out for a soup")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise OutputError(f"{out}: already exists; give an empty or a new folder")
    check_models(*models)
    from clipkit.models import load
    from clipkit.models.merge import merge as averaged

    opened = [load(name, device="cpu") for name in models]
    merged = averaged(opened, None if alpha is None else [1 - alpha, alpha])
    try:
        merged.save(out)
    except OSError as error:
        raise OutputError(f"{out}: is not writable ({error.strerror or error}); give another folder") from None
    parts = " and ".join(models) if len(models) == 2 else f"{len(models)} models"
    share = "equal weights" if alpha is None else f"{1 - alpha:g} and {alpha:g}"
    print(f"{out}: {parts}, {share}; scale {merged.logit_scale.exp().item():.4g}")


def _samples(data: str) -> tuple[list["Image.Image"], list[str]]:
    """Return evenly spaced images and captions of the user's data."""
    from clipkit.data import read_pairs
    from clipkit.data.sequences import evenly_spaced
    from clipkit.images import open_image

    pairs = read_pairs(data)
    images = [open_image(pairs.images[image]) for image in evenly_spaced(len(pairs.images), _COMPARED)]
    return images, [pairs.captions[row] for row in evenly_spaced(len(pairs.captions), _COMPARED)]
