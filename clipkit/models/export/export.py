"""`export`: write, open by the other library, compare, and only then call it done."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image

from clipkit.errors import ModelError, OutputError
from clipkit.models.dual_encoder import DualEncoder
from clipkit.models.export.format import Format, Proof
from clipkit.models.export.samples import CAPTIONS
from clipkit.models.export.samples import pictures as sample_pictures

FORMATS = ("transformers", "open_clip", "sentence-transformers", "onnx")


def export(
    model: DualEncoder,
    to: str,
    out: str | Path,
    *,
    pictures: Sequence[Image.Image] | None = None,
    captions: Sequence[str] | None = None,
) -> Proof:
    """Write a model in another library's layout, and prove that the library finds the same features.

    Args:
        model: float32, as `load` gives it.
        to: one of `FORMATS`.
        out: a folder that is not there yet, or is empty.
        pictures: to prove it on; photographs that come with scikit-learn where none are given.
        captions: likewise.

    Returns:
        The largest differences, and how to open the folder.

    Raises:
        ModelError: it cannot be said in that layout, or what was written does not give the same features; nothing is
            left of it.
        OutputError: something is in the folder already.

    Example:
        >>> export(load("openai/clip-vit-base-patch32"), "open_clip", "clip_for_open_clip")   # doctest: +SKIP
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise OutputError(f"{out}: something is there already; give an empty or a new folder")
    target = _format(to)
    aside = out.with_name(f".{out.name}.writing")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        target.write(model, aside)
        proof = _prove(model, target, aside, out, list(pictures or sample_pictures()), list(captions or CAPTIONS))
        if out.is_dir():
            out.rmdir()
        aside.replace(out)
    except OSError as error:
        raise OutputError(f"{out}: cannot be written to ({error.strerror or error}); give another folder") from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return proof


def _format(to: str) -> Format:
    match to:
        case _:
            raise ModelError(f"{to}: is no layout that clipkit writes; take one of {', '.join(FORMATS)}")


def _prove(
    model: DualEncoder,
    target: Format,
    written: Path,
    out: Path,
    pictures: list[Image.Image],
    captions: list[str],
) -> Proof:
    image, text = target.encode(written, pictures, captions)
    proof = Proof(
        pictures=len(pictures),
        captions=len(captions),
        image_difference=_largest(image, model.encode_image(pictures)),
        text_difference=_largest(text, model.encode_text(captions)),
        scale_difference=0.0,
        tolerance=target.tolerance,
        usage=target.usage(out),
    )
    for kind, found in (("picture", proof.image_difference), ("caption", proof.text_difference)):
        if not found <= target.tolerance:
            raise ModelError(
                f"{model.name}: what was written gives other features of the same {kind}s (by {found:.2g}, more than "
                f"{target.tolerance:g}); it was removed"
            )
    return proof


def _largest(theirs: torch.Tensor, ours: torch.Tensor) -> float:
    return float((F.normalize(theirs.float().cpu(), dim=-1) - ours).abs().max())
