"""Merging of a fixed affine map and a linear projection into one linear layer, for export."""

import copy
from typing import TypeVar

import torch
from torch import nn

from clipkit.models.layers import Layered
from clipkit.models.projections import ResidualProjection, linear_of
from clipkit.models.towers import Tower

M = TypeVar("M", bound=nn.Module)


def folded(tower: Tower) -> Tower:
    """Return an equivalent tower whose linear projection includes the affine map of its trunk (`Coordinates`).

    The affine map is (x − mean) · matrix, and the projection multiplies its result by Wᵀ. The new layer multiplies x by
    matrix · Wᵀ and subtracts mean · (matrix · Wᵀ), computed in float64. A tower without such a map, or with a nonlinear
    projection, is returned unchanged.
    """
    trunk = tower.trunk
    if not isinstance(trunk, Layered) or trunk.coordinates is None or isinstance(tower.head, ResidualProjection):
        return tower
    with torch.no_grad():
        weight = linear_of(tower.head).weight
        matrix = trunk.coordinates.matrix.double() @ weight.double().T
        linear = nn.Linear(matrix.shape[0], matrix.shape[1]).to(weight.device)
        linear.weight.copy_(matrix.T)
        linear.bias.copy_(-trunk.coordinates.mean.double() @ matrix)
    plain, whole = _copied(trunk), _copied(tower)
    plain.coordinates = None
    whole.trunk, whole.head = plain, linear
    return whole


def _copied(module: M) -> M:
    """Return a shallow copy of a module, with the same submodules and parameters."""
    shallow = copy.copy(module)
    shallow._modules = dict(module._modules)
    return shallow
