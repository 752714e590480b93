"""What can be told of a run before its first step, in seconds: recipe, data and model, held against each other."""

import hashlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from clipkit.data import Pairs, expected_false_negatives
from clipkit.data.sequences import evenly_spaced
from clipkit.errors import DataError
from clipkit.images import Stored, size_of, upright_size
from clipkit.models import DualEncoder, Tower
from clipkit.models.absent import is_absent
from clipkit.models.token_counts import token_counter
from clipkit.models.tokenizer import TransformersTokenizer, transformers_tokenizer
from clipkit.recipe import Recipe
from clipkit.training.guards.finding import Finding

_LOOKED_AT = 2000
"""Captions, and a tenth as many images, of which lengths and sizes are taken."""
_MANY = 100_000
"""Images from which on nothing is compared one by one."""
_FEW = 0.01
_SHARE = 0.05
# AdamW's known-good peaks: from few-shot fine-tuning (1e-6) to transformers' example (5e-5); SLIP from scratch 3e-3.
_TUNED = (1e-7, 1e-4)
_NEW = (5e-5, 1e-2)
_SMALL_BATCH = 64
_SMALL = 0.2


def before_first_step(
    recipe: Recipe, model: DualEncoder, train: Pairs, validation: Pairs | None, steps: int, rising: int
) -> list[Finding]:
    """Everything below, worst first.

    Args:
        recipe: of the run.
        model: as it is about to be trained.
        train: what it learns from.
        validation: what it is measured on.
        steps: of the whole run.
        rising: steps of warmup.
    """
    found = [*_of_recipe(recipe, model, steps, rising), *_of_pairs(recipe, model, train)]
    if validation is not None and len(train.images):
        found += leaks(train, validation)
    return sorted(found, key=lambda own: ("error", "warning", "note").index(own.level))


def _of_recipe(recipe: Recipe, model: DualEncoder, steps: int, rising: int) -> Iterator[Finding]:
    yield from learning_rate(recipe, model)
    if rising > steps / 2:
        yield Finding(
            "long_warmup",
            "warning",
            f"the learning rate rises during {rising} of {steps} steps",
            "take optim.warmup: 0.1, a tenth of the run",
        )
    yield from small_batch(recipe, model)
    yield from little_learns(recipe, model)
    yield from other_tokenizer(recipe, model)


def learning_rate(recipe: Recipe, model: DualEncoder) -> Iterator[Finding]:
    """A peak that nobody had success with: for pretrained weights, or for new ones."""
    learns = any(parameter.requires_grad for _, tower in _towers(model) for parameter in tower.parameters())
    if recipe.optim.name != "adamw" or not learns:
        return
    lr = recipe.optim.lr
    tuned = any(_is_tuned(recipe, side, tower) for side, tower in _towers(model))
    lowest, highest = _TUNED if tuned else _NEW
    what = "pretrained weights" if tuned else "new weights"
    if lr > highest:
        yield Finding(
            "high_learning_rate",
            "warning",
            f"optim.lr is {lr:g}, {what} are tuned with at most {highest:g}",
            "take 1e-5, or they are forgotten in the first steps" if tuned else "take 1e-3",
        )
    if lr < lowest:
        yield Finding(
            "low_learning_rate",
            "warning",
            f"optim.lr is {lr:g}, with which {what} hardly move",
            f"take {'1e-5' if tuned else '1e-3'}, or at least {lowest:g}",
        )


def small_batch(recipe: Recipe, model: DualEncoder) -> Iterator[Finding]:
    """Few negatives, and a scale that makes them all easy."""
    scale = model.logit_scale.exp().item()
    if "captions" in recipe.objective and recipe.train.batch_size < _SMALL_BATCH and scale > 95 and not _sigmoid(model):
        yield Finding(
            "small_batch",
            "warning",
            f"a batch of {recipe.train.batch_size} pairs with a scale of {scale:.4g}: the loss is near 0 at once, and "
            "its gradient too",
            "take train.batch_size: 256 or more; micro-batches keep it in memory",
        )


def little_learns(recipe: Recipe, model: DualEncoder) -> Iterator[Finding]:
    """A run in which no tower learns."""
    if "captions" in recipe.objective and not any(
        parameter.requires_grad for _, tower in _towers(model) for parameter in tower.parameters()
    ):
        yield Finding(
            "nothing_to_train",
            "error",
            "both towers are frozen: only the scale learns, and no ranking can change",
            "set model.image.tune or model.text.tune, as last:2",
        )


def other_tokenizer(recipe: Recipe, model: DualEncoder) -> Iterator[Finding]:
    """A pretrained text tower with another vocabulary than its own, or a whole model with one that does not fit."""
    own = recipe.model.text
    if own.name is not None and own.pretrained and own.tokenizer is not None:
        given = model.text.tokenize
        try:
            folder = Path(model.text.trunk.native.config.name_or_path)  # type: ignore[union-attr,arg-type]
            theirs = transformers_tokenizer(folder, None).native.get_vocab()
        except Exception:  # the tower came without one, which is why one was given
            return
        vocabulary = given.native.get_vocab() if isinstance(given, TransformersTokenizer) else None
        if vocabulary != theirs:
            yield Finding(
                "other_tokenizer",
                "warning",
                f"model.text.tokenizer is {own.tokenizer}, {own.name} was pretrained with another vocabulary",
                "leave out model.text.tokenizer, so that words keep the meaning that the tower knows",
            )


