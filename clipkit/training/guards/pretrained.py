"""Checks of a pretrained model: do other common settings give better results on a few pairs?

A wrong activation or normalization raises no error and only lowers accuracy. If another common setting is clearly
better, the current setting probably differs from the pretraining.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from clipkit.data import Pairs
from clipkit.errors import DataError
from clipkit.findings import Finding, Rule, apply
from clipkit.images import open_image
from clipkit.models import DualEncoder
from clipkit.models.encode import encode_strings, tower_features

_PAIRS = 32
_STANDARD_ERRORS = 3.0
"""Number of standard errors by which another setting must be better for a finding."""
_GAIN = 0.05
"""Share by which the loss must be lower with the other setting for a finding."""
_MATCHED = 4
"""Number of pairs that must be matched with the other setting for a finding; by chance, one pair is matched."""
_BY_LUCK, _DISTINCT = 2.5, 24
"""Largest number of matched pairs that counts as chance, and smallest number of different captions to judge it."""
_COMMON = {
    "CLIP": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "ImageNet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "0.5": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}


class _Losses(NamedTuple):
    each: Float[Tensor, " N"]
    """Loss of each pair, the mean of both directions."""
    matched: float
    """Share of pairs whose image and caption have the highest similarity in the batch, the mean of both directions."""


class _Trial:
    """A model, and the pairs on which different settings of the model are compared."""

    def __init__(self, model: DualEncoder, pixels: Tensor, captions: list[str]) -> None:
        self.model = model
        self.pixels = pixels
        self.captions = captions
        self.texts = self.text_features()
        self.current = self.losses(pixels, self.texts)

    def text_features(self) -> Float[Tensor, "N D"]:
        features = encode_strings(self.model.text, self.captions, tower_features, _PAIRS, self.model.device)
        return F.normalize(features.to(self.model.device), dim=-1)

    def losses(self, pixels: Tensor, texts: Float[Tensor, "N D"]) -> _Losses:
        images = F.normalize(self.model.image({"pixel_values": pixels}).float(), dim=-1)
        logits = self.model.logit_scale.detach().exp().item() * images @ texts.T
        target = torch.arange(len(logits), device=logits.device)
        forward, backward = (F.cross_entropy(scores, target, reduction="none") for scores in (logits, logits.T))
        matched = ((logits.argmax(1) == target).float().mean() + (logits.argmax(0) == target).float().mean()) / 2
        return _Losses((forward + backward) / 2, float(matched))


def other_settings(model: DualEncoder, pairs: Pairs) -> list[Finding]:
    """Check the settings of a pretrained model on 32 training pairs, and return at most one finding.

    The finding reports a model that matches the pairs clearly better with another pixel normalization or activation,
    or no better than by chance.
    """
    chosen = range(0, len(pairs.images), max(1, len(pairs.images) // _PAIRS))[:_PAIRS]
    captions = [pairs.captions[int(pairs.captions_of_image[image][0])] for image in chosen]
    preprocess = model.image.preprocess
    try:
        inputs = [preprocess(open_image(pairs.images[image])) for image in chosen]
    except DataError:  # a broken image; the run reports it elsewhere
        return []
    if len(inputs) < _PAIRS or set(inputs[0]) != {"pixel_values"} or preprocess.image_size is None:
        return []
    pixels = torch.stack([each["pixel_values"] for each in inputs]).to(model.device, next(model.parameters()).dtype)
    with torch.inference_mode():
        # One wrong setting also makes other settings look wrong, so only the first finding is reported.
        return apply(SETTINGS_GUARDS, _Trial(model, pixels, captions))[:1]


def other_normalization(trial: _Trial) -> Finding | None:
    """Report that the model matches pairs clearly better with another mean and standard deviation."""
    preprocess = trial.model.image.preprocess
    for name, (mean, std) in _COMMON.items():
        if preprocess.finish is not None or (_equal(mean, preprocess.mean) and _equal(std, preprocess.std)):
            continue
        pixels = _renormalized(trial.pixels, (preprocess.mean, preprocess.std), (mean, std))
        if _is_better(trial.losses(pixels, trial.texts), trial.current):
            return Finding(
                "other_normalization", "warning",
                f"with the mean and std of {name}, the model matches pairs better than with the mean and std "
                f"of its configuration ({_short(preprocess.mean)}; {_short(preprocess.std)})",
                f"the model was probably trained with the mean and std of {name}: set these values in "
                "preprocessor_config.json or open_clip_config.json",
            )  # fmt: skip
    return None


def other_activation(trial: _Trial) -> Finding | None:
    """Report that the model matches pairs clearly better with another activation function."""
    with _other_activation(trial.model) as (current, other):
        if other is None or not _is_better(trial.losses(trial.pixels, trial.text_features()), trial.current):
            return None
    return Finding(
        "other_activation", "warning",
        f"with the activation {other}, the model matches pairs better than with the configured activation {current}",
        f"the model was probably trained with {other}: set hidden_act in config.json, or quick_gelu in "
        "open_clip_config.json",
    )  # fmt: skip


def unmatched_pairs(trial: _Trial) -> Finding | None:
    """Report pairs that a pretrained model matches no more often than by chance."""
    if len(set(trial.captions)) < _DISTINCT or trial.current.matched > _BY_LUCK / _PAIRS:
        return None
    return Finding(
        "unmatched_pairs", "warning",
        f"before training, the pretrained model matches {trial.current.matched:.0%} of {_PAIRS} training pairs; by "
        f"chance it would match {1 / _PAIRS:.0%}",
        "check that each caption belongs to its image (clipkit data preview D: a shuffled column or a "
        "shifted row is a common cause); if the captions are correct, the model does not know this kind of "
        "image or this language",
    )  # fmt: skip


SETTINGS_GUARDS = (
    Rule("other_normalization", other_normalization,
         "with another common mean and std, the model matches 32 training pairs clearly better"),
    Rule("other_activation", other_activation,
         "with the activation GELU instead of QuickGELU, or with QuickGELU instead of GELU, the model "
         "matches 32 training pairs clearly better"),
    Rule("unmatched_pairs", unmatched_pairs,
         "a pretrained whole model matches at most 2 of 32 training pairs with different captions"),
)  # fmt: skip


def _is_better(other: _Losses, current: _Losses) -> bool:
    gain = current.each - other.each
    mean, error = float(gain.mean()), float(gain.std()) / math.sqrt(len(gain))
    # If the model matches no pairs, a setting may look better by chance.
    is_large = mean > _GAIN * float(current.each.mean()) and mean > _STANDARD_ERRORS * error
    return is_large and other.matched >= _MATCHED / _PAIRS


Normalization = tuple[tuple[float, ...], tuple[float, ...]]


def _renormalized(pixels: Tensor, current: Normalization, other: Normalization) -> Tensor:
    (mean, std), (other_mean, other_std) = (
        [torch.tensor(values, device=pixels.device, dtype=pixels.dtype)[:, None, None] for values in both]
        for both in (current, other)
    )
    return (pixels * std + mean - other_mean) / other_std


@contextmanager
def _other_activation(model: DualEncoder) -> Iterator[tuple[str, str | None]]:
    """Replace QuickGELU with GELU, or GELU with QuickGELU, inside a `with` block.

    Yields:
        Names of the original activation and of the replacement; None as replacement if the model uses neither.
    """
    replaced: list[tuple[nn.Module, str, nn.Module]] = []
    is_quick = False
    for parent in model.modules():
        for name, child in parent.named_children():
            kind = type(child).__name__
            if kind in ("QuickGELU", "QuickGELUActivation", "GELU", "GELUActivation"):
                replaced.append((parent, name, child))
                is_quick = is_quick or kind.startswith("Quick")
    other: nn.Module = nn.GELU() if is_quick else _QuickGELU()
    for parent, name, _ in replaced:
        setattr(parent, name, other)
    try:
        yield ("QuickGELU" if is_quick else "GELU", ("GELU" if is_quick else "QuickGELU") if replaced else None)
    finally:
        for parent, name, child in replaced:
            setattr(parent, name, child)


class _QuickGELU(nn.Module):
    """QuickGELU, x · sigmoid(1.702 x): the activation of OpenAI's CLIP."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


def _equal(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return all(math.isclose(a, b, abs_tol=1e-3) for a, b in zip(one, other, strict=True))


def _short(values: tuple[float, ...]) -> str:
    return " ".join(f"{value:.3g}" for value in values)
