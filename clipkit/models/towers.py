"""Towers, which compute features from inputs. A tower includes its preprocessing, but no training code."""

from collections.abc import Iterable, Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from clipkit.models.cut import ACTIVATIONS, OUTSIDE, Cut
from clipkit.models.fast_layers import use_fast_layers
from clipkit.models.preprocess import Preprocess
from clipkit.models.tokenizer import Tokenizer

TRUNK_FEATURES = "trunk_features"
"""Name of the input with the stored output of a frozen trunk, used instead of pixels or tokens."""


class Tower(nn.Module):
    """Image or text tower of a dual encoder, which consists of a trunk and a head.

    The trunk computes one vector per input. The head projects this vector into the shared space.

    Args:
        trunk: module that maps inputs, given by name, to vectors (B, W).
        head: projection from (B, W) to (B, D).
        blocks: names of the trunk's trainable parameters, one list per block from input to output. The first and last
            lists also contain the parameters before and after the blocks, such as embeddings and final norms.
        head_is_new: True if the projection is newly initialized and therefore must be trained.
        head_names: names of the trunk's parameters that act as the projection, if the trunk contains the projection.
    """

    side: Literal["image", "text"]
    """Name of the tower in a recipe and in messages."""

    def __init__(
        self,
        trunk: nn.Module,
        head: nn.Module,
        blocks: Sequence[Sequence[str]],
        head_is_new: bool,
        head_names: Sequence[str] = (),
    ) -> None:
        super().__init__()
        use_fast_layers(trunk)
        self.trunk = trunk
        self.head = head
        self.blocks = blocks
        self.head_is_new = head_is_new
        self.head_names = head_names
        self.autocast: torch.dtype | None = None
        """Type in which an accelerator encodes with the float32 weights; None: the type of the weights."""
        self.cut: Cut | None = None
        """Cut of the trunk, for inputs that are stored activations."""
        self.set_trainable([*(name for block in blocks for name in block), *head_names], head=True)

    def forward(self, inputs: dict[str, Tensor]) -> Float[Tensor, "B D"]:
        """Return features before normalization.

        Args:
            inputs: inputs of the trunk, stored `trunk_features` (B, W), or the result of `Cut.below`.
        """
        if TRUNK_FEATURES in inputs:
            return self.head(inputs[TRUNK_FEATURES])
        if ACTIVATIONS in inputs:
            assert self.cut is not None
            return self.head(self.cut.above(inputs))
        return self.head(self.trunk(**inputs))

    def ready(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Convert inputs from the data loader to inputs of the trunk."""
        return inputs

    def set_trainable(self, names: Iterable[str], *, head: bool) -> None:
        """Make the named parameters of the trunk trainable, and freeze all other parameters.

        Args:
            names: names of parameters of the trunk.
            head: True also makes the projection trainable.
        """
        self.requires_grad_(False)
        self.head.requires_grad_(head)
        parameters = dict(self.trunk.named_parameters())
        for name in names:
            parameters[name].requires_grad_(True)

    @property
    def has_head(self) -> bool:
        """Return whether the tower has a projection with parameters."""
        return bool(self.head_names) or any(True for _ in self.head.parameters())

    @property
    def trunk_is_frozen(self) -> bool:
        """Return whether all parameters of the trunk are frozen."""
        return not any(parameter.requires_grad for parameter in self.trunk.parameters())


class ImageTower(Tower):
    """Tower for images. Its inputs are `pixel_values` (B, 3, H, W), or other tensors that its preprocessing returns."""

    side = "image"

    def __init__(
        self,
        trunk: nn.Module,
        head: nn.Module,
        blocks: Sequence[Sequence[str]],
        preprocess: Preprocess,
        head_is_new: bool = False,
        head_names: Sequence[str] = (),
    ) -> None:
        super().__init__(trunk, head, blocks, head_is_new, head_names)
        self.preprocess = preprocess

    def ready(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        return self.preprocess.normalized(inputs)


class TextTower(Tower):
    """Tower for texts. Its inputs are `input_ids` (B, L) and, if it uses a mask, `attention_mask` (B, L)."""

    side = "text"

    def __init__(
        self,
        trunk: nn.Module,
        head: nn.Module,
        blocks: Sequence[Sequence[str]],
        tokenizer: Tokenizer,
        head_is_new: bool = False,
        head_names: Sequence[str] = (),
        padding_may_be_cut: bool = True,
    ) -> None:
        super().__init__(trunk, head, blocks, head_is_new, head_names)
        self.tokenize = tokenizer
        self.padding_may_be_cut = padding_may_be_cut

    def cut_padding(self, inputs: dict[str, Tensor], multiple: int = 1) -> dict[str, Tensor]:
        """Truncate the inputs to the longest text of the batch, if this does not change the features.

        Features are unchanged if the tower attends only backward from the end token (CLIP), or masks padding (BERT). If
        it attends to padding (SigLIP), the inputs have no mask and are returned unchanged.

        Args:
            inputs: inputs of the tower.
            multiple: the new length is rounded up to a multiple of this number.
        """
        if "attention_mask" not in inputs or not self.padding_may_be_cut:
            return inputs
        longest = int(inputs["attention_mask"].sum(dim=1).max())
        longest = -(-longest // multiple) * multiple
        return {name: value if name == OUTSIDE else value[:, :longest] for name, value in inputs.items()}