def _of_pairs(recipe: Recipe, model: DualEncoder, train: Pairs) -> Iterator[Finding]:
    if not len(train.images):  # a stream
        return
    if train.has_captions and not is_absent(model.text):
        yield from cut_captions(model, train)
    if "captions" in recipe.objective:
        yield from false_negatives(recipe, train)
    if train.has_images and not is_absent(model.image):
        yield from small_images(model, train)


def cut_captions(model: DualEncoder, train: Pairs) -> Iterator[Finding]:
    """Captions that are longer than the text tower reads."""
    captions = [train.captions[place] for place in evenly_spaced(len(train.captions), _LOOKED_AT)]
    length = model.text.tokenize.context_length
    share = sum(count > length for count in token_counter(model)(captions)) / max(1, len(captions))
    if share >= _FEW:
        yield Finding(
            "captions_cut",
            "warning",
            f"{share:.1%} of the captions are cut at {length} tokens",
            "put what matters first, split them (data.captions: all), or take a model with a longer context",
        )


def false_negatives(recipe: Recipe, train: Pairs) -> Iterator[Finding]:
    """Rows of a batch whose caption another row has too."""
    batch = recipe.train.batch_size
    if len(train.images) > _MANY:
        return
    size = min(batch, len(train.images))
    share = min(1.0, 2 * expected_false_negatives(train, None, batch)["same_caption"] / max(1, size))
    counted = all(term.duplicates == "positive" for term in recipe.loss.terms)
    if share >= (0.5 if counted else _FEW):
        heeded = "which the loss counts as positives" if counted else "which the loss takes for negatives"
        yield Finding(
            "false_negatives",
            "warning",
            f"in a batch of {batch} pairs {share:.0%} have a caption that another one has too, {heeded}",
            "more varied captions would teach more; for classes take a smaller batch"
            if counted
            else "take loss.duplicates: positive",
        )


def small_images(model: DualEncoder, train: Pairs) -> Iterator[Finding]:
    """Images that have fewer pixels than the image tower looks at."""
    side = model.image.preprocess.image_size
    sizes = [_shorter_side(train.images[place]) for place in evenly_spaced(len(train.images), _LOOKED_AT // 10)]
    known = [size for size in sizes if size is not None]
    share = sum(size < side for size in known) / len(known) if side is not None and known else 0.0
    if share >= _SMALL:
        yield Finding(
            "small_images",
            "warning",
            f"{share:.0%} of the images are smaller than the {side} pixels of the input",
            "what is enlarged is blurred: take larger images, or a model with a smaller input",
        )


def leaks(train: Pairs, validation: Pairs) -> list[Finding]:
    """Validation images that are trained on, byte for byte."""
    if not (train.has_images and validation.has_images) or len(train.images) > _MANY:
        return []
    sizes = Counter(size_of(image) for image in validation.images)
    candidates = [image for image in train.images if sizes.get(size_of(image))]
    if not candidates:
        return []
    known = {_content(image) for image in candidates} - {None}
    same = sum(_content(image) in known for image in validation.images)
    if not same:
        return []
    return [
        Finding(
            "validation_leaks",
            "warning",
            f"{same} of the {len(validation.images)} validation images are trained on too",
            "their figures are too good: take them out (clipkit data check D --against D2 --fix OUT)",
        )
    ]


def _towers(model: DualEncoder) -> list[tuple[str, Tower]]:
    both: list[tuple[str, Tower]] = [("image", model.image), ("text", model.text)]
    return [(side, tower) for side, tower in both if not is_absent(tower)]


def _is_tuned(recipe: Recipe, side: str, tower: Tower) -> bool:
    """Whether pretrained weights of its trunk learn."""
    if not any(parameter.requires_grad for parameter in tower.trunk.parameters()):
        return False
    if recipe.model.name is not None:
        return is_pretrained(recipe)
    return recipe.model.image.pretrained if side == "image" else recipe.model.text.pretrained


def is_pretrained(recipe: Recipe) -> bool:
    """Whether the recipe names a whole model that has learned something already."""
    name = recipe.model.name or "open_clip:"
    return not name.startswith("open_clip:") or "/" in name or "?" in name


def _sigmoid(model: DualEncoder) -> bool:
    return model.logit_bias is not None


def _shorter_side(image: Path | Stored) -> int | None:
    try:
        return min(upright_size(image.read_bytes()))
    except Exception:  # decoders fail in ways of their own, and others say so
        return None


def _content(image: Path | Stored) -> bytes | None:
    try:
        return hashlib.sha256(image.read_bytes()).digest()
    except (OSError, DataError):
        return None
