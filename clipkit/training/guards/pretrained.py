"""Whether a pretrained model is run as it was trained: other settings are tried on a few pairs.

A wrong activation or normalisation raises no error, it only costs accuracy. Under the settings that a model was trained
with it sorts pairs best, so one of the usual other settings that does better gives the mistake away.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from clipkit.data import Pairs
from clipkit.errors import DataError
from clipkit.images import open_image
from clipkit.models import DualEncoder
from clipkit.models.encode import encode_strings
from clipkit.training.guards.finding import Finding

_PAIRS = 32
_SURE = 3.0
"""Standard errors by which another setting has to be better."""
_BETTER = 0.05
"""Share of the loss by which, too."""
_KNOWN = 4
"""Pairs that have to find each other under it; by luck one does."""
_USUAL = {
    "CLIP's": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "ImageNet's": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "0.5": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}


def other_settings(model: DualEncoder, pairs: Pairs) -> list[Finding]:
    """What of activation, mean and standard deviation seems to be another one than the model was trained with.

    Args:
        model: pretrained.
        pairs: of which 32 are tried.
    """
    chosen = range(0, len(pairs.images), max(1, len(pairs.images) // _PAIRS))[:_PAIRS]
    captions = [pairs.captions[int(pairs.captions_of_image[place][0])] for place in chosen]
    preprocess = model.image.preprocess
    try:
        inputs = [preprocess(open_image(pairs.images[place])) for place in chosen]
    except DataError:  # a broken image: others say so
        return []
    if len(inputs) < _PAIRS or set(inputs[0]) != {"pixel_values"} or preprocess.image_size is None:
        return []
    pixels = torch.stack([own["pixel_values"] for own in inputs]).to(model.device, next(model.parameters()).dtype)
    scale = model.logit_scale.detach().exp().item()
    with torch.inference_mode():
        texts = _texts(model, captions)
        own = _losses(_images(model, pixels), texts, scale)
        found = []
        for name, (mean, std) in _USUAL.items():
            if preprocess.finish is not None or (_equal(mean, preprocess.mean) and _equal(std, preprocess.std)):
                continue
            moved = _renormalised(pixels, (preprocess.mean, preprocess.std), (mean, std))
            if _is_better(_losses(_images(model, moved), texts, scale), own):
                found.append(
                    Finding(
                        "other_normalisation",
                        "warning",
                        f"pairs are told apart better with {name} mean and std than with those of its preprocessing "
                        f"({_short(preprocess.mean)}; {_short(preprocess.std)})",
                        "the model seems to have been trained with the others: mend preprocessor_config.json or "
                        "open_clip_config.json",
                    )
                )
        with _other_activation(model) as (before, after):
            if after and _is_better(_losses(_images(model, pixels), _texts(model, captions), scale), own):
                found.append(
                    Finding(
                        "other_activation",
                        "warning",
                        f"pairs are told apart better with {after} than with {before}",
                        f"the model seems to have been trained with {after}: set hidden_act in its config.json, or "
                        "quick_gelu in open_clip_config.json",
                    )
                )
    return found[:1]  # one mistake makes others look better too


class _Losses:
    """Of each pair, both directions' mean; and the share of pairs that find each other."""

    def __init__(self, each: Float[Tensor, " N"], right: float) -> None:
        self.each = each
        self.right = right


def _losses(images: Float[Tensor, "N D"], texts: Float[Tensor, "N D"], scale: float) -> _Losses:
    logits = scale * images @ texts.T
    wanted = torch.arange(len(logits), device=logits.device)
    each = (F.cross_entropy(logits, wanted, reduction="none") + F.cross_entropy(logits.T, wanted, reduction="none")) / 2
    right = ((logits.argmax(1) == wanted).float().mean() + (logits.argmax(0) == wanted).float().mean()) / 2
    return _Losses(each, float(right))


def _is_better(other: _Losses, own: _Losses) -> bool:
    gain = own.each - other.each
    mean, error = float(gain.mean()), float(gain.std()) / math.sqrt(len(gain))
    # Of pairs that it knows nothing of one setting may be better by luck.
    return other.right >= _KNOWN / _PAIRS and mean > _BETTER * float(own.each.mean()) and mean > _SURE * error


def _images(model: DualEncoder, pixels: Tensor) -> Float[Tensor, "N D"]:
    return F.normalize(model.image({"pixel_values": pixels}).float(), dim=-1)


def _texts(model: DualEncoder, captions: list[str]) -> Float[Tensor, "N D"]:
    features = encode_strings(model.text, captions, model.text, _PAIRS, model.device, False)
    return F.normalize(features.to(model.device), dim=-1)


Normalisation = tuple[tuple[float, ...], tuple[float, ...]]


def _renormalised(pixels: Tensor, own: Normalisation, other: Normalisation) -> Tensor:
    (mean, std), (other_mean, other_std) = (
        [torch.tensor(values, device=pixels.device, dtype=pixels.dtype)[:, None, None] for values in both]
        for both in (own, other)
    )
    return (pixels * std + mean - other_mean) / other_std


@contextmanager
def _other_activation(model: DualEncoder) -> Iterator[tuple[str, str | None]]:
    """Within, GELU stands for QuickGELU or the other way round. Gives both names; None where it has neither."""
    swapped: list[tuple[nn.Module, str, nn.Module]] = []
    quick = False
    for parent in model.modules():
        for name, child in parent.named_children():
            kind = type(child).__name__
            if kind in ("QuickGELU", "QuickGELUActivation", "GELU", "GELUActivation"):
                swapped.append((parent, name, child))
                quick = quick or kind.startswith("Quick")
    other: nn.Module = nn.GELU() if quick else _QuickGELU()
    for parent, name, _ in swapped:
        setattr(parent, name, other)
    try:
        yield ("QuickGELU" if quick else "GELU", ("GELU" if quick else "QuickGELU") if swapped else None)
    finally:
        for parent, name, child in swapped:
            setattr(parent, name, child)


class _QuickGELU(nn.Module):
    """x · sigmoid(1.702 x), as OpenAI's CLIP has it."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


def _equal(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return all(math.isclose(a, b, abs_tol=1e-3) for a, b in zip(one, other, strict=True))


def _short(values: tuple[float, ...]) -> str:
    return " ".join(f"{value:.3g}" for value in values)
