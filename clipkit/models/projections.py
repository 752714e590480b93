"""Projections from the output of a trunk into the shared feature space."""

from jaxtyping import Float
from torch import Tensor, nn


class Projection(nn.Module):
    """Multiplication by a matrix (W, D) that open_clip stores as a bare parameter."""

    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, features: Float[Tensor, "B W"]) -> Float[Tensor, "B D"]:
        return features @ self.weight


def new_projection(width: int, embed_dim: int | None, layers: str) -> nn.Module:
    """Build a LayerNorm and one linear layer, or (`layers`: mlp) two with a GELU; without `embed_dim`, the identity."""
    if embed_dim is None:
        return nn.Identity()
    if layers == "mlp":
        maps = [nn.Linear(width, embed_dim), nn.GELU(), nn.Linear(embed_dim, embed_dim, bias=False)]
        return nn.Sequential(nn.LayerNorm(width), *maps)
    return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, embed_dim, bias=False))
