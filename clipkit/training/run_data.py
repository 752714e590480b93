"""Data of a run; it is read and checked before a model is loaded."""

from collections.abc import Collection
from dataclasses import dataclass, replace

import numpy as np

from clipkit.catalogue import Need
from clipkit.data import (
    AnyFeed,
    IndexedFeed,
    LabeledImages,
    Pairs,
    broken_images,
    checked_negatives,
    join,
    missing_positions,
    quick_findings,
    read_labeled,
    read_pairs,
    split,
    stream_feed,
)
from clipkit.embedding.shared import scan_shared
from clipkit.errors import DataError, RecipeError
from clipkit.processes import Processes
from clipkit.recipe import Recipe
from clipkit.training.given import Given

# Data with more images is only checked by `clipkit data check`, so that a run starts without delay.
_MOST_CHECKED = 100_000


@dataclass(frozen=True)
class RunData:
    """Training and validation data of a run."""

    train: AnyFeed
    validation: Pairs | None
    labelled: list[LabeledImages]
    """Labeled training images of a probe, and, if given, its test images."""
    missing: dict[int, str]
    """Known reasons why training images are missing or unreadable, by position."""
    max_bad: int
    """Maximum number of training images that may be missing or unreadable."""
    notes: list[str]
    """Messages for the user."""


def read_data(recipe: Recipe, processes: Processes, given: Given) -> RunData:
    """Read the sources, and check them without opening every training image.

    Raises:
        DataError: a source lacks a column that the objective needs, too many training images are missing, or validation
            data is unreadable or too small.
        RecipeError: a batch has fewer pairs than there are processes, or the recipe has a setting that a stream does
            not support.
    """
    data = recipe.data
    if recipe.train.batch_size < processes.count:
        raise RecipeError(
            f"train.batch_size is {recipe.train.batch_size}, fewer than the {processes.count} processes; use fewer "
            "processes or a larger train.batch_size"
        )
    notes: list[str] = []
    train, validation = _read_both(recipe, processes, given)
    if validation is not None:
        validation = _readable(recipe, validation, processes, notes)
    count = train.counts["images"]
    max_bad = int(data.max_bad * count if data.max_bad < 1 else data.max_bad)
    missing = _missing(train.pairs, max_bad)
    if train.can_index and count <= _MOST_CHECKED:
        notes += [finding.line() for finding in quick_findings(train.pairs) if finding.severity == "warning"]
    if Need.NEGATIVES in recipe.needs:
        checked_negatives(train.pairs)
    labelled = [read_labeled(source) for source in (data.labelled, data.labelled_test) if source]
    notes += [finding.line() for labeled in labelled for finding in labeled.findings]
    return RunData(train, validation, labelled, dict.fromkeys(missing, "the file does not exist"), max_bad, notes)


def _read_both(recipe: Recipe, processes: Processes, given: Given) -> tuple[AnyFeed, Pairs | None]:
    """Read the training data, and the validation data if the recipe has any."""
    data = recipe.data

    def validation() -> Pairs | None:
        kept = given.read("validation", processes, **recipe.columns)
        named = data.validation if isinstance(data.validation, str) else None
        return _read(recipe, named) if kept is None and named is not None else kept

    pairs = given.read("train", processes, **recipe.columns)
    stream = stream_feed(data.sources[0].source, data.samples) if pairs is None else None
    if stream is not None:
        _check_streamable(recipe, stream.name)
        return stream, validation()
    train = pairs or join(
        [_read(recipe, source.source, broken=("images",)) for source in data.sources],
        [source.weight for source in data.sources],
    )
    if isinstance(data.validation, float):
        train, kept = split(train, data.validation)
        return IndexedFeed(train), replace(kept, name=f"{data.validation:g} of {train.name}", parts=())
    return IndexedFeed(train), validation()


def _check_streamable(recipe: Recipe, name: str) -> None:
    """Check that the recipe has no setting that streams do not support.

    Raises:
        RecipeError: a setting is not supported, e.g. because it needs the number of samples.
    """
    data = recipe.data
    refused = {
        "several sources in data.train": len(data.sources) > 1 or data.sources[0].weight != 1,
        "a share in data.validation": isinstance(data.validation, float),
        "data.captions: all": data.captions == "all",
        "data.safe": data.safe,
        "data.min_score": data.min_score is not None,
        "data.hard_negatives": data.hard_negatives is not None,
    } | {setting: True for term in recipe.terms for setting in term.not_streamed}
    for setting, is_used in refused.items():
        if is_used:
            raise RecipeError(
                f"{name}: is a stream, which does not support {setting}; change this setting, or download "
                "the data and give its path"
            )


def _missing(train: Pairs, max_bad: int) -> list[int]:
    """Return the positions of missing images.

    Raises:
        DataError: more than `max_bad` images are missing.
    """
    missing: list[int] = missing_positions(train.images).tolist() if train.has_images else []
    if len(missing) > max_bad:
        raise DataError(
            f"{train.name}: {len(missing)} of its {len(train.images)} training images are missing, the first "
            f"is {train.images[missing[0]]}; fix the paths, drop the rows (clipkit data check --fix), or "
            f"raise data.max_bad (now {max_bad})"
        )
    return missing


def _readable(recipe: Recipe, validation: Pairs, processes: Processes, notes: list[str]) -> Pairs:
    """Return the validation data without unreadable images.

    Only data that was split off from the training data may have unreadable images.

    Raises:
        DataError: the recipe names validation data with unreadable images, or too little data is left.
    """
    broken = scan_shared(validation.images, broken_images, processes) if validation.has_images else {}
    first = next(iter(broken.values()), "")
    if broken and isinstance(recipe.data.validation, str):
        raise DataError(
            f"{validation.name}: {len(broken)} images are unreadable, the first: {first}; fix these images or "
            "drop their rows"
        )
    if broken:
        notes.append(f"{validation.name}: {len(broken)} unreadable images are skipped, the first: {first}")
        validation = validation.take(np.setdiff1d(np.arange(len(validation.images)), sorted(broken)))
    _check_enough(recipe, validation, processes)
    return validation


def _read(recipe: Recipe, source: str, broken: Collection[str] = ()) -> Pairs:
    """Read pairs from a source, or only images or only captions if the objective needs nothing else.

    Args:
        broken: problems to tolerate, e.g. "images" for missing image files.
    """
    return read_pairs(source, **recipe.columns, broken=broken)


def _check_enough(recipe: Recipe, validation: Pairs, processes: Processes) -> None:
    count = len(validation.images)
    if count < processes.count:
        raise DataError(
            f"{validation.name}: {count} validation images are fewer than the {processes.count} processes; use fewer "
            "processes or more validation data"
        )
    needed = max(term.fewest_samples for term in recipe.terms)
    if count < needed:
        raise DataError(
            f"{validation.name}: {count} validation sample(s) are too few, because the objective needs at "
            f"least {needed}; use more validation data"
        )
