"""Recipe section `data`: training and validation data, augmentation and loading."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from annotated_types import MinLen
from pydantic import (
    AfterValidator,
    BeforeValidator,
    Discriminator,
    Field,
    Tag,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    field_validator,
    model_validator,
)

from clipkit.recipe.model import ModelRecipe
from clipkit.recipe.policies import Crop, Policy, Share, Step, steps_of
from clipkit.recipe.section import Section

_UNITS = {"MB": 10**6, "GB": 10**9, "TB": 10**12}


def _check_size(size: str) -> str:
    bytes_of(size)
    return size


def bytes_of(size: str) -> int:
    """Convert a size such as 20GB to bytes; the units are MB, GB and TB.

    Raises:
        ValueError: the size is not a number with a unit.

    >>> bytes_of("1.5GB")
    1500000000
    """
    number, unit = size[:-2].strip(), size[-2:].upper()
    try:
        return int(float(number) * _UNITS[unit])
    except (ValueError, KeyError, OverflowError):
        raise ValueError(f"{size!r} is not a size; give a number with the unit MB, GB or TB, e.g. 20GB") from None


def _check_score(score: float | str | None) -> float | str | None:
    fits = score is None or (-1 <= score <= 1 if isinstance(score, float) else _share_of(score) is not None)
    if not fits:
        raise ValueError(
            f"is {score!r}; give a cosine similarity between -1 and 1, e.g. 0.2, or a share of the captions, e.g. 10%"
        )
    return score


def _share_of(score: str) -> float | None:
    """Convert a percentage such as 10% to a share, here 0.1; return None for any other text.

    >>> _share_of("10%"), _share_of("10")
    (0.1, None)
    """
    try:
        share = float(score.removesuffix("%")) / 100
    except ValueError:
        return None
    return share if score.endswith("%") and 0 < share < 1 else None


class StoreRecipe(Section):
    """Settings for storing the outputs of frozen layers on disk, to avoid computing them in each epoch."""

    dtype: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Data type of stored outputs. auto: the type that the tower computes, or 16 bits if only these fit into `disk`."""
    disk: Annotated[str, AfterValidator(_check_size)] = "20GB"
    """Maximum total size of the stored files on this machine; the least recently used files are removed first."""


class HardNegativesRecipe(Section):
    """Settings of batches with groups of similar pairs, which serve as hard negatives.

    The model at the start of the run determines which pairs are similar.
    """

    group: int = Field(default=4, ge=2, le=64)
    """Maximum number of pairs in a group: a pair, and its hardest negatives that are not yet in another group."""
    margin: float = Field(default=0.02, ge=0, le=2)
    """Minimum difference between the cosine similarity of a pair and the similarities of its hard negatives. Images and
    captions that are more similar are probably false negatives, so they are not put into the same group."""


_SPELLINGS = {"labeled": "labelled", "labeled_test": "labelled_test"}


class Source(Section):
    """Data source with a weight, for runs with several sources."""

    source: str
    weight: float = Field(default=1.0, ge=1e-6, le=10_000)
    """Number of times that each image of the source is used per epoch; 0.5: in every other epoch."""


def _auto_or_policy(value: Any, policy: ValidatorFunctionWrapHandler) -> Any:
    return value if value == "auto" else policy(value)


def _source_alone(source: object) -> object:
    return {"source": source} if isinstance(source, str) else source


