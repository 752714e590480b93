"""The whole recipe."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Self

import yaml
from pydantic import BeforeValidator, Field, PositiveFloat, ValidationError, model_validator

from clipkit.errors import RecipeError
from clipkit.recipe.data import DataRecipe
from clipkit.recipe.loop import (
    CAPTION_METRICS,
    LABEL_METRICS,
    CheckpointRecipe,
    EvalRecipe,
    OptimRecipe,
    TrainRecipe,
    view_metrics,
)
from clipkit.recipe.loss import LossRecipe
from clipkit.recipe.model import ModelRecipe
from clipkit.recipe.overrides import merged, parse_overrides
from clipkit.recipe.problems import first_problem
from clipkit.recipe.section import Section
from clipkit.recipe.views import ImageViewsRecipe, TextViewsRecipe, ViewsRecipe


def _with_weights(objective: object) -> object:
    """A name alone as a sum of one."""
    weights = {objective: 1.0} if isinstance(objective, str) else objective
    known = ("captions", "views")
    if not isinstance(weights, dict) or not weights or not set(weights) <= set(known):
        raise ValueError(
            f"is {objective!r}; take {' or '.join(known)}, or several with their weights, as {{captions: 1, views: 1}}"
        )
    return weights


Objective = Annotated[dict[str, PositiveFloat], BeforeValidator(_with_weights)]


class Recipe(Section):
    """Everything that determines a run. Keys, defaults and meanings are the fields of the sections."""

    model: ModelRecipe
    data: DataRecipe
    objective: Objective = Field(default={"captions": 1.0})
    """captions, views, or both with their weights, as {captions: 1, views: 1} (SLIP)."""
    loss: LossRecipe = LossRecipe()
    """Of captions; views have their own."""
    views: ViewsRecipe | None = None
    optim: OptimRecipe = OptimRecipe()
    train: TrainRecipe = TrainRecipe()
    checkpoint: CheckpointRecipe = CheckpointRecipe()
    eval: EvalRecipe = EvalRecipe()
    output: str
    """The run folder."""

    @property
    def image_views(self) -> ImageViewsRecipe | None:
        """The views of images that are learned from."""
        return self.views.image if self.views is not None else None

    @property
    def text_views(self) -> TextViewsRecipe | None:
        """The views of captions that are learned from."""
        return self.views.text if self.views is not None else None

    @property
    def metrics(self) -> list[str]:
        """By which the best weights can be chosen, likeliest first."""
        found: list[str] = []
        if self.data.validation is not None:
            found += CAPTION_METRICS * ("captions" in self.objective)
            found += view_metrics("image") * (self.image_views is not None)
            found += view_metrics("text") * (self.text_views is not None)
        return found + list(LABEL_METRICS) * (self.data.labelled is not None)

    @property
    def metric(self) -> str | None:
        """By which the best weights are chosen; None where nothing is measured."""
        return next(iter(self.metrics), None) if self.eval.metric == "auto" else self.eval.metric

    @model_validator(mode="after")
    def _objective_has_what_it_needs(self) -> Self:
        model = self.model
        if "captions" in self.objective and not (model.has("image") and model.has("text")):
            raise ValueError(
                "model needs either name (a whole model) or both image.name and text.name (two towers) for captions; "
                "one tower learns from views: objective: views"
            )
        if "views" in self.objective and self.views is None:
            raise ValueError(
                "objective is views, of which the recipe says nothing; add views: {image: {policies: [simclr, simclr]}}"
            )
        if self.views is not None and "views" not in self.objective:
            raise ValueError("views stands beside an objective without it; take objective: {captions: 1, views: 1}")
        for tower, own in (("image", self.image_views), ("text", self.text_views)):
            if own is not None and not model.has(tower):
                article = "an" if tower == "image" else "a"
                raise ValueError(f"views.{tower} needs {article} {tower} tower; give model.{tower}.name")
            if own is None and "captions" not in self.objective and model.name is None and model.has(tower):
                raise ValueError(f"model.{tower} is a new tower that no objective sees; leave it out, or add captions")
            if own is not None and own.head is not None and "captions" not in self.objective and model.embed_dim:
                raise ValueError(
                    f"model.embed_dim asks for a projection, which nothing would teach beside views.{tower}.head; "
                    f"leave out embed_dim, or set views.{tower}.head: null"
                )
        if "captions" not in self.objective:
            for section, keys in (
                (self.data, ("augment", "crop_scale", "safe")),
                (self.loss, tuple(type(self.loss).model_fields)),
            ):
                for key in keys:
                    if getattr(section, key) != type(section).model_fields[key].default:
                        name = "data" if section is self.data else "loss"
                        raise ValueError(
                            f"{name}.{key} is of captions, which are no objective here; set it in views instead"
                        )
        if self.image_views is not None and self.image_views.are_equal:
            raise ValueError(
                "views.image.policies has none twice, so two views are equal; take augmentations, as [moco, moco]"
            )
        if self.text_views is not None and model.text.dropout == 0 and self.text_views.are_equal:
            raise ValueError(
                "views.text.policies has one twice that changes nothing, and without dropout its views are equal; set "
                "model.text.dropout, as 0.1, or take crop or sibling"
            )
        if self.data.labelled is not None and not model.has("image"):
            raise ValueError("data.labelled are images, and the model has no image tower; leave it out")
        if self.data.labelled is None and self.data.labelled_test is not None:
            raise ValueError("data.labelled_test stands alone; give data.labelled, to learn its classes from")
        if self.eval.interpolate and (self.model.name is None or not self.metrics):
            raise ValueError(
                "eval.interpolate measures weights between a whole model's and the tuned ones; give model.name, and "
                "data.validation to measure on, or leave it out"
            )
        if self.eval.patience is not None and not self.metrics:
            raise ValueError(
                "eval.patience waits for a better evaluation, and nothing is measured; give data.validation"
            )
        if self.eval.metric != "auto" and self.metrics and self.eval.metric not in self.metrics:
            raise ValueError(
                f"eval.metric {self.eval.metric} is not measured here; there are {', '.join(self.metrics)}"
            )
        return self

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], source: str = "recipe") -> Self:
        """Validate `values`; an error names the key, and the nearest real one where the key is unknown."""
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            raise RecipeError(f"{source}: {first_problem(cls, error)}") from None

    @classmethod
    def from_yaml(cls, path: str | Path, overrides: Sequence[str] = ()) -> Self:
        """Read a YAML file and apply `key.sub=value` overrides before anything is validated."""
        path = Path(path)
        try:
            values = yaml.safe_load(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise RecipeError(f"{path}: there is no such recipe; give the path of a YAML file") from None
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(f"{path}: cannot be read as a recipe ({error})") from None
        except yaml.YAMLError as error:
            raise RecipeError(f"{path}: is not valid YAML: {' '.join(str(error).split())}") from None
        if not isinstance(values, dict):
            raise RecipeError(f"{path}: a recipe is a mapping of sections (model, data, train, …); this is not one")
        return cls.from_dict(merged(values, parse_overrides(overrides)), source=str(path))

    def override(self, changes: Mapping[str, Any]) -> Self:
        """A new recipe with `{"optim.lr": 1e-5}` and the like applied."""
        return type(self).from_dict(merged(self.model_dump(mode="json"), changes))

    def to_yaml(self) -> str:
        """The complete recipe, every default written out."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
