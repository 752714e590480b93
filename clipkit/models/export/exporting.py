"""Function `export`: write a folder, load it with the other library, and keep it only if the features agree."""

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image

from clipkit.errors import ModelError, OutputError
from clipkit.export_formats import export_format
from clipkit.files import replacing
from clipkit.models.dual_encoder import DualEncoder
from clipkit.models.export.format import Format, Proof
from clipkit.models.export.samples import CAPTIONS, with_even_margins
from clipkit.models.export.samples import images as sample_images


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
    """Write a model in another library's layout, and verify that the library computes the same features.

    Args:
        model: model in float32, as returned by `load`.
        to: name of a format in `FORMATS`.
        out: a new or empty folder.
        int8: only for onnx: quantize the weights to 8 bits.
        tolerance: maximum difference of a value of a unit-length feature; default: the format's, 1e-5 or 1e-4,
            or with `int8` a mean cosine of at least 0.99 instead.
        images: images to compare; default: photographs that come with scikit-learn.
        captions: captions to compare; default: a few built-in ones.

    Returns:
        The maximum differences, and Python code that loads the folder.

    Raises:
        ModelError: the model cannot be exported to this format, or the features differ; nothing is kept.
        OutputError: the folder is not empty, or not writable.

    Example:
        >>> export(load("openai/clip-vit-base-patch32"), "open_clip", "clip_for_open_clip")   # doctest: +SKIP
    """
    out = Path(out)
    target = _format(to, {"int8": True} if int8 else {})
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise OutputError(f"{out}: already exists; give an empty or a new folder")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with replacing(out) as temporary:
            temporary.mkdir()
            notes = target.write(model, temporary)
            images = list(images or sample_images()) if "image" in model.sides else []
            captions = list(captions or CAPTIONS) if "text" in model.sides else []
            proof = _prove(model, target, temporary, out, images, captions)
            proof.notes[:0] = notes
            if target.least_cosine is not None and tolerance is None:
                _check_cosines(proof, target.least_cosine, model.name)
            else:
                _check_differences(proof, target.tolerance if tolerance is None else tolerance, model.name)
    except OSError as error:
        raise OutputError(f"{out}: is not writable ({error.strerror or error}); give another folder") from None
    return proof


def _format(name: str, options: dict[str, bool]) -> Format:
    row = export_format(name, options)
    module = import_module(f"clipkit.models.export.{row.module}")
    target: Format = getattr(module, row.class_name)(**options)
    return target


def _prove(
    model: DualEncoder, target: Format, written: Path, out: Path, images: list[Image.Image], captions: list[str]
) -> Proof:
    even = [with_even_margins(image, model.image.preprocess.image_size) for image in images]
    odd = [image for image, cropped in zip(images, even, strict=True) if cropped.size != image.size]
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
            "the two libraries crop one pixel apart if an odd number of pixels is left beside the square in the "
            f"middle of an image; the features of such images differ by up to {apart:.2g}"
        )
    return proof


def _check_differences(proof: Proof, tolerance: float, name: str) -> None:
    for kind, difference in (("images", proof.image_difference), ("captions", proof.text_difference)):
        if not difference <= tolerance:  # also refuses NaN
            why = f": {'; '.join(proof.notes)}" if proof.notes else ""
            raise ModelError(
                f"{name}: features of the same {kind} differ after the export by {difference:.2g}, more than "
                f"{tolerance:g}{why}; the export was deleted; to accept the difference, raise the tolerance "
                "(--tolerance)"
            )


def _check_cosines(proof: Proof, least: float, name: str) -> None:
    for kind, cosine in (("images", proof.image_cosine), ("captions", proof.text_cosine)):
        if not cosine >= least:
            raise ModelError(
                f"{name}: 8-bit weights change the features of {kind} too much (mean cosine {cosine:.4f}, less than "
                f"{least}); the export was deleted; export without int8, or set the maximum difference to "
                "accept (--tolerance)"
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
