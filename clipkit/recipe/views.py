"""Recipe section `views`: self-supervised objectives with two views of one image or text as positives.

The views of an image are augmentations; the views of a text are crops or other wordings.
"""

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


# Recipes of versions before 0.1 contain "picture" instead of "image".
_IMAGE = BeforeValidator(lambda value: "image" if value == "picture" else value)
LossOfViews = Annotated[LossRecipe, AfterValidator(_check_loss_of_views)]


class HeadRecipe(Section):
    """Settings of a projection head between the trunk and the loss of the views (Chen et al. 2020, section 4.2).

    A BatchNorm in the head uses the complete batch, i.e. the features of all processes and micro-batches.
    """

    layers: int = Field(default=2, ge=1, le=100)
    """Number of linear layers, with a normalization and a ReLU between them."""
    width: Width | None = None
    """Dimension of the hidden layers. null: the dimension of the trunk."""
    dim: Width = 128
    """Output dimension: the dimension of the features that the loss uses."""
    norm: Literal["layer", "batch"] = "layer"
    keep: bool = False
    """Save the head with the model, under the name `view_heads`."""


class ImageViewsRecipe(Section):
    """Settings of the objective `views` for images, with two or more augmented views of each image."""

    policies: list[Policy] = Field(default=["simclr", "simclr"], min_length=2)
    """One augmentation policy per view. With more than two views, the loss is the mean over all pairs of views."""
    safe: bool = False
    """Do not flip or recolor images whose captions mention left/right or a color."""
    positives: Annotated[Literal["image", "caption"], _IMAGE] = "image"
    """Positives of a view. image: the other views of the image; caption: the views of all images with the same caption
    or class."""
    loss: LossOfViews = LossRecipe(name="ntxent")
    temperature: Temperature = 0.1
    """Fixed temperature, for losses that use a scale."""
    head: HeadRecipe | None = HeadRecipe()
    """Projection head. null: the loss uses the features of the tower. With a head, only the objective `captions` trains
    the tower's projection."""

    @model_validator(mode="after")
    def _views_differ(self) -> Self:
        if sum(not steps_of(policy) for policy in self.policies) > 1:
            raise ValueError(
                "policies contains the policy none more than once, so two views are equal; use, for example, "
                "[moco, moco]"
            )
        return self


class TextViewsRecipe(Section):
    """Settings of the objective `views` for texts, with two or more views of each caption (Gao et al. 2021, SimCSE)."""

    policies: list[Literal["same", "crop", "paraphrase", "sibling"]] = Field(default=["same", "same"], min_length=2)
    """One policy per view. same: the unchanged caption (with model.text.dropout, the features of two views differ);
    crop: some consecutive words of the caption; paraphrase: the column `paraphrase` of the data; sibling: another
    caption of the image."""
    crop: Shares = (0.5, 0.9)
    """Minimum and maximum share of the caption's words in a view of the policy crop."""
    positives: Annotated[Literal["caption", "image"], _IMAGE] = "caption"
    """Positives of a view. caption: the other views of the same caption text; image: the views of all captions of the
    same image."""
    loss: LossOfViews = LossRecipe(name="infonce")
    temperature: Temperature = 0.05
    head: HeadRecipe | None = None

    @property
    def are_equal(self) -> bool:
        """True if two views of a caption are the same text, so that only dropout makes their features differ."""
        return any(self.policies.count(policy) > 1 for policy in ("same", "paraphrase"))


class ViewsRecipe(Section):
    """Settings of the objective `views`, for images, captions, or both."""

    image: ImageViewsRecipe | None = None
    text: TextViewsRecipe | None = None

    @model_validator(mode="after")
    def _names_a_tower(self) -> Self:
        if self.image is None and self.text is None:
            raise ValueError("has no tower; add image: {policies: [simclr, simclr]} or text: {policies: [same, same]}")
        return self
