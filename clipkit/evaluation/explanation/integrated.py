"""Relevance maps of image towers that are not vision transformers, by integrated gradients of several layers.

The tower encodes partly hidden copies of the image. Some copies are mixtures of the image and its mean color. In the
others, a random half of the grid cells has the mean color (Petsiuk et al. 2018, "RISE").

The map of a layer is the product of two factors. The first is the gradient of the cosine with respect to the layer's
output, averaged over the copies. The second is the change of this output from the mean color to the image. This is
integrated gradients (Sundararajan et al. 2017, "Axiomatic attribution for deep networks"), applied to layers (Dhamdhere
et al. 2018, "How important is a neuron?"). Negative gradients are set to 0, and the maps of fine and coarse layers are
added (Jiang et al. 2021, "LayerCAM").
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from clipkit.evaluation.explanation.hooks import NoValuesError, hooked, outermost_members
from clipkit.evaluation.explanation.occlusion import CELLS
from clipkit.evaluation.explanation.seen import Seen
from clipkit.models.towers import ImageTower

_MIXTURES = 4  # number of mixtures of the image and its mean color
_HALVES = 4  # number of pairs of images: one shows the cells that are hidden in the other
_FINER = 4  # layers with a grid finer than this, relative to the last layer, are left out: their maps are noisy


def integrated_maps(tower: ImageTower, seen: Seen, texts: Float[Tensor, "T D"]) -> Float[Tensor, "T R C"]:
    """Return one relevance map per text, computed by integrated gradients.

    A map has the size of the tower's last feature map. It is the sum of the normalized maps of several layers.

    Args:
        tower: the image tower, in evaluation mode.
        seen: the preprocessed image.
        texts: unit-length features of the texts.

    Raises:
        NoValuesError: no layer of the tower returns a feature map.
    """
    layers = _layers(tower, seen)
    weights = _weights().to(seen.inputs["pixel_values"].device)
    outputs: list[Tensor] = []

    def hold(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        outputs.append(output if output.requires_grad else output.detach().requires_grad_())
        return outputs[-1] * 1  # a copy: the next layer may change it in place

    with hooked([layer.register_forward_hook(hold) for layer in layers]), torch.enable_grad():
        features = F.normalize(tower(seen.mixed(weights)).float(), dim=-1)[1:-1].mean(dim=0)
        rows = [torch.autograd.grad(text.to(features) @ features, outputs, retain_graph=True) for text in texts]
    changes = [_channels_first(output[-1:] - output[:1]).detach().float() for output in outputs]
    return torch.stack([_of_text(gradients, changes) for gradients in rows]).cpu()


def _weights() -> Float[Tensor, "K R C"]:
    """Return K masks for mixing an image with its mean color: 1 shows the image, 0 shows the color.

    The first mask is all 0, and the last is all 1. The masks between them are constant or random.
    """
    mixtures = (torch.arange(_MIXTURES) + 0.5) / _MIXTURES
    shown = (torch.rand(_HALVES, CELLS, CELLS, generator=torch.Generator().manual_seed(0)) < 0.5).float()
    alike = torch.tensor([0.0, *mixtures.tolist()])[:, None, None].expand(-1, CELLS, CELLS)
    return torch.cat([alike, shown, 1 - shown, torch.ones(1, CELLS, CELLS)])


def _of_text(gradients: Sequence[Tensor], changes: Sequence[Float[Tensor, "1 C R S"]]) -> Float[Tensor, "R S"]:
    """Return the relevance map of one text: the sum of the maps of all layers.

    The map of each layer is first divided by the sum of its absolute values.

    Args:
        gradients: gradients of the cosine with respect to the output of each layer.
        changes: change of each layer's output from the mean color to the image.
    """
    rows, columns = changes[-1].shape[2:]
    total = torch.zeros(rows, columns, device=changes[-1].device)
    for gradient, change in zip(gradients, changes, strict=True):
        mean = _channels_first(gradient.float().sum(dim=0, keepdim=True))
        of_layer = F.adaptive_avg_pool2d((mean.clamp(min=0) * change).sum(dim=1), (rows, columns))[0]
        total += of_layer / of_layer.abs().sum().clamp(min=torch.finfo(torch.float32).tiny)
    return total


def _layers(tower: ImageTower, seen: Seen) -> list[nn.Module]:
    """Return the layers whose relevance maps are added: the last layer with a feature map and some earlier layers.

    The earlier layers are stages or blocks whose feature maps have 1 to 4 times as many rows as the last feature map.
    """
    blocks = outermost_members(tower.trunk)
    reached: dict[int, tuple[nn.Module, Tensor]] = {}  # one layer for each output, although containers return it again

    def see(module: nn.Module, _: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.ndim == 4 and min(_channels_first(output).shape[2:]) > 1:
            known, _ = reached.get(id(output), (module, output))
            reached[id(output)] = known if known in blocks else module, output

    with hooked([m.register_forward_hook(see) for m in tower.trunk.modules()]), torch.no_grad():
        tower.trunk(**seen.inputs)
    if not reached:
        raise NoValuesError
    layers = [(module, _channels_first(output).shape[2]) for module, output in reached.values()]
    last, rows = layers[-1]
    return [module for module, finer in layers[:-1] if module in blocks and rows <= finer <= _FINER * rows] + [last]


def _channels_first(activations: Float[Tensor, "B ..."]) -> Float[Tensor, "B C R S"]:
    rows, columns = activations.shape[1:3]
    return activations.permute(0, 3, 1, 2) if rows == columns != activations.shape[3] else activations
