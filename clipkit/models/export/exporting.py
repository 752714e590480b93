"""`export`: write, open by the other library, compare, and only then call it done."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image

from clipkit.errors import ModelError, OutputError
from clipkit.models.absent import is_absent
from clipkit.models.dual_encoder import DualEncoder
from clipkit.models.export.format import Format, Proof
from clipkit.models.export.onnx import Onnx
from clipkit.models.export.open_clip import OpenClip
from clipkit.models.export.samples import CAPTIONS, with_even_margins
from clipkit.models.export.samples import images as sample_images
from clipkit.models.export.sentence_transformers import SentenceTransformers
from clipkit.models.export.transformers import Transformers

LEAST_COSINE = 0.99
"""Between features of 8-bit weights and the model's own, on average: the largest difference says little of them, as it
shrinks with the number of values."""
FORMATS = ("transformers", "open_clip", "sentence-transformers", "onnx")


def export(
    model: DualEncoder,
    to: str,
    out: str | Path,
    *,
    int8: bool = False,
    tolerance: float | None = None,
    images: Sequence[Image.Image] | None = None,
    captions: Sequence[str] | None = None,
) -> Proof:
    """Write a model in another library's layout, and prove that the library finds the same features.

    Args:
        model: in float32, as `load` gives it.
        to: one of `FORMATS`.
        out: a folder that is not there yet, or is empty.
        int8: of ONNX: weights as 8-bit integers.
        tolerance: largest difference of a value of a unit-length feature that is taken; the layout's own, 1e-5 or 1e-4,
            where none is given; of 8-bit weights then a mean cosine of 0.99.
        images: to prove it on; photographs that come with scikit-learn where none are given.
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
    target = _format(to, int8)
    if int8 and to != "onnx":
        raise ModelError(f"int8 is an option of ONNX, not of {to}; leave it out")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise OutputError(f"{out}: something is there already; give an empty or a new folder")
    aside = out.with_name(f".{out.name}.writing")
    try:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        notes = target.write(model, aside)
        images = [] if is_absent(model.image) else list(images or sample_images())
        captions = [] if is_absent(model.text) else list(captions or CAPTIONS)
        proof = _prove(model, target, aside, out, images, captions)
        proof.notes[:0] = notes
        if int8 and tolerance is None:
            _judge_cosines(proof, model.name)
        else:
            _judge(proof, target.tolerance if tolerance is None else tolerance, model.name)
        if out.is_dir():
            out.rmdir()
        aside.replace(out)
    except OSError as error:
        raise OutputError(f"{out}: cannot be written to ({error.strerror or error}); give another folder") from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return proof


def _format(to: str, int8: bool) -> Format:
    match to:
        case "transformers":
            return Transformers()
        case "open_clip":
            return OpenClip()
        case "onnx":
            return Onnx(int8)
        case "sentence-transformers":
            return SentenceTransformers()
    raise ModelError(f"{to}: is no layout that clipkit writes; take one of {', '.join(FORMATS)}")


def _prove(
    model: DualEncoder, target: Format, written: Path, out: Path, images: list[Image.Image], captions: list[str]
) -> Proof:
    even = [with_even_margins(image, model.image.preprocess.image_size) for image in images]
    odd = [image for image, own in zip(images, even, strict=True) if own.size != image.size]
    image_features, text_features = target.encode(written, even + odd, captions)
    ours = model.encode_image(even + odd) if even else torch.empty(0, 1)
    texts = model.encode_text(captions) if captions else torch.empty(0, 1)
    proof = Proof(
        images=len(even),
        captions=len(captions),
        image_difference=_largest(image_features[: len(even)], ours[: len(even)]),
        text_difference=_largest(text_features, texts),
        image_cosine=_cosine(image_features[: len(even)], ours[: len(even)]),
        text_cosine=_cosine(text_features, texts),
        changed=_changed(image_features, text_features, ours, texts),
        usage=target.usage(out),
        notes=[],
    )
    apart = _largest(image_features[len(even) :], ours[len(even) :]) if odd else 0.0
    if apart > max(target.tolerance, 2 * proof.image_difference):
        proof.notes.append(
            "images that leave an odd number of pixels beside the square in their middle are cut one pixel apart by "
            f"the two libraries: their features differ by up to {apart:.2g}"
        )
    return proof


def _judge(proof: Proof, tolerance: float, name: str) -> None:
    for kind, found in (("images", proof.image_difference), ("captions", proof.text_difference)):
        if not found <= tolerance:  # not a number is no proof either
            why = f": {'; '.join(proof.notes)}" if proof.notes else ""
            raise ModelError(
                f"{name}: what was written gives the same {kind} other features (by {found:.2g}, more than "
                f"{tolerance:g}){why}; nothing was kept; to take it all the same, raise the tolerance (--tolerance)"
            )


def _judge_cosines(proof: Proof, name: str) -> None:
    for kind, found in (("images", proof.image_cosine), ("captions", proof.text_cosine)):
        if not found >= LEAST_COSINE:
            raise ModelError(
                f"{name}: 8-bit weights change its features of {kind} too much (mean cosine {found:.4f}, less than "
                f"{LEAST_COSINE}); nothing was kept; leave out int8, or say with a tolerance what may differ "
                "(--tolerance)"
            )


def _changed(image: torch.Tensor, text: torch.Tensor, our_image: torch.Tensor, our_text: torch.Tensor) -> int:
    if not len(our_image) or not len(our_text):
        return 0
    theirs = (text.float().cpu() @ F.normalize(image.float().cpu(), dim=-1).T).argmax(dim=1)
    return int((theirs != (our_text @ our_image.T).argmax(dim=1)).sum())


def _cosine(theirs: torch.Tensor, ours: torch.Tensor) -> float:
    if not len(ours):
        return 1.0
    return float(F.cosine_similarity(theirs.float().cpu(), ours, dim=-1).mean())


def _largest(theirs: torch.Tensor, ours: torch.Tensor) -> float:
    if not len(ours):
        return 0.0
    return float((F.normalize(theirs.float().cpu(), dim=-1) - ours).abs().max())
