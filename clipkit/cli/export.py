"""`clipkit export` and `clipkit merge`: models on their way out."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from clipkit.errors import OutputError, UserError

if TYPE_CHECKING:
    from PIL import Image

_SHOWN = 64
"""Images of the user's that an export is proven on: enough for every shape and length, and seconds to encode."""


def export(
    model: Annotated[str, typer.Argument(metavar="M", help="A model, as `clipkit models` lists them, or a run.")],
    to: Annotated[
        Literal["transformers", "open_clip", "sentence-transformers", "onnx"], typer.Option(help="Layout to write.")
    ],
    out: Annotated[Path, typer.Option(help="A new folder.")],
    data: Annotated[
        str | None, typer.Option(metavar="D", help="Images and captions to prove it on, instead of a few of ours.")
    ] = None,
    int8: Annotated[bool, typer.Option("--int8", help="ONNX with 8-bit weights; says what they cost.")] = False,
    tolerance: Annotated[
        float | None, typer.Option(help="Largest difference of a feature's value that is taken.", min=0)
    ] = None,
) -> None:
    """Write a model for another library, and prove that the library finds the same features."""
    images, captions = _shown(data) if data is not None else (None, None)
    from clipkit.models import load
    from clipkit.models.export import export as write

    proof = write(load(model, device="cpu"), to, out, int8=int8, tolerance=tolerance, images=images, captions=captions)
    print(f"{out}: written for {to}, opened by it and compared with {model}")
    print(f"  {proof.images} images: largest difference of a feature's value {proof.image_difference:.1e}")
    print(f"  {proof.captions} captions: {proof.text_difference:.1e}")
    if int8:
        print(f"  8-bit weights: mean cosine with the model's own {proof.image_cosine:.4f} and {proof.text_cosine:.4f}")
        print(f"  {proof.changed} of {proof.captions} captions have another image as their most similar one")
    for note in proof.notes:
        print(f"  note: {note}")
    print("open it with")
    print("\n".join(f"  {line}" for line in proof.usage.splitlines()))


def merge(
    models: Annotated[list[str], typer.Argument(metavar="BASE TUNED", help="Two models, or several for their mean.")],
    out: Annotated[Path, typer.Option(help="A new folder.")],
    alpha: Annotated[
        float | None,
        typer.Option(help="Share of TUNED: 0 is BASE, 1 is TUNED; without it all count the same.", min=0, max=1),
    ] = None,
) -> None:
    """Average the weights of models of one architecture: between two (WiSE-FT), or a soup of several."""
    if len(models) < 2:
        raise UserError(f"{models[0]}: is one model; give two or more")
    if alpha is not None and len(models) != 2:
        raise UserError(
            f"--alpha {alpha}: lies between two models, and {len(models)} are given; leave it out for a soup"
        )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise OutputError(f"{out}: something is there already; give an empty or a new folder")
    from clipkit.models import load
    from clipkit.models.merge import merge as averaged

    opened = [load(name, device="cpu") for name in models]
    merged = averaged(opened, None if alpha is None else [1 - alpha, alpha])
    try:
        merged.save(out)
    except OSError as error:
        raise OutputError(f"{out}: cannot be written to ({error.strerror or error}); give another folder") from None
    parts = " and ".join(models) if len(models) == 2 else f"{len(models)} models"
    share = "equal weights" if alpha is None else f"{1 - alpha:g} and {alpha:g}"
    print(f"{out}: {parts}, {share}; scale {merged.logit_scale.exp().item():.4g}")


def _shown(data: str) -> tuple[list["Image.Image"], list[str]]:
    """Evenly spaced images of the user's with their captions."""
    import numpy as np

    from clipkit.data import read_pairs
    from clipkit.images import open_image

    pairs: Any = read_pairs(data)
    chosen = np.unique(np.linspace(0, len(pairs.images) - 1, min(_SHOWN, len(pairs.images))).round().astype(int))
    captions = np.unique(np.linspace(0, len(pairs.captions) - 1, min(_SHOWN, len(pairs.captions))).round().astype(int))
    return [open_image(pairs.images[own]) for own in chosen], [pairs.captions[own] for own in captions]
