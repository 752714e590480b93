"""Projection heads for losses that compare views of images or texts."""

import json
from pathlib import Path

from jaxtyping import Float
from torch import Tensor, nn

from clipkit.models.quiet import as_model_error
from clipkit.models.weights import check_safetensors, save_tensors
from clipkit.parsing import parse_json
from clipkit.recipe import HeadRecipe

VIEW_HEADS_FILE = "view_heads.safetensors"


class ViewHead(nn.Module):
    """Projection head of linear layers with normalization and ReLU between them (Chen et al. 2020, section 4.2).

    BatchNorm keeps no running statistics, because each call gets the whole batch.

    Args:
        recipe: number of layers, widths and normalization.
        width: dimension of the trunk's output.

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
    """Write the heads into the model's folder. If there are no heads, remove an older file."""
    if not heads:
        (folder / VIEW_HEADS_FILE).unlink(missing_ok=True)
        return
    metadata = {name: _metadata(head) for name, head in heads.items()}
    save_tensors(heads.state_dict(), folder / VIEW_HEADS_FILE, metadata)


def load_view_heads(folder: Path) -> nn.ModuleDict:
    """Load the heads from a model's folder; the result is empty if there are none.

    Raises:
        ModelError: the file is incomplete or invalid.
    """
    from safetensors import safe_open
    from safetensors.torch import load_file

    file = folder / VIEW_HEADS_FILE
    heads = nn.ModuleDict()
    if not file.is_file():
        return heads
    check_safetensors(file)
    with as_model_error(f"{file}: metadata and weights do not match", "; download the file again"):
        with safe_open(file, framework="pt") as opened:
            for name, text in sorted((opened.metadata() or {}).items()):
                settings = parse_json(text)
                width = settings.pop("in")
                heads[name] = ViewHead(HeadRecipe(**settings), width)
        heads.load_state_dict(load_file(file))
    return heads


def _metadata(head: nn.Module) -> str:
    assert isinstance(head, ViewHead)
    return json.dumps({**head.recipe.model_dump(), "in": head.width})
