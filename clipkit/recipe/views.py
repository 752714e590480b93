"""Views: the positives of an image or a text are other views of it."""

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from clipkit.catalogue import LOSSES, Need
from clipkit.recipe.loss import LossRecipe
from clipkit.recipe.policies import Policy, Shares, steps_of
from clipkit.recipe.section import Section, Temperature, Width


def _check_loss_of_views(loss: LossRecipe) -> LossRecipe:
    for name in loss.names:
        if LOSSES[name].needs - {Need.IDS, Need.SCALE, Need.ANOTHER_LOSS}:
            raise ValueError(
                f"{name} needs {LOSSES[name].requirements}, which views do not have; use ntxent, infonce or triplet"
            )
    return loss


# Recipes of versions before 0.1 say picture.
_IMAGE = BeforeValidator(lambda value: "image" if value == "picture" else value)
LossOfViews = Annotated[LossRecipe, AfterValidator(_check_loss_of_views)]


class HeadRecipe(Section):
    """A projection head between the trunk and the loss of the views (Chen et al. 2020, section 4.2).

    It runs on the gathered features of the whole batch, so that BatchNorm sees all of it, however many processes and
    micro-batches there are.
    """

    layers: int = Field(default=2, ge=1, le=100)
    """Linear layers; between them a normalization and a ReLU."""
    width: Width | None = None
    """Width of the hidden layers. null: width of the trunk."""
    dim: Width = 128
    """Width of the features that the loss sees."""
    norm: Literal["layer", "batch"] = "layer"
    keep: bool = False
    """Save the head with the model, as `view_heads`."""


class ImageViewsRecipe(Section):
    """Two or more augmented views of each image."""

    policies: list[Policy] = Field(default=["simclr", "simclr"], min_length=2)
    """One policy per view. With more than two views the loss is the mean over all pairs of views."""
    safe: bool = False
    """Do not flip or recolor images whose captions mention left/right or a color."""
    positives: Annotated[Literal["image", "caption"], _IMAGE] = "image"
    """image: the views of one image; caption: those of all images with the same caption, or of one class."""
    loss: LossOfViews = LossRecipe(name="ntxent")
    temperature: Temperature = 0.1
    """Fixed; for losses that use a scale."""
    head: HeadRecipe | None = HeadRecipe()
    """null: the loss sees the tower's own features. With a head, the loss of the views does not train the tower's
    projection; captions beside the views do."""

    @model_validator(mode="after")
    def _views_differ(self) -> Self:
        if sum(not steps_of(policy) for policy in self.policies) > 1:
            raise ValueError(
                "policies has none more than once, so that two views are equal; use augmentations, e.g. [moco, moco]"
            )
        return self


class TextViewsRecipe(Section):
    """Two or more views of each caption (Gao et al. 2021, SimCSE)."""

    policies: list[Literal["same", "crop", "paraphrase", "sibling"]] = Field(default=["same", "same"], min_length=2)
    """One policy per view. same: the caption as it is (model.text.dropout makes two passes differ); crop: some
    consecutive words; paraphrase: the data's column of that name; sibling: another caption of the image."""
    crop: Shares = (0.5, 0.9)
    """Share of the words that a crop keeps, lowest and highest."""
    positives: Annotated[Literal["caption", "image"], _IMAGE] = "caption"
    """caption: the views of one string; image: those of all captions of the image."""
    loss: LossOfViews = LossRecipe(name="infonce")
    temperature: Temperature = 0.05
    head: HeadRecipe | None = None

    @property
    def are_equal(self) -> bool:
        """True if two views of a caption are equal without dropout."""
        return any(self.policies.count(policy) > 1 for policy in ("same", "paraphrase"))


class ViewsRecipe(Section):
    """Views of images, of captions, or of both."""

    image: ImageViewsRecipe | None = None
    text: TextViewsRecipe | None = None

    @model_validator(mode="after")
    def _names_a_tower(self) -> Self:
        if self.image is None and self.text is None:
            raise ValueError(
                "names no tower; add image: {policies: [simclr, simclr]} or text: {policies: [same, same]}"
            )
        return self
