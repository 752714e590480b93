"""Terms of a recipe's objective, each with its data, metrics and trained towers.

To add an objective, add a row to `OBJECTIVES`, and a file with the name of its term to
`clipkit/training/objectives`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

from clipkit.catalogue import Need
from clipkit.recipe.data import DataRecipe
from clipkit.recipe.loop import CAPTION_METRICS, view_metrics
from clipkit.recipe.loss import LossRecipe, LossTerm
from clipkit.recipe.model import ModelRecipe
from clipkit.recipe.policies import Step, steps_of
from clipkit.recipe.translations import TranslationsRecipe
from clipkit.recipe.views import HeadRecipe, ImageViewsRecipe, TextViewsRecipe, ViewsRecipe

Side = Literal["image", "text"]


class Sections(Protocol):
    """Sections of a recipe from which the terms of its objective are built."""

    @property
    def model(self) -> ModelRecipe: ...
    @property
    def data(self) -> DataRecipe: ...
    @property
    def loss(self) -> LossRecipe: ...
    @property
    def views(self) -> ViewsRecipe | None: ...
    @property
    def translations(self) -> TranslationsRecipe | None: ...


@dataclass(frozen=True, kw_only=True)
class Term:
    """Term of a training objective, e.g. captions or image views."""

    name: str
    """Name of the file in `clipkit/training/objectives` that implements the term."""
    weight: float
    towers: tuple[Side, ...]
    """Towers whose features the term compares."""
    reads: frozenset[Literal["images", "captions"]]
    """Columns that the data must have."""
    needs: frozenset[Need] = frozenset()
    """Inputs in addition to the features: the model's scale or bias, hard negative captions, a teacher."""
    losses: tuple[LossTerm, ...] = ()
    """Losses that the recipe selects for this term."""
    metrics: tuple[str, ...] = ()
    """Metrics that can select the best weights, the default first."""
    heads: Mapping[Side, HeadRecipe] = field(default_factory=dict)
    """Projection head between the trunk and the loss, for each tower that has one. Without a head, the loss uses the
    features of the tower."""
    augmentation: tuple[Step, ...] = ()
    """Augmentation of the images of this term, for the report."""
    safe: bool = False
    """Do not flip or recolor images whose captions mention left/right or a color."""
    fewest_samples: int = 1
    """Minimum number of validation samples that the metrics need."""
    not_streamed: tuple[str, ...] = ()
    """Recipe keys that the term uses but that do not work with streamed data."""
    closed_form: bool = False
    """True if projections can be computed in closed form before the term trains them (`model.start: cca`). The term
    must compare `image_features` with `text_features`."""
    frozen: tuple[Side, ...] = ()
    """Towers of a whole model that must be frozen, because the term leaves their features unchanged."""

    @property
    def is_cross_modal(self) -> bool:
        """True if the term compares images with captions, with the logit scale of the model."""
        return self.towers == ("image", "text")

    @property
    def teachers(self) -> list[str]:
        """Names of the teachers: models whose features are targets of the losses."""
        return [loss.teacher for loss in self.losses if loss.teacher is not None]

    @property
    def kept_heads(self) -> list[Side]:
        """Towers (image, text) whose projection head is saved with the model."""
        return [side for side, head in self.heads.items() if head.keep]


@dataclass(frozen=True, kw_only=True)
class ImageViewsTerm(Term):
    """Term whose positive pairs are two views of the same image."""

    views: ImageViewsRecipe


@dataclass(frozen=True, kw_only=True)
class TextViewsTerm(Term):
    """Term whose positive pairs are two views of the same caption."""

    views: TextViewsRecipe


@dataclass(frozen=True, kw_only=True)
class TranslationsTerm(Term):
    """Term that trains the text tower to match a teacher's caption features.

    The features of a caption and of its translation should both equal the teacher's features of the caption.
    """

    teacher: str

    @property
    def teachers(self) -> list[str]:
        """Name of the teacher, whose text features are the target, as a list with one element."""
        return [self.teacher]


