"""Checks of recipe, data and model before the first step, which take a few seconds.

To add a check, write a function, add a row to `GUARDS`, and test it. Rules about data are in
clipkit/data/checks/rules.py.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from clipkit.data import Pairs
from clipkit.data.checks.batch import expected_false_negatives
from clipkit.data.checks.checked_data import CheckedData
from clipkit.data.checks.leaks import find_exact_leaks
from clipkit.data.checks.rules import apply_rules
from clipkit.data.sequences import evenly_spaced
from clipkit.findings import Finding, Rule, apply, counted, duration, most_severe_first
from clipkit.images import Stored, read_image, upright_size
from clipkit.models import DualEncoder, Tower
from clipkit.models.absent import is_absent
from clipkit.models.preprocess import stack_inputs
from clipkit.models.token_counts import token_counter
from clipkit.models.tokenizer import TransformersTokenizer, transformers_tokenizer
from clipkit.recipe import LearningRates, Recipe
from clipkit.training.rates import Kind, kind_of

_CAPTIONS, _IMAGES = 2000, 200
"""Number of captions whose lengths are measured, and number of images whose sizes are measured (samples)."""
_MANY = 100_000
"""Maximum number of training images that are compared with each other and with the validation images."""
# Peak learning rates that are known to work with AdamW: from few-shot fine-tuning (1e-6) to transformers' example
# (5e-5); SLIP from scratch uses 3e-3.
_KNOWN_RATES: dict[Kind, tuple[float, float]] = {
    "pretrained": (1e-7, 1e-4),
    "new": (5e-5, 1e-2),
    "adapter": (5e-6, 5e-3),
}
# Towers that were not pretrained together cannot lose a common space, so rates may be higher: 3e-4 in
# recipes/flickr8k_tuned.yaml.
_SEPARATE_TOWERS = 1e-3
_SMALL_BATCH, _TINY_BATCH = 64, 8
_TIMED_IMAGES = 8


@dataclass(frozen=True)
class RunStart:
    """Recipe, data and model of a run before its first step."""

    recipe: Recipe
    model: DualEncoder
    steps: int
    """Steps of the whole run."""
    warmup_steps: int
    images: int = 0
    """Number of training images; 0 for a stream."""

    @property
    def learns(self) -> bool:
        """True if at least one parameter of a tower is trained."""
        return any(parameter.requires_grad for _, tower in _towers(self.model) for parameter in tower.parameters())

    @property
    def rates(self) -> Iterator[tuple[Kind, float, float, float]]:
        """(kind, peak learning rate, lowest usual rate, highest usual rate) for each kind of trained weights.

        Empty if the optimizer is not AdamW.
        """
        if self.recipe.optim.name != "adamw":
            return
        trained = [
            (kind_of(f"{side}.{name}", self.recipe), name)
            for side, tower in (*_towers(self.model), ("view_heads", self.model.view_heads))
            for name, parameter in tower.named_parameters()
            if parameter.requires_grad
        ]
        for kind, (low, high) in _KNOWN_RATES.items():
            names = [name for each, name in trained if each == kind]
            if names:
                # A pretrained projection on a frozen trunk also works with the rates of a new one.
                in_trunk = any(name.startswith("trunk.") for name in names)
                if kind == "pretrained" and not in_trunk:
                    high = _KNOWN_RATES["new"][1]
                elif kind == "pretrained" and self.recipe.start == "cca":
                    high = _SEPARATE_TOWERS
                yield kind, getattr(self.recipe.optim.rates, kind), low, high

    def rate_key(self, kind: Kind) -> str:
        """Return the recipe key that sets the learning rate for a kind of weights, e.g. `optim.lr.adapter`."""
        return "optim.lr" if isinstance(self.recipe.optim.lr, float) else f"optim.lr.{kind}"


def before_first_step(
    recipe: Recipe, model: DualEncoder, train: Pairs, validation: Pairs | None, steps: int, warmup_steps: int
) -> list[Finding]:
    """Return all findings before training, the most severe first.

    The learning rate rises during the first `warmup_steps` steps of the run.
    """
    of_sources = [*train.findings, *(validation.findings if validation is not None else ())]
    findings = [
        *dict.fromkeys(of_sources),
        *apply(GUARDS, RunStart(recipe, model, steps, warmup_steps, len(train.images))),
    ]
    if len(train.images):  # a stream has no images by position
        findings += data_findings(recipe, model, train, validation)
    return most_severe_first(findings)


def data_findings(recipe: Recipe, model: DualEncoder, train: Pairs, validation: Pairs | None) -> list[Finding]:
    """Check a sample of the data, and return the errors and warnings, without notes.

    `clipkit data check` also reports notes.
    """
    has_image = train.has_images and not is_absent(model.image)
    has_text = train.has_captions and not is_absent(model.text)
    image_rows = evenly_spaced(len(train.images), _IMAGES) if has_image else []
    caption_rows = evenly_spaced(len(train.captions), _CAPTIONS) if has_text else []
    counts = token_counter(model)([train.captions[row] for row in caption_rows]) if has_text else []
    leaked, batch = {}, None
    if len(train.images) <= _MANY:
        if validation is not None and train.has_images and validation.has_images:
            leaked = find_exact_leaks(train, validation)
        if recipe.is_cross_modal:
            batch = expected_false_negatives(train, None, recipe.train.batch_size)
    counts_as_positive = all(term.duplicates == "positive" for term in recipe.loss.terms)
    data = CheckedData(
        train,
        image_rows=image_rows,
        sizes=np.array([_size(train.images[row]) for row in image_rows], np.int32).reshape(-1, 2),
        image_size=model.image.preprocess.image_size if has_image else None,
        against=validation,
        leaked=leaked,
        caption_rows=caption_rows,
        token_counts=np.array(counts, np.int64),
        context_length=model.text.tokenize.context_length if has_text else None,
        batch=batch,
        loss_counts_duplicates="positive" if counts_as_positive else "negative",
    )
    return [finding for finding in apply_rules(data, scopes=["sampled"]) if finding.severity != "note"]


def high_learning_rate(start: RunStart) -> Finding | None:
    """Report a peak learning rate above the range that is known to work for its kind of weights."""
    for kind, lr, _, highest in start.rates:
        if lr > highest:
            lost = (
                "; otherwise, the model loses pretrained knowledge in the first steps" if kind == "pretrained" else ""
            )
            return Finding(
                "high_learning_rate", "warning",
                f"{start.rate_key(kind)} is {lr:g}, but {kind} weights are usually trained with at most {highest:g}",
                f"use {_usual(kind)} for {kind} weights{lost}",
            )  # fmt: skip
    return None


def low_learning_rate(start: RunStart) -> Finding | None:
    """Report a peak learning rate below the range that is known to work for its kind of weights."""
    for kind, lr, lowest, _ in start.rates:
        if lr < lowest:
            return Finding(
                "low_learning_rate", "warning",
                f"{start.rate_key(kind)} is {lr:g}, which hardly changes {kind} weights",
                f"use {_usual(kind)} for {kind} weights, or at least {lowest:g}",
            )  # fmt: skip
    return None


def _usual(kind: Kind) -> str:
    return f"{getattr(LearningRates(), kind):g} (optim.lr: {{{', '.join(f'{k}: {r:g}' for k, r in LearningRates())}}})"


def long_warmup(start: RunStart) -> Finding | None:
    """Report a learning rate that rises during most of the run."""
    if start.warmup_steps <= start.steps / 2:
        return None
    return Finding(
        "long_warmup", "warning", f"the learning rate rises during {start.warmup_steps} of {start.steps} steps",
        "use a shorter warmup, e.g. optim.warmup: 0.1 (a tenth of the run)",
    )  # fmt: skip


def small_batch(start: RunStart) -> Finding | None:
    """Report a batch that is so small that the model learns little from it.

    This is always the case below 8 pairs. Below 64 pairs, it is the case if the logit scale is so high that the loss
    starts near 0.
    """
    scale, size = start.model.logit_scale.exp().item(), start.recipe.train.batch_size
    if start.recipe.is_cross_modal and size < _TINY_BATCH:
        return Finding(
            "small_batch", "warning",
            f"in a batch of {size} pairs, each image is compared with only "
            f"{counted(size - 1, 'other caption')}, so the model learns little, and the metrics within a "
            "batch mean little",
            "use train.batch_size: 256 or more (for a small dataset, at least a tenth of its pairs); "
            "train.micro_batch_size limits the memory",
        )  # fmt: skip
    is_sigmoid = start.model.logit_bias is not None
    if not start.recipe.is_cross_modal or size >= _SMALL_BATCH or scale <= 95 or is_sigmoid:
        return None
    return Finding(
        "small_batch", "warning",
        f"with a batch of {size} pairs and a logit scale of {scale:.4g}, the loss and its gradient are near 0 "
        "from the start",
        "use train.batch_size: 256 or more; train.micro_batch_size limits the memory",
    )  # fmt: skip


def nothing_to_train(start: RunStart) -> Finding | None:
    """Report a run in which both towers are frozen."""
    if not start.recipe.is_cross_modal or start.learns:
        return None
    return Finding(
        "nothing_to_train", "error",
        "both towers are frozen, so only the logit scale is trained, and rankings cannot change",
        "set model.image.tune or model.text.tune, e.g. last:2",
    )  # fmt: skip


def augmented_frozen_trunk(start: RunStart) -> Finding | None:
    """Report a frozen image trunk that runs in every step, because the images are augmented."""
    augmented = any(term.is_cross_modal and term.augmentation for term in start.recipe.terms)
    tower, passes = start.model.image, start.steps * start.recipe.train.batch_size
    if (
        start.recipe.data.views
        or not augmented
        or is_absent(tower)
        or not tower.trunk_is_frozen
        or not start.images
        or passes <= start.images
    ):
        return None
    inputs = stack_inputs([tower.preprocess(Image.new("RGB", (224, 224), (128, 128, 128)))] * _TIMED_IMAGES)
    inputs = {name: value.to(start.model.device) for name, value in inputs.items()}
    with torch.inference_mode():
        for _ in range(2):  # the first pass allocates memory
            began = time.perf_counter()
            tower.trunk(**inputs).sum().item()
            seconds = (time.perf_counter() - began) / _TIMED_IMAGES
    return Finding(
        "augmented_frozen_trunk", "warning",
        f"because of data.augment, the frozen image trunk runs on {passes:,} augmented images, which takes "
        f"about {duration(seconds * passes)}; without augmentation, it runs once on {start.images:,} images, which "
        f"takes about {duration(seconds * start.images)}",
        "set data.augment: none, or data.views: 4 to store four augmented views of each image; change "
        "nothing if the augmentation is worth the time",
    )  # fmt: skip


def other_tokenizer(start: RunStart) -> Finding | None:
    """Report a pretrained text tower whose tokenizer has another vocabulary than in pretraining."""
    text = start.recipe.model.text
    if text.name is None or not text.pretrained or text.tokenizer is None:
        return None
    tokenizer = start.model.text.tokenize
    try:
        folder = Path(start.model.text.trunk.native.config.name_or_path)  # type: ignore[union-attr,arg-type]
        pretrained = transformers_tokenizer(folder, context_length=1).native.get_vocab()
    except Exception:  # the tower has no tokenizer in its folder, so the recipe has to name one
        return None
    if isinstance(tokenizer, TransformersTokenizer) and tokenizer.native.get_vocab() == pretrained:
        return None
    return Finding(
        "other_tokenizer", "warning",
        f"model.text.tokenizer is {text.tokenizer}, but {text.name} was pretrained with another tokenizer",
        "remove model.text.tokenizer, so that the tokens keep the meaning that they had in pretraining",
    )  # fmt: skip


GUARDS = (
    Rule("high_learning_rate", high_learning_rate,
         "the peak learning rate of AdamW is above 1e-4 (pretrained weights; 1e-3 with model.start: cca), 5e-3 "
         "(adapters) or 1e-2 (only new weights)"),
    Rule("low_learning_rate", low_learning_rate,
         "the peak learning rate of AdamW is below 1e-7 (pretrained weights), 5e-6 (adapters) or 5e-5 (only new "
         "weights)"),
    Rule("long_warmup", long_warmup,
         "the learning rate rises during more than half of the run (more than the whole run is an error)"),
    Rule("small_batch", small_batch,
         "the batch has fewer than 8 pairs; or it has fewer than 64 pairs, and the logit scale is above 95, so that "
         "the loss is near 0 from the start"),
    Rule("nothing_to_train", nothing_to_train, "both towers are frozen, so only the logit scale is trained"),
    Rule("augmented_frozen_trunk", augmented_frozen_trunk,
         "the image trunk is frozen, but because of augmentation it runs in every step; the message states "
         "the time with and without augmentation"),
    Rule("other_tokenizer", other_tokenizer, "a pretrained text tower is used with a "
            "tokenizer that has another vocabulary"),
)  # fmt: skip


def _towers(model: DualEncoder) -> list[tuple[str, Tower]]:
    both: list[tuple[str, Tower]] = [("image", model.image), ("text", model.text)]
    return [(side, tower) for side, tower in both if not is_absent(tower)]


def _size(image: Path | Stored) -> tuple[int, int]:
    """Return the width and height of an image; (0, 0) if it is broken."""
    try:
        return upright_size(read_image(image))
    except Exception:  # decoders raise errors of many kinds
        return 0, 0
