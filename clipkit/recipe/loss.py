"""Recipe section `loss`: one loss, or a weighted sum of losses, with options."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag, model_validator

from clipkit.catalogue import LOSSES, Need
from clipkit.closest import closest
from clipkit.recipe.section import Section, Weight


def _check_loss(name: str) -> str:
    if name not in LOSSES:
        raise ValueError(f"{name!r} is not a loss; {closest(name, LOSSES)}")
    return name


LossName = Annotated[str, AfterValidator(_check_loss)]


def _one_or_several(value: object) -> str:
    return "several" if isinstance(value, list) else "one"


class LossOptions(Section):
    """Options of losses; `clipkit train --help` lists the options of each loss."""

    duplicates: Literal["positive", "ignore", "negative"] = "positive"
    """Treatment of other pairs in the batch with the same image or the same caption: as positives, as negatives, or as
    neither (ignore)."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Share of the target probability that is distributed evenly over the whole batch, instead of the positives."""
    margin: float | None = Field(default=None, gt=0, le=2)
    """Margin, in units of `distance`. null: the default of the loss (triplet 0.2, contrastive 0.5)."""
    mining: Literal["all", "semihard", "hard"] = "hard"
    """Triplets over which the loss is averaged: those with all, semi-hard or hardest negatives."""
    distance: Literal["cosine", "euclidean"] = "cosine"
    teacher: str | None = Field(default=None, min_length=1)
    """Teacher model, whose similarities are the target; any value that model.name accepts."""

    def unused_options(self, names: Sequence[str]) -> list[str]:
        """Return the options that differ from their defaults but are used by none of the named losses."""
        used = {option for name in names for option in LOSSES[name].options}
        fields = LossOptions.model_fields
        return [key for key in fields if key not in used and getattr(self, key) != fields[key].default]


class LossTerm(LossOptions):
    """Loss with a weight, as a part of a weighted sum of losses."""

    name: LossName
    weight: Weight = 1.0


class LossRecipe(LossOptions):
    """Settings of the loss: one loss with options, or a weighted sum of several losses."""

    name: Annotated[
        Annotated[LossName, Tag("one")] | Annotated[list[LossTerm], Tag("several")], Discriminator(_one_or_several)
    ] = "infonce"

    @property
    def terms(self) -> list[LossTerm]:
        """Losses with their options and weights; always a list, even for a single loss."""
        if isinstance(self.name, list):
            return self.name
        return [LossTerm(name=self.name, **{key: getattr(self, key) for key in LossOptions.model_fields})]

    @property
    def names(self) -> list[str]:
        """Names of the losses."""
        return [term.name for term in self.terms]

    @property
    def needs(self) -> frozenset[Need]:
        """Inputs that the losses need in addition to the features, e.g. the logit scale."""
        return frozenset(need for name in self.names for need in LOSSES[name].needs)

    @model_validator(mode="after")
    def _options_apply(self) -> Self:
        if isinstance(self.name, list):
            if not self.name:
                raise ValueError("name is an empty list; add at least one loss")
            if unused := self.unused_options([]):
                raise ValueError(
                    f"{unused[0]} applies to a single loss, but the key 'name' has a list of losses; move "
                    f"{unused[0]} into an entry of the list"
                )
        if all(Need.ANOTHER_LOSS in LOSSES[name].needs for name in self.names):
            raise ValueError(
                f"name: {' + '.join(self.names)} alone would make all features equal; combine this loss with "
                f"another loss, e.g. [{{name: infonce}}, {{name: {self.names[0]}}}]"
            )
        for term in self.terms:
            options = LOSSES[term.name].options
            if unused := term.unused_options([term.name]):
                raise ValueError(
                    f"{unused[0]} does not apply to the loss {term.name}, whose options are "
                    f"{', '.join(options) or 'none'}; remove {unused[0]}"
                )
            if Need.TEACHER in LOSSES[term.name].needs and term.teacher is None:
                raise ValueError(f"name: {term.name} needs a teacher; add the key teacher with the name of a model")
        return self


def _fixed(value: Any, low: float, high: float) -> Any:
    """Check and return a value of logit_scale or logit_bias: train, freeze, or a number from `low` to `high`.

    Raises:
        ValueError: the value is invalid.
    """
    if value in ("train", "freeze"):
        return value
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    except (TypeError, ValueError):
        raise ValueError(f"is {value!r}; use train, freeze or a number") from None
    if not low <= number <= high:
        raise ValueError(f"is {number:g}; use train, freeze or a number from {low:g} to {high:g}")
    return number


Fixed = float | Literal["train", "freeze"]
_Scale = Annotated[Fixed, BeforeValidator(partial(_fixed, low=1e-3, high=1e3))]
_Bias = Annotated[Fixed, BeforeValidator(partial(_fixed, low=-1e3, high=1e3))]


class CaptionLossRecipe(LossRecipe):
    """Settings of the loss between images and captions, and of the logit scale and bias."""

    logit_scale: _Scale = "train"
    """Factor exp(logit_scale) by which the cosine similarities are multiplied. train: train the factor; freeze: keep
    the value of the model; a number: use this value, e.g. 100, without training."""
    logit_bias: _Bias = "train"
    """Bias that is added to the scaled cosine similarities, for the sigmoid loss. train: train the bias; freeze: keep
    the value of the model; a number: use this value, without training."""

    @model_validator(mode="after")
    def _scale_and_bias_apply(self) -> Self:
        for key, value, need in (
            ("logit_scale", self.logit_scale, Need.SCALE),
            ("logit_bias", self.logit_bias, Need.BIAS),
        ):
            if value != "train" and need not in self.needs:
                raise ValueError(
                    f"{key} is set, but the loss {' + '.join(self.names)} does not use {key}; remove loss.{key}"
                )
        return self