def _captions(sections: Sections, weight: float) -> list[Term]:
    needs = sections.loss.needs
    refused = {"loss.teacher": Need.TEACHER, "negative captions": Need.NEGATIVES}
    term = Term(
        name="captions",
        weight=weight,
        towers=("image", "text"),
        reads=frozenset({"images", "captions"}),
        needs=needs,
        losses=tuple(sections.loss.terms),
        metrics=CAPTION_METRICS,
        augmentation=sections.data.augmentation(sections.model),
        safe=sections.data.safe,
        not_streamed=tuple(what for what, need in refused.items() if need in needs),
        closed_form=True,
    )
    return [term]


def _views(sections: Sections, weight: float) -> list[Term]:
    views = sections.views
    if views is None:
        raise ValueError(
            "objective contains views, but the section views is missing; add views: {image: {policies: [simclr, "
            "simclr]}}"
        )
    terms: list[Term] = []
    if views.image is not None:
        terms.append(_image_views(views.image, weight))
    if views.text is not None:
        terms.append(_text_views(views.text, weight, sections.model.text.dropout))
    return terms


def _image_views(views: ImageViewsRecipe, weight: float) -> ImageViewsTerm:
    named = views.safe or views.positives == "caption"
    return ImageViewsTerm(
        name="image_views",
        weight=weight,
        towers=("image",),
        reads=frozenset({"images", "captions"} if named else {"images"}),
        needs=views.loss.needs - {Need.SCALE},  # the temperature of views is a constant
        losses=tuple(views.loss.terms),
        metrics=view_metrics("image"),
        heads={} if views.head is None else {"image": views.head},
        augmentation=steps_of(views.policies[0]),
        safe=views.safe,
        fewest_samples=2,
        not_streamed=("views.image.safe or views.image.positives",) * named,
        views=views,
    )


def _text_views(views: TextViewsRecipe, weight: float, dropout: float) -> TextViewsTerm:
    if dropout == 0 and views.are_equal:
        raise ValueError(
            f"views.text.policies {views.policies} gives two equal views, because model.text.dropout is 0; "
            "set model.text.dropout, e.g. 0.1, or use the policy crop or sibling"
        )
    return TextViewsTerm(
        name="text_views",
        weight=weight,
        towers=("text",),
        reads=frozenset({"captions"}),
        needs=views.loss.needs - {Need.SCALE},
        losses=tuple(views.loss.terms),
        metrics=view_metrics("text"),
        heads={} if views.head is None else {"text": views.head},
        fewest_samples=2,
        not_streamed=("views.text",),
        views=views,
    )


def _translations(sections: Sections, weight: float) -> list[Term]:
    if sections.translations is None:
        raise ValueError(
            "objective contains translations, but translations.teacher is missing; add translations: {teacher: MODEL}"
        )
    term = TranslationsTerm(
        name="translations",
        weight=weight,
        towers=("text",),
        reads=frozenset({"captions"}),
        metrics=view_metrics("text"),
        fewest_samples=2,
        not_streamed=("translations.teacher",),
        frozen=("image",),
        teacher=sections.translations.teacher,
    )
    return [term]


@dataclass(frozen=True)
class ObjectiveRow:
    """Definition of a training objective, which recipes select by name: `objective: {NAME: weight}`."""

    terms: Callable[[Sections, float], list[Term]]
    """Function that takes the recipe sections and the weight, and returns the terms. It raises ValueError if the
    sections do not fit the objective."""
    keys: tuple[str, ...] = ()
    """Recipe keys that only this objective uses. If several rows list a key, only these objectives use the key. A
    section, e.g. loss, stands for all its keys."""


OBJECTIVES = {
    "captions": ObjectiveRow(
        _captions,
        ("loss", "data.augment", "data.crop_scale", "data.safe", "data.min_score", "data.hard_negatives", "data.mixup"),
    ),
    "translations": ObjectiveRow(_translations, ("translations",)),
    "views": ObjectiveRow(_views, ("views",)),
}
