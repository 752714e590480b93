"""Split of a trunk into a frozen lower part and an upper part with all trained parameters.

The lower part runs once per input, and its output is stored. The upper part runs in each training step.

The trunk is cut before the first module that has a trained parameter. The input of this module is called the
activations.

- Lower part: the trunk runs until it reaches the module at the cut, and stops there.
- Upper part: the whole trunk runs, but modules below the cut return NaN placeholders without computing. The module at
  the cut gets the stored activations.

A result that depends on a placeholder becomes NaN. `find_cut` detects this and rejects the cut.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

ACTIVATIONS = "activations"
"""Name of the input with the stored activations at the cut of a trunk, used instead of the inputs of its lower part."""

OUTSIDE = "outside"
"""Name of the input with stored columns of the trunk's output that come from below its cut, e.g. of pooled layers."""

Inputs = dict[str, Tensor]


class NoCutError(Exception):
    """Error for a trunk that cannot be cut. The message states only the reason."""


class _ReachedError(Exception):
    """Exception that stops a trunk at the cut."""


@dataclass(eq=False)
class Cut:
    """Trunk that `find_cut` has split into a frozen lower part and an upper part.

    Example:
        >>> cut = find_cut(tower.trunk, inputs)                 # doctest: +SKIP
        >>> stored = cut.below(inputs)                          # doctest: +SKIP
        >>> torch.equal(cut.above(stored), tower.trunk(**inputs))    # doctest: +SKIP
        True
    """

    trunk: nn.Module
    name: str
    """Name of the module whose input is stored."""
    module: nn.Module
    skipped: Sequence[nn.Module]
    """Modules of the lower part; modules inside them are not listed."""
    left_out: Mapping[str, tuple[tuple[int, ...], torch.dtype]]
    """Inputs of the trunk that are not stored, e.g. pixels: shape of a row and type."""
    of_tokens: bool = False
    """True if activations (B, L, …) have one row per token, and the rows of padding are not needed."""
    outside: "Outside | None" = None
    """Columns of the output that come from below the cut; None: there are none."""

    def __post_init__(self) -> None:
        self._dtypes: dict[bool, torch.dtype] = {}
        """Type of the activations as the trunk computes them, with and without autocast."""
        self._skips = [_Skip(module) for module in self.skipped]

    def below(self, inputs: Inputs) -> Inputs:
        """Run the lower part of the trunk, and return the inputs of `above`.

        Returns:
            `activations` (B, …), and the small inputs of the trunk, such as masks. If the lower part also computes C
            columns of the trunk's output, `outside` (B, C) contains these columns.
        """
        reached: dict[str, Tensor] = {}

        def stop(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            reached[ACTIVATIONS] = first_tensor(args, kwargs)
            if self.outside is None:
                raise _ReachedError

        def complete(wide: Tensor) -> Tensor:
            assert self.outside is not None
            reached[OUTSIDE] = wide[:, self.outside.columns]
            return wide

        with _before(self.module, stop), suppress(_ReachedError), _changed(self.outside, complete) as changed:
            changed(self.trunk(**inputs))
        self._dtypes[_autocasts(reached[ACTIVATIONS])] = reached[ACTIVATIONS].dtype
        small = {name: value for name, value in inputs.items() if name not in self.left_out}
        return {**small, **reached}

    def above(self, inputs: Inputs) -> Tensor:
        """Run the upper part on the result of `below`, and return the trunk's output (B, W)."""
        stored = inputs[ACTIVATIONS]
        activations = stored.to(self._dtypes.get(_autocasts(stored), stored.dtype))
        given = {name: value for name, value in inputs.items() if name not in (ACTIVATIONS, OUTSIDE)}
        for name, (shape, dtype) in self.left_out.items():
            given[name] = _nan(dtype, activations.device).expand(len(activations), *shape)

        def inject(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            return with_first(activations, args, kwargs)

        def complete(wide: Tensor) -> Tensor:
            assert self.outside is not None
            columns = self.outside.columns.to(wide.device)
            filled = wide.new_zeros(wide.shape)
            filled[:, columns] = inputs[OUTSIDE].to(wide.dtype)
            return torch.where(columns, filled, wide)

        with _before(self.module, inject), _replaced(self._skips), _changed(self.outside, complete) as changed:
            return changed(self.trunk(**given))


@dataclass(frozen=True)
class Outside:
    """Columns of features (B, W) that the lower part of a trunk computes, e.g. from pooled early layers."""

    module: nn.Module | None
    """Module whose input contains the features; None: the features are the output of the trunk."""
    columns: Bool[Tensor, " W"]


@contextmanager
def _before(module: nn.Module, hook: Callable[..., Any]) -> Iterator[None]:
    """Context in which `hook` runs before each call of a module. The hook may replace the module's arguments."""
    handle = module.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _changed(outside: Outside | None, change: Callable[[Tensor], Tensor]) -> Iterator[Callable[[Tensor], Tensor]]:
    """Context that applies `change` to the features with the columns of `outside`.

    If these features are the trunk's output, the caller must pass the output through the yielded function.
    """
    if outside is None or outside.module is None:
        yield change if outside is not None else lambda output: output
        return

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return with_first(change(first_tensor(args, kwargs)), args, kwargs)

    with _before(outside.module, hook):
        yield lambda output: output


class _Skip:
    """Replacement for a module's `forward` that returns placeholders with the right shapes.

    The original `forward` runs once for each combination of input shapes, to find these shapes.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self._forward = module.forward
        self._outputs: dict[Any, tuple[list[Any], Any]] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        leaves = tree_flatten((args, kwargs))[0]
        device = next((leaf.device for leaf in leaves if isinstance(leaf, Tensor)), torch.device("cpu"))
        key = (*map(_described, leaves), torch.is_autocast_enabled(device.type))
        if key not in self._outputs:
            with torch.no_grad():
                values, structure = tree_flatten(self._forward(*args, **kwargs))
            self._outputs[key] = [_Blank(v) if isinstance(v, Tensor) else v for v in values], structure
        values, structure = self._outputs[key]
        return tree_unflatten([v.placeholder() if isinstance(v, _Blank) else v for v in values], structure)


class _Blank:
    """Shape, type and device of a tensor, from which a placeholder is made."""

    def __init__(self, tensor: Tensor) -> None:
        if not tensor.is_floating_point():
            raise NoCutError("its frozen layers output integers")
        self.shape, self.dtype, self.device = tensor.shape, tensor.dtype, tensor.device

    def placeholder(self) -> Tensor:
        """Return a tensor of NaN that takes no memory."""
        return _nan(self.dtype, self.device).expand(self.shape)


def _autocasts(tensor: Tensor) -> bool:
    return torch.is_autocast_enabled(tensor.device.type)


def _nan(dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.full((), float("nan") if dtype.is_floating_point else 0, dtype=dtype, device=device)


def _described(leaf: object) -> object:
    return (leaf.shape, leaf.dtype) if isinstance(leaf, Tensor) else repr(leaf) if _is_plain(leaf) else type(leaf)


def _is_plain(leaf: object) -> bool:
    return leaf is None or isinstance(leaf, bool | int | float | str)


@contextmanager
def _replaced(skips: Sequence[_Skip]) -> Iterator[None]:
    """Context in which the given modules return placeholders without computing."""
    for skip in skips:
        skip.module.forward = skip
    try:
        yield
    finally:
        for skip in skips:
            del skip.module.forward


def is_activation(value: object) -> bool:
    """Return whether a value is a float tensor (B, …) with at least two dimensions."""
    return isinstance(value, Tensor) and value.is_floating_point() and value.ndim > 1


def first_tensor(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    """Return the first float tensor (B, …) among the arguments of a module."""
    return next(value for value in (*args, *kwargs.values()) if is_activation(value))


def with_first(
    activations: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Replace the first float tensor (B, …) among the arguments of a module with `activations`."""
    for position, value in enumerate(args):
        if is_activation(value):
            return (*args[:position], activations, *args[position + 1 :]), kwargs
    name = next(name for name, value in kwargs.items() if is_activation(value))
    return args, {**kwargs, name: activations}
