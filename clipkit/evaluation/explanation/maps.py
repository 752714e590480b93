"""Relevance maps of vision transformers: how well each patch of an image matches a text.

The value of a token is the output of attention if the token attends only to itself.

The method `gradient` multiplies the values of patches by the gradient of the cosine with respect to the output of
attention. It sums the products over channels and blocks (Zhao et al. 2024, "Gradient-based visual explanation for
CLIP", Grad-ECLIP, without its spatial weights).

The method `patches` passes the value of each patch through the rest of the tower, and compares the result with the text
(Zhou et al. 2022, "Extract free dense labels from CLIP"). The residual connection and the MLP of the last block are
left out (Lan et al. 2024, ClearCLIP).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isqrt
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from clipkit.evaluation.explanation.hooks import NoValuesError, hooked, outermost_members
from clipkit.evaluation.explanation.seen import Seen
from clipkit.models.cut import first_tensor, is_activation
from clipkit.models.towers import ImageTower

Method = Literal["gradient", "patches", "occlusion"]

_MOST_PREFIX = 16  # largest number of tokens before the patches: class token and registers


@dataclass(frozen=True)
class Block:
    """A block of a vision transformer, and its attention layer."""

    whole: nn.Module
    attention: nn.Module
    prefix: int
    """Tokens before those of patches: class token and registers."""
    grid: tuple[int, int]
    """Rows and columns of patches."""


def blocks_of(tower: ImageTower, seen: Seen) -> list[Block]:
    """Return the blocks of a vision transformer, from input to output. The list is empty for other image towers."""
    found: list[Block] = []

    def see(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not any(is_activation(value) for value in (*args, *kwargs.values())):
            return
        tokens = first_tensor(args, kwargs)
        attention = next((m for m in module.modules() if "attention" in type(m).__name__.lower()), None)
        grid = _grid(tokens, seen)
        if attention is not None and grid is not None:
            found.append(Block(module, attention, tokens.shape[1] - grid[0] * grid[1], grid))

    hooks = [member.register_forward_pre_hook(see, with_kwargs=True) for member in outermost_members(tower.trunk)]
    with hooked(hooks), torch.no_grad():
        tower.trunk(**seen.inputs)
    return found


def _grid(tokens: Tensor, seen: Seen) -> tuple[int, int] | None:
    """Return the numbers of rows and columns of the image patches in a tensor of tokens.

    The result is None if the tensor is not a few special tokens followed by one token per patch.
    """
    if tokens.ndim != 3 or len(tokens) > 1:
        return None
    rows = isqrt(round(tokens.shape[1] * seen.aspect))
    rows, columns = seen.shape or (rows, round(rows / seen.aspect))
    return (rows, columns) if 1 < rows * columns <= tokens.shape[1] <= rows * columns + _MOST_PREFIX else None


def gradient_maps(
    tower: ImageTower, blocks: Sequence[Block], seen: Seen, texts: Float[Tensor, "T D"]
) -> Float[Tensor, "T R C"]:
    """Return one relevance map per text, computed by the method `gradient`.

    Args:
        tower: the image tower.
        blocks: the blocks of a vision transformer. The maps of all blocks with the last block's grid are added.
        seen: the preprocessed image.
        texts: unit-length features of the texts.

    Raises:
        NoValuesError: the attention layers do not accept single tokens.
    """
    blocks = [block for block in blocks if block.grid == blocks[-1].grid]  # earlier stages may have finer grids
    held: dict[nn.Module, _Held] = {}
    for block in blocks:
        held[block.attention] = _Held()
    hooks = [
        hook
        for attention, one in held.items()
        for hook in (
            attention.register_forward_pre_hook(one.see_input, with_kwargs=True),
            attention.register_forward_hook(one.replace_output),
        )
    ]
    gradients = _gradients(tower, seen, texts, hooks, [one.output for one in held.values()])
    maps = torch.zeros(len(texts), *blocks[-1].grid)
    for block, one, of_block in zip(blocks, held.values(), gradients, strict=True):
        values = one.values(block.attention)[block.prefix :]
        weights = of_block[:, 0].sum(dim=1)  # over the tokens whose attention matters: the class token, or all
        maps += (weights @ values.T).view(-1, *block.grid).float().cpu()
    return maps


class _Held:
    """Hooks that store the arguments and the output of an attention layer, for gradients with respect to the output."""

    def __init__(self) -> None:
        self.output: list[Tensor] = []
        self.given: tuple[tuple[Any, ...], dict[str, Any]] = ((), {})

    def see_input(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.given = (args, kwargs)

    def replace_output(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        first = output[0] if isinstance(output, tuple) else output
        self.output.append(first if first.requires_grad else first.detach().requires_grad_())
        kept = self.output[0] * 1  # not a leaf: the next layer may change it in place
        return (kept, *output[1:]) if isinstance(output, tuple) else kept

    def values(self, attention: nn.Module) -> Float[Tensor, "L W"]:
        """Return the value of each token: the output of attention if the token attends only to itself.

        Raises:
            NoValuesError: the attention layer does not accept single tokens.
        """
        args, kwargs = self.given
        tokens = first_tensor(args, kwargs)
        alone = _alone(args, kwargs, tokens.shape, tokens.detach()[0][:, None])
        try:
            with torch.no_grad():
                output = attention(*alone[0], **alone[1])
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            raise NoValuesError from error
        return (output[0] if isinstance(output, tuple) else output)[:, 0]


def _alone(
    args: tuple[Any, ...], kwargs: dict[str, Any], shape: torch.Size, tokens: Tensor
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of an attention layer with other tokens and without the attention mask.

    Each argument whose shape is `shape` is replaced by `tokens`.
    """

    def changed(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return tokens if value.shape == shape else None if value.ndim == 4 else value

    return tuple(map(changed, args)), {name: changed(value) for name, value in kwargs.items()}


def token_maps(tower: ImageTower, block: Block, seen: Seen, texts: Float[Tensor, "T D"]) -> Float[Tensor, "T R C"]:
    """Return one relevance map per text, for a tower whose attention layers do not accept single tokens.

    A map is the input of the last block times the gradient of the cosine with respect to this input, summed over
    channels.
    """
    held = _Held()

    def hold(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        tokens = first_tensor(args, kwargs)
        return _alone(args, kwargs, tokens.shape, held.replace_output(module, args, tokens))

    hooks = [block.whole.register_forward_pre_hook(hold, with_kwargs=True)]
    (gradients,) = _gradients(tower, seen, texts, hooks, [held.output])
    product = (held.output[0].detach() * gradients)[:, 0, block.prefix :]
    return product.sum(dim=-1).view(-1, *block.grid).float().cpu()


def _gradients(
    tower: ImageTower, seen: Seen, texts: Tensor, hooks: list[Any], outputs: Sequence[list[Tensor]]
) -> list[Float[Tensor, "T ..."]]:
    """Return the gradients of the cosine of the image and each text with respect to stored activations.

    The hooks fill each list in `outputs` with one activation, and are removed at the end.
    """
    with hooked(hooks), torch.enable_grad():
        features = F.normalize(tower(seen.inputs)[0].float(), dim=-1)
        kept = [output[0] for output in outputs]
        rows = [torch.autograd.grad(text.to(features) @ features, kept, retain_graph=True) for text in texts]
    return [torch.stack(of_output) for of_output in zip(*rows, strict=True)]


def patch_maps(tower: ImageTower, block: Block, seen: Seen, texts: Float[Tensor, "T D"]) -> Float[Tensor, "T R C"]:
    """Return one relevance map per text, computed by the method `patches`: the cosine of each patch with the text.

    Args:
        tower: the image tower.
        block: the last block of the tower.
        seen: the preprocessed image.
        texts: unit-length features of the texts.

    Raises:
        NoValuesError: the tower does not accept single patches.
    """
    held = _Held()

    def separate(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        tokens = first_tensor(args, kwargs)
        patches = tokens[0, block.prefix :, None].expand(-1, block.prefix + 1, -1)
        return _alone(args, kwargs, tokens.shape, patches)

    def replace(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        return (held.output[0], *output[1:]) if isinstance(output, tuple) else held.output[0]

    hooks = [
        block.whole.register_forward_pre_hook(separate, with_kwargs=True),
        block.attention.register_forward_hook(held.replace_output),
        block.whole.register_forward_hook(replace),
    ]
    try:
        with hooked(hooks), torch.no_grad():
            features = F.normalize(tower(seen.inputs).float(), dim=-1)
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        raise NoValuesError from error
    return (texts.to(features) @ features.T).view(len(texts), *block.grid).cpu()
