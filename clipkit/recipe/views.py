"""Views: the positives of an image or a text are other views of itself."""

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, PositiveFloat, PositiveInt, model_validator

from clipkit.catalogue import LOSSES, Need
from clipkit.recipe.loss import LossRecipe
from clipkit.recipe.policies import Policy, Shares, steps_of
from clipkit.recipe.section import Section


def _check_loss_of_views(loss: LossRecipe) -> LossRecipe:
    for name in loss.names:
        missing = LOSSES[name].needs - {Need.IDS, Need.SCALE, Need.ANOTHER_LOSS}
        if missing:
            needed = LOSSES[name].requirements
            raise ValueError(f"{name} needs {needed}, which views do not have; use ntxent, infonce or triplet")
    return loss


# Recipes written before 0.1 say picture.
_IMAGE = BeforeValidator(lambda value: "image" if value == "picture" else value)
LossOfViews = Annotated[LossRecipe, AfterValidator(_check_loss_of_views)]


class HeadRecipe(Section):
    """A projection head on the trunk's output, for the loss of the views alone (Chen et al. 2020, section 4.2).

    It is computed on the gathered features of the whole batch, so that BatchNorm sees all of it, whatever the
    processes and micro-batches.
    """

    layers: PositiveInt = 2
    """Linear maps; between them a normalisation and a ReLU."""
    width: PositiveInt | None = None
    """Of the layers between; the trunk's own where not given."""
    dim: PositiveInt = 128
    """Width of the features that the loss sees."""
    norm: Literal["layer", "batch"] = "layer"
    keep: bool = False
    """Whether the saved model has it, as `view_heads`."""


class ImageViewsRecipe(Section):
    """Views of images: augmented two times or more."""

    policies: list[Policy] = Field(default=["simclr", "simclr"], min_length=2)
    """One a view. With more than two the loss is the mean over all pairs of views."""
    safe: bool = False
    """No flips of images whose captions say left or right, no change of colour where they name one."""
    positives: Annotated[Literal["image", "caption"], _IMAGE] = "image"
    """image: the views of one image; caption: those of all images with an equal caption, or of one class."""
    loss: LossOfViews = LossRecipe(name="ntxent")
    temperature: PositiveFloat = 0.1
    """Fixed; for losses that heed a scale."""
    head: HeadRecipe | None = HeadRecipe()
    """null: the loss sees the tower's own features. With a head the tower's projection, where it has one, has no part
    in the views: captions beside them teach it."""

    @property
    def are_equal(self) -> bool:
        """Whether two views of an image are the same."""
        return sum(not steps_of(policy) for policy in self.policies) > 1


class TextViewsRecipe(Section):
    """Views of captions (Gao et al. 2021, SimCSE)."""

    policies: list[Literal["same", "crop", "paraphrase", "sibling"]] = Field(default=["same", "same"], min_length=2)
    """One a view. same: as it is (with model.text.dropout no two passes are); crop: some of its words, side by side;
    paraphrase: the data's column of that name; sibling: another caption of the image."""
    crop: Shares = (0.5, 0.9)
    """Share of the words that a crop keeps, lowest and highest."""
    positives: Annotated[Literal["caption", "image"], _IMAGE] = "caption"
    """caption: the views of one string; image: those of all captions of the image."""
    loss: LossOfViews = LossRecipe(name="infonce")
    temperature: PositiveFloat = 0.05
    head: HeadRecipe | None = None

    @property
    def are_equal(self) -> bool:
        """Whether two views of a caption are the same, dropout aside."""
        return any(self.policies.count(policy) > 1 for policy in ("same", "paraphrase"))


class ViewsRecipe(Section):
    """Which tower learns from views of its own inputs; both may."""

    image: ImageViewsRecipe | None = None
    text: TextViewsRecipe | None = None

    @model_validator(mode="after")
    def _of_something(self) -> Self:
        if self.image is None and self.text is None:
            raise ValueError(
                "names no tower; give image: {policies: [simclr, simclr]} or text: {policies: [same, same]}"
            )
        return self
