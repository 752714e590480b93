"""Faster implementations of two layers for accelerators. On a CPU, the library's code runs."""

from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from clipkit.models.devices import is_accelerator

# Up to this length PyTorch chooses a slow kernel. On an H200, forward and backward of 2,048 × 12 heads of length 50
# took 3.4 ms, and 2.8 ms with the memory-efficient kernel. For 512 × 12 heads of length 197, they took 3.3 ms and 5.4
# ms.
_SHORT = 96
_FOR_SHORT = [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


def use_fast_layers(module: nn.Module) -> None:
    """Switch the layers of a module to faster implementations for accelerators, in place.

    Only the class of a layer changes. Its results, and the names of its parameters, stay the same.
    """
    for layer in module.modules():
        if type(layer) is nn.Conv2d and _cuts_patches(layer):
            layer.__class__ = PatchConvolution
        elif type(layer) is nn.MultiheadAttention and _is_plain(layer):
            layer.__class__ = PackedSelfAttention


class PatchConvolution(nn.Conv2d):
    """Convolution over the patches of an image, computed as one matrix product, because patches do not overlap.

    This is faster, because cuDNN has no fast kernels for 3 channels.
    """

    library_class = nn.Conv2d

    def forward(self, input: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D P Q"]:
        """Return the projection of each patch. Incomplete patches at the right and bottom edges are ignored."""
        if not is_accelerator(input.device):
            return super().forward(input)
        if torch.is_autocast_enabled(input.device.type):
            input = input.to(torch.get_autocast_dtype(input.device.type))  # cast before the copy, not after it
        images, channels, height, width = input.shape
        (tall, wide), rows, columns = self.kernel_size, height // self.kernel_size[0], width // self.kernel_size[1]
        cut = input[:, :, : rows * tall, : columns * wide].reshape(images, channels, rows, tall, columns, wide)
        patches = cut.permute(0, 2, 4, 1, 3, 5).reshape(images * rows * columns, channels * tall * wide)
        projected = F.linear(patches, self.weight.flatten(1), self.bias)
        return projected.view(images, rows, columns, -1).permute(0, 3, 1, 2)


class PackedSelfAttention(nn.MultiheadAttention):
    """Self-attention that does not copy queries, keys and values, which are views of one tensor."""

    library_class = nn.MultiheadAttention

    def forward(  # type: ignore[override]  # the weights are not returned
        self,
        query: Float[Tensor, "B L W"],
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        **options: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Return the attended values, and the attention weights or None.

        The arguments are those of `nn.MultiheadAttention.forward`, which also handles calls that cannot be sped up.
        """
        is_self = query is key and key is value and query.ndim == 3
        if not is_accelerator(query.device) or not is_self or need_weights or key_padding_mask is not None:
            return super().forward(query, key, value, key_padding_mask, need_weights, attn_mask, **options)
        images, length, width = query.shape
        packed = F.linear(query, self.in_proj_weight, self.in_proj_bias).chunk(3, dim=-1)
        queries, keys, values = (part.view(images, length, self.num_heads, -1).transpose(1, 2) for part in packed)
        dropout = self.dropout if self.training else 0.0
        with sdpa_kernel(_FOR_SHORT) if length <= _SHORT else nullcontext():
            attended = F.scaled_dot_product_attention(queries, keys, values, attn_mask, dropout)
        return self.out_proj(attended.transpose(1, 2).reshape(images, length, width)), None


def _cuts_patches(layer: nn.Conv2d) -> bool:
    return (
        layer.in_channels <= 4
        and layer.kernel_size == layer.stride
        and layer.padding in ((0, 0), "valid")
        and layer.dilation == (1, 1)
        and layer.groups == 1
    )


def _is_plain(layer: nn.MultiheadAttention) -> bool:
    packed = layer.in_proj_weight is not None and layer.bias_k is None and layer.bias_v is None
    return packed and layer.batch_first and not layer.add_zero_attn
