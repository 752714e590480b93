"""Class `Recipe`: all sections of a recipe, and checks that involve several sections."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BeforeValidator, Field, ValidationError, model_validator

from clipkit.catalogue import Need
from clipkit.errors import RecipeError, without_credentials
from clipkit.parsing import read_yaml
from clipkit.recipe.data import DataRecipe
from clipkit.recipe.loop import LABEL_METRICS, CheckpointRecipe, EvalRecipe, OptimRecipe, TrainRecipe
from clipkit.recipe.loss import CaptionLossRecipe
from clipkit.recipe.model import ModelRecipe
from clipkit.recipe.overrides import merged, parse_overrides
from clipkit.recipe.problems import first_problem
from clipkit.recipe.section import Section, Weight
from clipkit.recipe.terms import OBJECTIVES, Side, Term
from clipkit.recipe.translations import TranslationsRecipe
from clipkit.recipe.views import ViewsRecipe

SIDES: tuple[Side, ...] = ("image", "text")
_BY_START = ("min_score", "hard_negatives")
"""Keys of the section `data` for which the model at the start of the run compares images with captions."""


def _with_weights(objective: object) -> object:
    """Convert the name of a single objective to a mapping with weight 1; return other values unchanged."""
    weights = {objective: 1.0} if isinstance(objective, str) else objective
    if not isinstance(weights, dict) or not weights or not set(weights) <= set(OBJECTIVES):
        *names, last = OBJECTIVES
        offered = f"{', '.join(names)} or {last}, or several with weights, e.g. {{captions: 1, views: 1}}"
        raise ValueError(f"is {objective!r}; use {offered}")
    return weights


Objective = Annotated[dict[str, Weight], BeforeValidator(_with_weights)]


class Recipe(Section):
    """All settings that determine a run. The classes of the sections document the keys and defaults.

    Example:
        >>> recipe = Recipe.from_dict({"model": {"name": "me/clip"}, "data": {"train": "a.csv"}, "output": "runs/a"})
        >>> recipe.train.epochs, recipe.override({"train.epochs": 9}).train.epochs
        (5, 9)
    """

    model: ModelRecipe
    data: DataRecipe
    objective: Objective = Field(default={"captions": 1.0})
    """Training objective: captions, translations, views, or several with weights, e.g. {captions: 1, views: 1} (SLIP).
    """
    loss: CaptionLossRecipe = CaptionLossRecipe()
    """Loss of the objective `captions`. The loss of the objective `views` is set in the section `views`."""
    views: ViewsRecipe | None = None
    translations: TranslationsRecipe | None = None
    optim: OptimRecipe = OptimRecipe()
    train: TrainRecipe = TrainRecipe()
    checkpoint: CheckpointRecipe = CheckpointRecipe()
    eval: EvalRecipe = EvalRecipe()
    output: str
    """Run folder, to which all results are written."""

    @property
    def terms(self) -> list[Term]:
        """Terms of the training objective, in a fixed order."""
        return [term for name in sorted(self.objective) for term in OBJECTIVES[name].terms(self, self.objective[name])]

    @property
    def needs(self) -> frozenset[Need]:
        """Inputs that the objective needs in addition to the features."""
        return frozenset(need for term in self.terms for need in term.needs)

    @property
    def columns(self) -> dict[str, bool]:
        """The columns `images` and `captions` of the data; True for each that the objective reads."""
        reads = {column for term in self.terms for column in term.reads}
        return {"images": "images" in reads, "captions": "captions" in reads}

    @property
    def is_cross_modal(self) -> bool:
        """True if a term compares images with captions."""
        return any(term.is_cross_modal for term in self.terms)

    @property
    def start(self) -> Literal["random", "cca"]:
        """Initialization of new projections; `model.start: auto` is resolved to random or cca."""
        fits = all(term.closed_form for term in self.terms) and self.data.samples is None
        return "cca" if self.model.starts_with_cca and (fits or self.model.start == "cca") else "random"

    def captions(self, *, labeled: bool = False) -> Literal["one", "all"]:
        """Return whether an epoch uses `one` caption of each image or `all`.

        `data.captions: auto` selects `all` if `start` is cca, both trunks are frozen, and the captions are not prompts
        made from labels (`labeled`); otherwise, `one`.
        """
        if self.data.captions != "auto":
            return self.data.captions
        frozen = all(tower.tune in ("frozen", "head") for tower in (self.model.image, self.model.text))
        # If only the projections are trained from a closed-form start, one caption per image gives too few steps.
        return "all" if self.start == "cca" and frozen and not labeled else "one"

    @property
    def metrics(self) -> list[str]:
        """Metrics that can select the best weights; the first is the default."""
        offered = [metric for term in self.terms for metric in term.metrics if self.data.validation is not None]
        return list(dict.fromkeys(offered)) + list(LABEL_METRICS) * (self.data.labelled is not None)

    @property
    def metric(self) -> str | None:
        """Metric that selects the best weights; None if there is no evaluation."""
        return next(iter(self.metrics), None) if self.eval.metric == "auto" else self.eval.metric

    @model_validator(mode="after")
    def _terms_fit_the_model(self) -> Self:
        model = self.model
        for term in self.terms:
            for side in term.towers:
                if not model.has(side):
                    raise ValueError(
                        f"objective {term.name} needs the {side} tower; set model.{side}.name, or model.name (a "
                        "whole model)"
                    )
        for side in SIDES:
            users = [term for term in self.terms if side in term.towers]
            tune = (model.image if side == "image" else model.text).tune
            keeping = [term.name for term in self.terms if side in term.frozen]
            if not users and keeping and model.name is not None and tune != "frozen":
                raise ValueError(
                    f"objective {keeping[0]} does not train the {side} tower, but model.{side}.tune is {tune}; set "
                    f"model.{side}.tune: frozen"
                )
            if not users and model.name is None and model.has(side):
                raise ValueError(
                    f"model.{side} is a new tower, but no objective trains it; remove model.{side}, or set objective: "
                    "captions"
                )
            if users and all(side in term.heads for term in users) and model.embed_dim:
                raise ValueError(
                    f"model.embed_dim adds a projection, but with views.{side}.head no loss trains this "
                    f"projection; remove model.embed_dim, or set views.{side}.head: null"
                )
        return self

    @model_validator(mode="after")
    def _closed_form_applies(self) -> Self:
        model = self.model
        requested = {
            "model.start: cca": model.start == "cca",
            "model.projection: residual": model.projection == "residual",
            "model.image.layers: auto": model.image.layers == "auto",
            "model.text.layers: auto": model.text.layers == "auto",
        }
        given = " and ".join(key for key, is_set in requested.items() if is_set)
        if given and model.starts_with_cca:
            if other := [term.name for term in self.terms if not term.closed_form]:
                raise ValueError(f"{given} cannot be combined with the objective {other[0]}; remove {given}")
            if self.data.samples is not None:
                raise ValueError(f"{given} cannot be combined with a stream (data.samples); remove {given}")
        if self.model.dropout and self.start != "cca":
            raise ValueError(
                "model.dropout needs model.start: cca, which supports only objective: captions without a stream "
                "(data.samples); remove model.dropout"
            )
        return self

    @model_validator(mode="after")
    def _keys_apply(self) -> Self:
        used = [key for name in self.objective for key in OBJECTIVES[name].keys]
        for name, row in OBJECTIVES.items():
            changed = (given for key in row.keys for given in _changed(self, key))
            given = next((given for given in changed if not any(_is_in(given, key) for key in used)), None)
            if given is not None:
                raise ValueError(
                    f"{given} applies only to the objective {name}, which this recipe does not have; "
                    f"remove {given}, or set objective: {{{next(iter(self.objective))}: 1, {name}: 1}}"
                )
        return self

    @model_validator(mode="after")
    def _stored_outputs_can_be_mixed(self) -> Self:
        """Raise ValueError if the recipe has an option that `data.mixup` does not support."""
        if self.data.mixup is None:
            return self
        tuned = {f"model.{side}.tune": getattr(self.model, side).tune for side in SIDES}
        conflicts = {
            **{f"{key}: {tune}": (tune not in ("frozen", "head"), f"set {key}: frozen") for key, tune in tuned.items()},
            "a stream (data.samples)": (self.data.samples is not None, "remove data.samples"),
            "data.views": (self.data.views is not None, "remove data.views"),
            "augmented images": (bool(self.data.augmentation(self.model)), "set data.augment: none"),
            "several objectives": (len(self.objective) > 1, "set objective: captions"),
            "a loss with a teacher": (Need.TEACHER in self.needs, "set another loss"),
        }
        for given, (is_set, advice) in conflicts.items():
            if is_set:
                raise ValueError(
                    f"data.mixup mixes stored outputs of two frozen trunks and does not support {given}; {advice}, "
                    "or remove data.mixup"
                )
        return self

    @model_validator(mode="after")
    def _trunks_can_be_sharded(self) -> Self:
        """Raise ValueError if the recipe has an option that `train.shard` does not support."""
        conflicts = {
            "model.start: cca": self.start == "cca",
            "data.views": self.data.views is not None,
            **{f"data.{key}": getattr(self.data, key) is not None for key in _BY_START},
            "train.compile": self.train.compile,
        }
        for key in (key for key, is_set in conflicts.items() if is_set and self.train.shard):
            instead = "set model.start: random" if key == "model.start: cca" else f"remove {key}"
            raise ValueError(f"train.shard does not support {key}; {instead}, or set train.shard: false")
        return self

    @model_validator(mode="after")
    def _there_is_something_to_measure(self) -> Self:
        data = self.data
        if data.labelled is not None and not self.model.has("image"):
            raise ValueError("data.labelled has images, but the model has no image tower; remove data.labelled")
        if data.labelled is None and data.labelled_test is not None:
            raise ValueError(
                "data.labelled_test is set without data.labelled, the labeled training images; set both, or "
                "remove data.labelled_test"
            )
        if self.eval.interpolate and (self.model.name is None or not self.metrics):
            raise ValueError(
                "eval.interpolate needs model.name, the whole model that training starts from, and "
                "data.validation, to choose the weights; set both, or remove eval.interpolate"
            )
        for key in _BY_START:
            if getattr(data, key) is not None and self.model.name is None:
                raise ValueError(
                    f"data.{key} needs model.name, a whole model that can compare images with captions before "
                    f"training; set model.name, or remove data.{key}"
                )
        if self.eval.max_forgetting is not None and not (self.eval.interpolate and self.eval.retention):
            raise ValueError(
                "eval.max_forgetting needs eval.interpolate and eval.retention; set both, or remove eval.max_forgetting"
            )
        if self.eval.patience is not None and not self.metrics:
            raise ValueError(
                "eval.patience needs evaluations during training, but there are none; set data.validation, "
                "or remove eval.patience"
            )
        if self.eval.metric != "auto" and self.metrics and self.eval.metric not in self.metrics:
            raise ValueError(
                f"eval.metric {self.eval.metric} is not available with this recipe; choose one of "
                f"{', '.join(self.metrics)}"
            )
        return self

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], source: str = "recipe") -> Self:
        """Build a recipe from a dict of its sections, and validate it.

        Raises:
            RecipeError: a key or a value is invalid. For an unknown key, the message contains the most similar key.
        """
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            raise RecipeError(f"{source}: {first_problem(cls, error)}") from None

    @classmethod
    def from_yaml(cls, path: str | Path, overrides: Sequence[str] | Mapping[str, Any] = ()) -> Self:
        """Read a recipe from a YAML file, apply overrides (`key.sub=value` or a dict), and validate the recipe."""
        path = Path(path)
        try:
            values = read_yaml(path)
        except FileNotFoundError:
            raise RecipeError(f"{path}: file not found; give the path of a recipe (a YAML file)") from None
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(f"{path}: cannot be read ({error}); give the path of a recipe (a YAML file)") from None
        except ValueError as error:
            raise RecipeError(f"{path}: is not valid YAML ({error}); fix the file") from None
        if not isinstance(values, dict):
            raise RecipeError(f"{path}: is not a recipe; write a mapping of sections (model, data, train, …)")
        changes = overrides if isinstance(overrides, Mapping) else parse_overrides(overrides, cls)
        return cls.from_dict(merged(values, changes), source=str(path))

    def override(self, changes: Mapping[str, Any]) -> Self:
        """Return a new recipe with overrides such as `{"optim.lr": 1e-5}` applied."""
        return type(self).from_dict(merged(self.model_dump(mode="json"), changes))

    def without_credentials(self) -> Self:
        """Return the recipe without user names and passwords in its URLs, e.g. to save the recipe in a run folder."""
        return type(self).from_dict(_without_credentials(self.model_dump(mode="json")))

    def to_yaml(self) -> str:
        """Return the complete recipe, including all defaults, as YAML."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _without_credentials(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_credentials(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_without_credentials(part) for part in value]
    return without_credentials(value) if isinstance(value, str) else value


def _is_in(key: str, section: str) -> bool:
    """Return True if a key is `section` itself or a key below it."""
    return key == section or key.startswith(f"{section}.")


def _changed(section: Section, key: str) -> Iterator[str]:
    """Yield the keys at or below `key` whose values differ from their defaults."""
    name, _, rest = key.partition(".")
    value, default = getattr(section, name), type(section).model_fields[name].default
    if not rest and not isinstance(default, Section):
        # augment: crop counts as a default, because earlier versions wrote it into the recipe of every run.
        if value != default and not (name == "augment" and value == "crop"):
            yield name
        return
    for sub in [rest] if rest else type(value).model_fields:
        yield from (f"{name}.{changed}" for changed in _changed(value, sub))
