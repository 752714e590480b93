"""Projections from the output of a trunk into the shared feature space."""

from collections import OrderedDict
from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor, nn

_HIDDEN = 512

NewProjection = Callable[[int], nn.Module]
"""Function from the width of a trunk's output to a new projection."""


class Projection(nn.Module):
    """Multiplication by a matrix (W, D), which open_clip stores as a parameter without a module."""

    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, features: Float[Tensor, "B W"]) -> Float[Tensor, "B D"]:
        return features @ self.weight


class ResidualProjection(nn.Module):
    """Projection that adds a linear layer and a residual branch (He et al. 2016).

    The branch has a hidden layer with GELU and dropout. Its output is zero at the start of training, as in Goyal et al.
    2017, section 5.1.

    Args:
        width: dimension of the input.
        embed_dim: dimension of the output.
        dropout: dropout rate of the hidden layer, in training mode only.
    """

    def __init__(self, width: int, embed_dim: int, dropout: float) -> None:
        super().__init__()
        self.linear = nn.Linear(width, embed_dim, bias=False)
        last = nn.Linear(_HIDDEN, embed_dim, bias=False)
        nn.init.zeros_(last.weight)
        self.residual = nn.Sequential(nn.Linear(width, _HIDDEN), nn.GELU(), nn.Dropout(dropout), last)

    def forward(self, features: Float[Tensor, "B W"]) -> Float[Tensor, "B D"]:
        return self.linear(features) + self.residual(features)


def projection_of_coordinates(width: int, embed_dim: int, layers: str, dropout: float) -> nn.Module:
    """Build the projection of a trunk whose output was reduced to coordinates (`Coordinates`).

    Args:
        width: number of coordinates.
        embed_dim: dimension of the output.
        layers: `residual` builds a `ResidualProjection`; any other value builds a linear layer.
        dropout: dropout rate of the residual branch's hidden layer, or of the coordinates before the linear layer.
    """
    if layers == "residual":
        return ResidualProjection(width, embed_dim, dropout)
    linear = nn.Linear(width, embed_dim, bias=False)
    return (
        nn.Sequential(OrderedDict({"dropout": nn.Dropout(dropout), "0": linear})) if dropout else nn.Sequential(linear)
    )


def linear_of(head: nn.Module) -> nn.Linear:
    """Return the linear layer of a projection that `projection_of_coordinates` built."""
    linear = head.linear if isinstance(head, ResidualProjection) else head.get_submodule("0")
    assert isinstance(linear, nn.Linear)
    return linear


def keep_outputs(head: nn.Module, count: int) -> None:
    """Keep only the first `count` outputs of a projection that `projection_of_coordinates` built.

    The parameters stay the same objects, so an optimizer that has not made a step can still update them.
    """
    layers = [linear_of(head)]
    if isinstance(head, ResidualProjection):
        last = head.residual[-1]
        assert isinstance(last, nn.Linear)
        layers.append(last)
    for layer in layers:
        layer.weight.data = layer.weight.data[:count].clone()
        layer.out_features = count


def new_projection(width: int, embed_dim: int | None, layers: str) -> nn.Module:
    """Build a projection that consists of a LayerNorm and one or two linear layers.

    Args:
        width: dimension of the input.
        embed_dim: dimension of the output; None: no projection, i.e. the identity.
        layers: `mlp` builds two linear layers with a GELU between them; any other value builds one.
    """
    if embed_dim is None:
        return nn.Identity()
    if layers == "mlp":
        maps = [nn.Linear(width, embed_dim), nn.GELU(), nn.Linear(embed_dim, embed_dim, bias=False)]
        return nn.Sequential(nn.LayerNorm(width), *maps)
    return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, embed_dim, bias=False))
