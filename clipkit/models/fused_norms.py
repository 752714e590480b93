"""Merging of batch normalizations into the convolutions before them, for encoding on a CPU."""

import copy
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from clipkit.models.preprocess import stack_inputs
from clipkit.models.towers import ImageTower

_TOLERANCE = 1e-4
"""Largest difference of the output, relative to its largest value, that rounding in float32 may cause."""


def with_fused_norms(tower: ImageTower) -> ImageTower:
    """Return a faster tower with the same features, or the given tower if that is impossible.

    In evaluation mode, a batch normalization is an affine map of each channel, which the convolution before it can
    include. The features of both towers are compared on one image, because layers may run in another order than they
    are registered.

    Args:
        tower: tower in evaluation mode, with float32 weights on the CPU. It is not changed. The new tower shares all
            parameters that stay the same.
    """
    if not any(True for _ in _pairs(tower.trunk)):
        return tower
    fused = copy.deepcopy(tower, {id(each): each for each in [*tower.parameters(), *tower.buffers(), tower.preprocess]})
    with torch.no_grad():
        for parent, convolution, name, norm in list(_pairs(fused.trunk)):
            _fuse(convolution, norm)
            # timm's layer also contains the dropout and the activation that follow.
            after = [part for part in (getattr(norm, "drop", None), getattr(norm, "act", None)) if part is not None]
            setattr(parent, name, nn.Sequential(*after))
    return fused if _is_equal(tower, fused) else tower


def _pairs(trunk: nn.Module) -> Iterator[tuple[nn.Module, nn.Conv2d, str, nn.BatchNorm2d]]:
    """Yield (parent, convolution, name, norm) for each batch normalization registered directly after a convolution.

    The module `parent` contains both, and `name` is the name of the normalization in it.
    """
    for parent in trunk.modules():
        parts = list(parent.named_children())
        for (_, convolution), (name, norm) in pairwise(parts):
            if not isinstance(convolution, nn.Conv2d) or not isinstance(norm, nn.BatchNorm2d):
                continue
            if convolution.out_channels == norm.num_features and _is_fixed(convolution, norm):
                yield parent, convolution, name, norm


def _is_fixed(convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> bool:
    has_plain_weights = not hasattr(convolution, "parametrizations") and not convolution._forward_hooks
    return has_plain_weights and not norm.training and norm.running_mean is not None and not norm._forward_hooks


def _fuse(convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    convolution.weight, convolution.bias = fuse_conv_bn_weights(
        convolution.weight,
        convolution.bias,
        norm.running_mean,
        norm.running_var,
        norm.eps,
        norm.weight,
        norm.bias,
    )


def _is_equal(tower: ImageTower, fused: ImageTower) -> bool:
    noise = np.random.default_rng(0).integers(256, size=(64, 64, 3), dtype=np.uint8)
    inputs = stack_inputs([tower.preprocess(Image.fromarray(noise))])
    try:
        before, after = tower.trunk(**inputs), fused.trunk(**inputs)
    except (AttributeError, TypeError, RuntimeError):  # the module reads attributes of the removed normalization
        return False
    return bool((before - after).abs().max() <= _TOLERANCE * before.abs().max())
