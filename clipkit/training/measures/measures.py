"""All that a run measures on the way."""

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from clipkit.data import LabeledImages, Pairs
from clipkit.models import DualEncoder
from clipkit.processes import Processes
from clipkit.recipe import Recipe
from clipkit.training.measures.captions import CaptionValidation
from clipkit.training.measures.labels import LabelValidation
from clipkit.training.measures.views import ImageViewValidation, TextViewValidation
from clipkit.training.objectives.views import image_views


class Measurement(Protocol):
    """Figures of the model as it is."""

    def figures(self) -> dict[str, float]:
        """The figures alone, for the course of the run."""

    def result(self, name: str) -> dict[str, Any]:
        """What a result file holds, under this model name."""


def measurements_of(
    recipe: Recipe,
    model: DualEncoder,
    validation: Pairs | None,
    labelled: Sequence[LabeledImages],
    processes: Processes,
) -> Iterator[Measurement]:
    """What a recipe measures, in the order in which its figures are likeliest to choose the best weights.

    Raises:
        DataError: the labelled images do not go together.
    """
    if validation is not None and "captions" in recipe.objective:
        yield CaptionValidation(model, validation, processes)
    if validation is not None and recipe.image_views is not None:
        views = image_views(recipe.image_views, recipe.train.seed, model, validation, recipe.train.batch_size)
        yield ImageViewValidation(dict(views.encoded), recipe, model, validation, processes)
    if validation is not None and recipe.text_views is not None:
        yield TextViewValidation(recipe, model, validation, processes)
    if labelled:
        yield LabelValidation(model, labelled[0], labelled[1] if len(labelled) > 1 else None, processes)


def merged_results(measurements: Sequence[Measurement], name: str) -> dict[str, Any]:
    """One result of all: the first one's, with the others' metrics, examples and maps.

    What the other ones were measured on stands in `data` under `views` and `labelled`.
    """
    if not measurements:
        return {"task": "train", "model": name, "data": {}, "metrics": {}, "settings": {}, "examples": []}
    first, *others = [measurement.result(name) for measurement in measurements]
    for other in others:
        first["metrics"] |= other["metrics"]
        first["examples"] += other["examples"]
        first.setdefault("map", other.get("map"))
        first["data"][{"probe": "labelled"}.get(other["task"], other["task"])] = other["data"]
    return first
