"""The loss of a recipe."""

import difflib
from collections.abc import Sequence
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Discriminator, Field, Tag, model_validator

from clipkit import catalogue
from clipkit.recipe.section import Section


def _check_loss(name: str) -> str:
    known = catalogue.losses()
    if name not in known:
        near = difflib.get_close_matches(name, known, 1, 0.5)
        advice = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
        raise ValueError(f"{name!r} is no loss; {advice}")
    return name


LossName = Annotated[str, AfterValidator(_check_loss)]


def _one_or_several(value: object) -> str:
    return "several" if isinstance(value, list) else "one"


class LossOptions(Section):
    """What losses can be told; `clipkit train --help` says which heeds what."""

    duplicates: Literal["positive", "ignore", "negative"] = "positive"
    """What another pair of the batch with the same image or the same caption is."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Share of each target that is spread over the whole batch."""
    margin: float | None = Field(default=None, gt=0, le=2)
    """In cosine or euclidean distance; the loss's own (triplet 0.2, contrastive 0.5) where this is not given."""
    mining: Literal["all", "semihard", "hard"] = "hard"
    """Which triplets count."""
    distance: Literal["cosine", "euclidean"] = "cosine"
    teacher: str | None = Field(default=None, min_length=1)
    """The model to learn similarities from, named as any model."""

    def unheeded(self, names: Sequence[str]) -> list[str]:
        """Options that were given and that none of these losses heeds."""
        heeded = {option for name in names for option in catalogue.losses()[name].options}
        own = LossOptions.model_fields
        return [key for key in own if key not in heeded and getattr(self, key) != own[key].default]


class LossTerm(LossOptions):
    """One loss of a sum."""

    name: LossName
    weight: float = Field(default=1.0, gt=0, allow_inf_nan=False)


class LossRecipe(LossOptions):
    """The objective: a loss, or a list of losses with their weights and options, which are added up."""

    name: Annotated[
        Annotated[LossName, Tag("one")] | Annotated[list[LossTerm], Tag("several")], Discriminator(_one_or_several)
    ] = "infonce"

    @property
    def terms(self) -> list[LossTerm]:
        """The losses, one or several."""
        if isinstance(self.name, list):
            return self.name
        return [LossTerm(name=self.name, **{key: getattr(self, key) for key in LossOptions.model_fields})]

    @property
    def names(self) -> list[str]:
        """Of the losses."""
        return [term.name for term in self.terms]

    @model_validator(mode="after")
    def _options_are_heeded(self) -> Self:
        if isinstance(self.name, list):
            if not self.name:
                raise ValueError("name is an empty list; name at least one loss")
            if self.unheeded([]):
                raise ValueError(f"{self.unheeded([])[0]} stands beside a list of losses; give it to one of them")
        if all(catalogue.losses()[name].fields["needs"].startswith("another loss") for name in self.names):
            raise ValueError(
                f"{' + '.join(self.names)} is least where all features are the same; put it in a list with another "
                "loss, as infonce"
            )
        for term in self.terms:
            if term.unheeded([term.name]):
                raise ValueError(
                    f"{term.unheeded([term.name])[0]} is no option of {term.name}, which heeds "
                    f"{', '.join(catalogue.losses()[term.name].options) or 'none'}"
                )
            if "teacher" in catalogue.losses()[term.name].options and term.teacher is None:
                raise ValueError(f"{term.name} needs a teacher; name a model as teacher")
        return self