class DataRecipe(Section):
    """Settings of the training and validation data of a run."""

    train: Annotated[
        Annotated[str, Tag("one")]
        | Annotated[list[Annotated[Source, BeforeValidator(_source_alone)]], MinLen(1), Tag("several")],
        Discriminator(lambda value: "several" if isinstance(value, list | tuple) else "one"),
    ]
    """Source of images with captions. The objective `views` also accepts images without captions, e.g. a folder of
    images. A list mixes several sources with weights: [photos.csv, {source: hf:me/mine, weight: 3}]."""
    samples: int | None = Field(default=None, ge=1, le=10**12)
    """Number of pairs per epoch of a stream (shards at a URL, or hf:NAME?stream=true); at most the stream's length."""
    validation: str | float | None = None
    """Source of validation pairs, or the share of the training images that are used for validation instead of training,
    e.g. 0.1. The names of the images determine which images these are, so the order of the rows does not matter."""
    labelled: str | None = None
    """Labeled images for evaluation by k-nearest neighbors and a linear probe during training. Alias: `labeled`."""
    labelled_test: str | None = None
    """Labeled test images for the evaluations on `labelled`. null: one fifth of each class of `labelled`."""
    min_score: Annotated[float | str | None, AfterValidator(_check_score)] = None
    """Minimum cosine similarity of image and caption, e.g. 0.2, computed by the model at the start of the run. Captions
    with a lower similarity are left out, and so are images without a remaining caption. A percentage, e.g. 10%, leaves
    out the 10 % of the captions with the lowest similarities. null: all captions are used."""
    hard_negatives: HardNegativesRecipe | None = None
    """Put similar pairs into the same batch as hard negatives, e.g. {group: 4}. null: all batches are random."""
    captions: Literal["auto", "one", "all"] = "auto"
    """Captions of an image that are used per epoch. one: one caption, a different one in each epoch; all: every
    caption. auto: all if both towers are frozen, `model.start` is cca and captions are not made from labels; otherwise
    one."""
    augment: Annotated[Policy, WrapValidator(_auto_or_policy)] = "auto"
    """Augmentation of images for the objective `captions`. crop: a random resized crop; none: the model's evaluation
    preprocessing; or any other policy. auto: none if the image trunk is frozen, so that the outputs of the trunk are
    computed only once per image; otherwise crop."""
    crop_scale: tuple[Share, Share] = (0.8, 1.0)
    """Minimum and maximum share of the image area in a crop of `augment: crop`."""
    views: int | None = Field(default=None, ge=1, le=1000)
    """Number of augmented views of each image whose outputs are stored. Each epoch draws one of these views. The first
    blocks of the image tower must be frozen (`tune: last:N`, head or frozen). null: each epoch augments the images
    again."""
    mixup: float | None = Field(default=None, ge=1e-3, le=1e3)
    """FuseMix: mix the outputs of both frozen trunks for two pairs, λ · pair + (1 − λ) · other pair. The value is α in
    λ ~ Beta(α, α), e.g. 1.0. null: pairs are not mixed."""
    store: StoreRecipe | None = StoreRecipe()
    """Settings for storing the outputs of frozen layers, which are equal in each epoch. null: nothing is stored."""
    safe: bool = False
    """Do not flip or recolor images whose captions mention left/right or a color."""
    max_bad: float = Field(default=0.01, ge=0, le=1e12)
    """Maximum number of missing or unreadable images: a share if below 1, otherwise a count. Pairs with such an image
    are replaced by other pairs. The file bad_samples.jsonl lists the images."""
    max_pixels: int = Field(default=178_956_970, ge=1, le=10**10)
    """Maximum number of pixels (width × height) of an image. Larger images are treated as unreadable, because they
    could be malicious files that fill the memory."""
    workers: int = Field(default=4, ge=0, le=1024)
    """Number of processes that load images, for each training process; 0: the training process loads them."""

    @model_validator(mode="before")
    @classmethod
    def _american_spelling(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        return {_SPELLINGS.get(key, key): value for key, value in values.items()}

    @model_validator(mode="after")
    def _scale_is_a_range(self) -> Self:
        low, high = self.crop_scale
        if not low <= high <= 1:
            raise ValueError(
                f"crop_scale is {[low, high]}; give the minimum and the maximum share, both at most 1, e.g. [0.8, 1.0]"
            )
        if self.augment not in ("auto", "crop") and self._has_crop_scale:
            raise ValueError(
                "crop_scale applies only to data.augment: crop; remove crop_scale, and set scale in a step "
                "of data.augment, e.g. {name: crop, scale: [0.5, 1]}"
            )
        return self

    @model_validator(mode="after")
    def _groups_are_of_images(self) -> Self:
        several = len(self.sources) > 1 or self.sources[0].weight != 1
        if self.hard_negatives is not None and (self.captions == "all" or several):
            what = (
                "data.captions: all"
                if self.captions == "all"
                else "several sources in data.train, or a source with a weight"
            )
            raise ValueError(f"hard_negatives does not support {what}; remove one of the two")
        return self

    @model_validator(mode="after")
    def _views_are_stored(self) -> Self:
        if self.views is None:
            return self
        if self.store is None:
            raise ValueError(
                "views needs data.store, but data.store is null; remove the line data.store: null, or remove data.views"
            )
        if self.augment == "none":
            raise ValueError(
                f"views is {self.views}, but data.augment is none, so all views would be equal; remove one of the two"
            )
        return self

    @field_validator("validation", mode="before")
    @classmethod
    def _is_path_or_share(cls, value: object) -> object:
        share = isinstance(value, float) and 0 < value < 1
        if not (share or value is None or (isinstance(value, str) and value)):
            raise ValueError(f"is {value}; give a path, or a share of the training images, e.g. 0.1")
        return value

    @property
    def sources(self) -> list[Source]:
        """Sources of the training data with their weights; always a list, even for a single source."""
        return [Source(source=self.train)] if isinstance(self.train, str) else self.train

    @property
    def least_score(self) -> float | None:
        """Minimum cosine similarity of image and caption; None if `min_score` is null or a percentage."""
        return self.min_score if isinstance(self.min_score, float) else None

    @property
    def lowest_share(self) -> float | None:
        """Share of captions to leave out, those least similar to their images; None if `min_score` is no percentage."""
        return _share_of(self.min_score) if isinstance(self.min_score, str) else None

    @property
    def _has_crop_scale(self) -> bool:
        return self.crop_scale != type(self).model_fields["crop_scale"].default

    def policy(self, model: ModelRecipe) -> Policy:
        """Return the augmentation policy of training images; `auto` is replaced by the policy for the model."""
        if self.augment != "auto":
            return self.augment
        frozen = model.image.tune in ("frozen", "head") and self.views is None
        return "none" if frozen and not self._has_crop_scale else "crop"

    def augmentation(self, model: ModelRecipe) -> tuple[Step, ...]:
        """Return the augmentation steps of training images; with `augment: auto`, the model determines the steps."""
        policy = self.policy(model)
        return (Crop(scale=self.crop_scale),) if policy == "crop" else steps_of(policy)
