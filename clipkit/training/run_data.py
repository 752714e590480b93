"""The data of a run, read and looked at before any model is."""

from collections.abc import Collection
from dataclasses import dataclass, replace

import numpy as np

from clipkit.catalogue import Need
from clipkit.data import (
    LabelledImages,
    Pairs,
    broken_images,
    checked_negatives,
    join,
    missing_places,
    quick_findings,
    read_labelled,
    read_pairs,
    read_stream,
    split,
)
from clipkit.errors import DataError, RecipeError
from clipkit.processes import Processes
from clipkit.recipe import Recipe

# More images than this are looked at by `clipkit data check` alone: a run begins at once.
_LOOKED_AT = 100_000


@dataclass(frozen=True)
class RunData:
    """What a run learns from and is measured on."""

    train: Pairs
    validation: Pairs | None
    labelled: list[LabelledImages]
    """To learn classes from, and, where it is given, to be asked about."""
    missing: dict[int, str]
    """Training images that are not there, by position: why."""
    max_bad: int
    """How many training images may turn out to be missing or broken."""
    notes: list[str]
    """What the user should know."""

    @property
    def wrong_captions(self) -> list[str]:
        """Those of the training pairs, where there are any."""
        return list(self.train.negatives or [])


def read_data(recipe: Recipe, processes: Processes) -> RunData:
    """Read the sources, and see what can be seen without opening every training image.

    Raises:
        DataError: a source lacks what the objective needs; so many training images are missing that the run would
            stop; an image to validate on is broken; there are too few.
        RecipeError: there are more processes than pairs in a batch.
    """
    data = recipe.data
    if recipe.train.batch_size < processes.count:
        raise RecipeError(
            f"train.batch_size is {recipe.train.batch_size}, fewer pairs than the {processes.count} processes; start "
            "fewer"
        )
    streamed = read_stream(data.sources[0].source, data.samples)
    if streamed is not None:
        _check_streamable(recipe, streamed.name)
    train: Pairs = streamed or join(
        [_read(recipe, own.source, broken=("images",)) for own in data.sources],
        [own.weight for own in data.sources],
    )
    notes: list[str] = []
    if isinstance(data.validation, float):
        train, kept = split(train, data.validation)
        validation: Pairs | None = replace(kept, name=f"{data.validation:g} of {train.name}", parts=())
    else:
        validation = _read(recipe, data.validation) if data.validation is not None else None
    if validation is not None:
        validation = _sound(recipe, validation, processes, notes)
    count = len(train.images)
    max_bad = int(data.max_bad * count if data.max_bad < 1 else data.max_bad)
    missing = [] if streamed is not None else _missing(train, max_bad)
    if streamed is None and count <= _LOOKED_AT:
        notes += [finding.line() for finding in quick_findings(train) if finding.severity == "warning"]
    if Need.NEGATIVES in recipe.needs:
        checked_negatives(train)
    labelled = [read_labelled(own) for own in (data.labelled, data.labelled_test) if own]
    return RunData(train, validation, labelled, dict.fromkeys(missing, "there is no such file"), max_bad, notes)


def _check_streamable(recipe: Recipe, name: str) -> None:
    """See that nothing asks for what a stream has not: positions, a length, columns beside captions.

    Raises:
        RecipeError: something does.
    """
    data = recipe.data
    refused = {
        "several sources in data.train": len(data.sources) > 1 or data.sources[0].weight != 1,
        "a share in data.validation": isinstance(data.validation, float),
        "data.captions: all": data.captions == "all",
        "data.safe": data.safe,
    } | {what: True for term in recipe.terms for what in term.not_streamed}
    found = [what for what, asked in refused.items() if asked]
    if found:
        raise RecipeError(
            f"{name}: is a stream, for which {found[0]} cannot be had; fetch it, and name it where it then lies"
        )


def _missing(train: Pairs, max_bad: int) -> list[int]:
    """Images that are not there.

    Raises:
        DataError: they are too many.
    """
    missing: list[int] = missing_places(train.images).tolist() if train.has_images else []
    if len(missing) > max_bad:
        raise DataError(
            f"{train.name}: {len(missing)} of its {len(train.images)} images are missing, the first is "
            f"{train.images[missing[0]]}; mend the paths, drop the rows (clipkit data check --fix), or raise "
            f"data.max_bad (it allows {max_bad})"
        )
    return missing


def _sound(recipe: Recipe, validation: Pairs, processes: Processes, notes: list[str]) -> Pairs:
    """What can be decoded of a share kept for validation; of a set that was named, all has to be.

    Raises:
        DataError: it cannot, or too little is left.
    """
    broken = _broken(validation, processes)
    first = next(iter(broken.values()), "")
    if broken and isinstance(recipe.data.validation, str):
        raise DataError(f"{validation.name}: {len(broken)} images cannot be validated on, the first: {first}")
    if broken:
        notes.append(f"{validation.name}: {len(broken)} images left out, the first: {first}")
        validation = validation.take(np.setdiff1d(np.arange(len(validation.images)), sorted(broken)))
    _check_enough(recipe, validation, processes)
    return validation


def _read(recipe: Recipe, source: str, broken: Collection[str] = ()) -> Pairs:
    """Pairs, or what of them the objective needs."""
    reads = {what for term in recipe.terms for what in term.reads}
    return read_pairs(source, images="images" in reads, captions="captions" in reads, broken=broken)


def _broken(pairs: Pairs, processes: Processes) -> dict[int, str]:
    """Images that cannot be decoded, by position: why. Each process looks at its share."""
    if not pairs.has_images:
        return {}
    share = processes.share(len(pairs.images))
    here = broken_images(pairs.images[share])
    every = processes.gather_objects({share.start + place: why for place, why in here.items()})
    return {place: why for own in every for place, why in own.items()}


def _check_enough(recipe: Recipe, validation: Pairs, processes: Processes) -> None:
    count = len(validation.images)
    if count < processes.count:
        raise DataError(
            f"{validation.name}: has {count} images, fewer than the {processes.count} processes; start fewer, or "
            "validate on more"
        )
    needed = max(term.fewest_samples for term in recipe.terms)
    if count < needed:
        raise DataError(f"{validation.name}: has {count} sample, but this objective needs {needed}; validate on more")
