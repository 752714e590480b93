"""The data of a recipe."""

from typing import Annotated, Literal, Self

from annotated_types import MinLen
from pydantic import BeforeValidator, Discriminator, Field, PositiveFloat, Tag, field_validator, model_validator

from clipkit.recipe.policies import Crop, Policy, Step, steps_of
from clipkit.recipe.section import Section


class Source(Section):
    """One of several places that pairs come from."""

    source: str
    weight: PositiveFloat = 1.0
    """How often each of its images comes in an epoch: 3: three times; 0.5: every other epoch."""


def _source_alone(source: object) -> object:
    return {"source": source} if isinstance(source, str) else source


class DataRecipe(Section):
    """Where the pairs come from."""

    train: Annotated[
        Annotated[str, Tag("one")]
        | Annotated[list[Annotated[Source, BeforeValidator(_source_alone)]], MinLen(1), Tag("several")],
        Discriminator(lambda value: "several" if isinstance(value, list | tuple) else "one"),
    ]
    """Captions; for views alone also images without, as a folder of images or of class folders. Several sources as
    a list, each with its weight: [photos.csv, {source: hf:me/mine, weight: 3}]."""
    samples: int | None = Field(default=None, ge=1)
    """Pairs of an epoch of a stream (shards at an address, or hf:NAME?stream=true), whose length nobody knows: at most
    as many as it has."""
    validation: str | float | None = None
    """Pairs to measure on; or a share of the training images that is kept for that, as 0.1: which ones depends on
    their names alone, so the same ones whatever the order of the rows."""
    labelled: str | None = None
    """Images with classes, for nearest neighbours and a linear probe while training."""
    labelled_test: str | None = None
    """What these are measured on; a fifth of each class of `labelled` where not given."""
    captions: Literal["one", "all"] = "one"
    """one: one caption of each image an epoch, another one each time; all: every caption each epoch."""
    augment: Policy = "crop"
    """Of the images beside captions. crop: a random resized crop; none: the model's own evaluation preprocessing; or
    any other policy."""
    crop_scale: tuple[PositiveFloat, PositiveFloat] = (0.8, 1.0)
    """Share of the image's area that `augment: crop` keeps, lowest and highest."""
    safe: bool = False
    """No flips of images whose captions say left or right, no change of colour where they name one."""
    max_bad: float = Field(default=0.01, ge=0)
    """Images that may turn out to be missing or broken before the run stops: a share of them where below 1, else a
    count. Another pair stands in for each, and bad_samples.jsonl lists them."""
    max_pixels: int = Field(default=178_956_970, ge=1)
    """Width times height from which an image counts as broken, because it may be made to fill the memory."""
    workers: int = Field(default=4, ge=0)
    """Loader processes on each process of the run; 0 loads in the run itself."""

    @model_validator(mode="after")
    def _scale_is_a_range(self) -> Self:
        low, high = self.crop_scale
        if not low <= high <= 1:
            raise ValueError(f"crop_scale is {[low, high]}: it must rise and end at most at 1, as [0.8, 1.0]")
        if self.augment != "crop" and self.crop_scale != type(self).model_fields["crop_scale"].default:
            raise ValueError(
                "crop_scale is for augment: crop; give the scale to the step, as {name: crop, scale: [0.5, 1]}"
            )
        return self

    @field_validator("validation", mode="before")
    @classmethod
    def _is_path_or_share(cls, value: object) -> object:
        share = isinstance(value, float) and 0 < value < 1
        if not (share or value is None or (isinstance(value, str) and value)):
            raise ValueError(f"validation is {value}: give a path, or a share of the training images, as 0.1")
        return value

    @property
    def sources(self) -> list[Source]:
        """Those of `train`."""
        return [Source(source=self.train)] if isinstance(self.train, str) else self.train

    @property
    def augmentation(self) -> tuple[Step, ...]:
        """The steps of the images beside captions."""
        if self.augment == "crop":
            return (Crop(scale=self.crop_scale),)
        return steps_of(self.augment)
