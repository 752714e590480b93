"""A tower: its own inputs in, features out; it knows how its inputs are made and nothing of training."""

import re
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from clipkit.errors import ModelError
from clipkit.models.preprocess import Preprocess
from clipkit.models.tokenizer import Tokenizer

TRUNK_FEATURES = "trunk_features"
"""Name of the input under which a frozen trunk's stored output may come in place of pixels or tokens."""

# Text towers in which padding has no part: they look only backward from the end token, or heed the mask. Of a tower
# that is not named here nobody has shown it, so it gets its captions at full length.
PADDING_MAY_BE_CUT = (
    "align_text_model",
    "altclip_text_model",
    "bert",
    "camembert",
    "chinese_clip_text_model",
    "clip_text_model",
    "distilbert",
    "electra",
    "metaclip_2_text_model",
    "mpnet",
    "mt5",
    "roberta",
    "t5",
    "umt5",
    "xlm-roberta",
)
# Their positions begin after the padding's id.
_OFFSET_POSITIONS = ("altclip_text_model", "camembert", "data2vec-text", "roberta", "xlm-roberta", "mpnet")


class Tower(nn.Module):
    """A trunk that makes one vector of an input, and a head that projects it into the shared space.

    Args:
        trunk: inputs by name -> (B, W).
        head: (B, W) -> (B, D), the projection.
        blocks: names of the trunk's parameters that can learn, block by block from input to output. What stands
            before the first block belongs to the first, what comes after the last one (final norms) to the last.
        head_is_new: whether the projection was just initialised, so that it always has to learn.
        head_names: names of the trunk's parameters that are the projection, where it cannot be taken out of the trunk.
    """

    def __init__(
        self,
        trunk: nn.Module,
        head: nn.Module,
        blocks: Sequence[Sequence[str]],
        head_is_new: bool,
        head_names: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.trunk = trunk
        self.head = head
        self.blocks = blocks
        self.head_is_new = head_is_new
        self.head_names = head_names
        self.tune("full")

    def forward(self, inputs: dict[str, Tensor]) -> Float[Tensor, "B D"]:
        """Features, not normalised. Inputs are the trunk's own, or `trunk_features` (B, W) already computed."""
        return self.head(inputs[TRUNK_FEATURES] if TRUNK_FEATURES in inputs else self.trunk(**inputs))

    def ready(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Inputs as the trunk takes them, from those that the loader gives."""
        return inputs

    def tune(self, tune: str) -> None:
        """Set which parameters learn: full, last:N (blocks, and the head), head or frozen.

        A new head always learns: frozen noise is of no use.

        Raises:
            ModelError: there are fewer than N blocks, or there is no projection to tune alone.
        """
        if tune == "head" and not self.head_names and not any(True for _ in self.head.parameters()):
            raise ModelError(
                "tune: head asks for the projection, which this tower does not have; take last:1 or frozen"
            )
        self.requires_grad_(False)
        self.head.requires_grad_(tune != "frozen" or self.head_is_new)
        if last := re.fullmatch(r"last:(\d+)", tune):
            count = int(last[1])
            if count > len(self.blocks):
                raise ModelError(f"tune: {tune} asks for more blocks than the tower has ({len(self.blocks)})")
            learning = self.blocks[len(self.blocks) - count :]
        else:
            learning = self.blocks if tune == "full" else []
        if tune != "frozen":
            learning = [*learning, self.head_names]
        parameters = dict(self.trunk.named_parameters())
        for block in learning:
            for name in block:
                parameters[name].requires_grad_(True)

    @property
    def trunk_is_frozen(self) -> bool:
        """Whether no parameter of the trunk learns, so that its output for one input never changes."""
        return not any(parameter.requires_grad for parameter in self.trunk.parameters())


class ImageTower(Tower):
    """A tower over images: input `pixel_values` (B, 3, H, W), or what its preprocessing gives."""

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
        return self.preprocess.normalised(inputs)


class TextTower(Tower):
    """A tower over tokens: inputs `input_ids` and, where cutting padding is exact, `attention_mask` (B, L)."""

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

    def cut_padding(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """The inputs cut to the longest of these captions, where that is exact.

        It is where a tower looks only backward from its end token (CLIP), or heeds the mask (BERT and its like). A
        tower that looks at its padding (SigLIP) has no mask among its inputs and gets them whole.
        """
        if "attention_mask" not in inputs or not self.padding_may_be_cut:
            return inputs
        longest = int(inputs["attention_mask"].sum(dim=1).max())
        return {name: value[:, :longest] for name, value in inputs.items()}


def transformers_blocks(model: nn.Module) -> list[list[str]]:
    """Parameter names of a transformers encoder, layer by layer; its unused pooler is left out."""
    stacks = [(len(m), name) for name, m in model.named_modules() if isinstance(m, nn.ModuleList)]
    _, stack = max(stacks, key=lambda found: found[0], default=(0, ""))
    blocks: list[list[str]] = []
    before: list[str] = []
    for name, _ in model.named_parameters():
        if name.startswith("pooler."):
            continue
        layer = re.match(rf"{re.escape(stack)}\.(\d+)\.", name) if stack else None
        if layer is None:
            (blocks[-1] if blocks else before).append(name)
            continue
        while len(blocks) <= int(layer[1]):
            blocks.append([])
        blocks[int(layer[1])].append(name)
    if not blocks:
        return [before]
    blocks[0] = before + blocks[0]
    return blocks


def timm_blocks(native: Any) -> list[list[str]]:
    """Parameter names of a timm model, in the groups that it names itself, from input to output."""
    from timm.models import group_parameters

    groups = group_parameters(native, native.group_matcher(coarse=False))
    stem, *blocks = [list(groups[layer]) for layer in sorted(groups)]
    if not blocks:
        return [stem]
    if len(blocks) > 1 and all(
        name.split(".")[0] in ("norm", "fc_norm", "head", "conv_head", "bn2", "attn_pool") for name in blocks[-1]
    ):
        norms = blocks.pop()
        blocks[-1] = blocks[-1] + norms
    blocks[0] = stem + blocks[0]
    return blocks


def positions_of(config: Any) -> int | None:
    """Longest caption that a transformers text encoder has positions for."""
    positions: int | None = getattr(config, "max_position_embeddings", None)
    if positions is not None and config.model_type in _OFFSET_POSITIONS:
        return positions - int(config.pad_token_id) - 1
    return positions


def mean_of_tokens(states: Float[Tensor, "B L W"], attention_mask: Tensor) -> Float[Tensor, "B W"]:
    """Mean over the tokens that are not padding (Reimers and Gurevych 2019, Sentence-BERT)."""
    mask = attention_mask.unsqueeze(-1).to(states.dtype)
    return (states * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)


def last_token(states: Float[Tensor, "B L W"], attention_mask: Tensor) -> Float[Tensor, "B W"]:
    """State of the last token that is not padding."""
    last = attention_mask.sum(dim=1) - 1
    return states[torch.arange(len(states), device=states.device), last]
