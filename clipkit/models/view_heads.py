"""Projection heads of views: between a trunk and the loss that compares views."""

import json
from pathlib import Path

from jaxtyping import Float
from torch import Tensor, nn

from clipkit.errors import ModelError, one_line
from clipkit.models.weights import check_safetensors
from clipkit.recipe import HeadRecipe

VIEW_HEADS_FILE = "view_heads.safetensors"


class ViewHead(nn.Module):
    """Linear maps with a normalisation and a ReLU between them (Chen et al. 2020, section 4.2).

    BatchNorm keeps no running statistics: it always sees the whole batch, as the objective does.

    Args:
        recipe: layers, widths, normalisation.
        width: of the trunk's output.

    Example:
        >>> import torch
        >>> ViewHead(HeadRecipe(dim=4), width=16)(torch.randn(8, 16)).shape
        torch.Size([8, 4])
    """

    def __init__(self, recipe: HeadRecipe, width: int) -> None:
        super().__init__()
        self.recipe = recipe
        self.width = width
        hidden = recipe.width or width
        layers: list[nn.Module] = []
        for _ in range(recipe.layers - 1):
            norm = nn.LayerNorm(hidden) if recipe.norm == "layer" else nn.BatchNorm1d(hidden, track_running_stats=False)
            layers += [nn.Linear(width, hidden, bias=False), norm, nn.ReLU()]
            width = hidden
        self.layers = nn.Sequential(*layers, nn.Linear(width, recipe.dim, bias=False))

    def forward(self, trunk_features: Float[Tensor, "G W"]) -> Float[Tensor, "G D"]:
        return self.layers(trunk_features)


def save_view_heads(heads: nn.ModuleDict, folder: Path) -> None:
    """Beside the model, where it has any."""
    from safetensors.torch import save_file

    if not heads:
        (folder / VIEW_HEADS_FILE).unlink(missing_ok=True)
        return
    made = {
        name: json.dumps({**_own(head).recipe.model_dump(), "in": _own(head).width}) for name, head in heads.items()
    }
    tensors = {name: value.detach().contiguous().cpu() for name, value in heads.state_dict().items()}
    save_file(tensors, folder / VIEW_HEADS_FILE, metadata=made)


def load_view_heads(folder: Path) -> nn.ModuleDict:
    """Those beside a model, if any.

    Raises:
        ModelError: the file is not whole.
    """
    from safetensors import safe_open
    from safetensors.torch import load_file

    file = folder / VIEW_HEADS_FILE
    heads = nn.ModuleDict()
    if not file.is_file():
        return heads
    check_safetensors(file)
    try:
        with safe_open(file, framework="pt") as opened:
            for name, text in sorted((opened.metadata() or {}).items()):
                made = json.loads(text)
                width = made.pop("in")
                heads[name] = ViewHead(HeadRecipe(**made), width)
        heads.load_state_dict(load_file(file))
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ModelError(f"{file}: does not hold the heads that it says ({one_line(error)}); fetch it again") from None
    return heads


def _own(head: nn.Module) -> ViewHead:
    assert isinstance(head, ViewHead)
    return head
