"""Cut of a trunk into a frozen lower part, which runs once per input, and an upper part, which runs in each step.

The lower part ends where the first module with a trained parameter gets its input, the activations. Both parts run the
trunk's own code: below the cut it stops at that module; above it the modules of the lower part return placeholders at
once, and the module gets the stored activations. Placeholders are NaN, so that a trunk that uses them in any other way
cannot train silently: `find_cut` refuses it, because features or gradients differ from those of the whole trunk.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

ACTIVATIONS = "activations"
"""Name of the input with the stored activations at the cut of a trunk, used instead of pixels or of the lower part."""

Inputs = dict[str, Tensor]

# Largest difference from the whole trunk, as a share of the norm: rounding only.
_TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}
# Shares of the weights that run before the first trained one: what a lower part must hold to be worth storing, and from
# which an outer module, such as a block, is preferred to its parts.
_WORTH, _MOST = 0.5, 0.9


class NoCutError(Exception):
    """A trunk cannot be cut; the message is the reason."""


class _ReachedError(Exception):
    """The trunk reached the cut."""


@dataclass(eq=False)
class Cut:
    """Cut of a trunk, made by `find_cut`.

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
    """True if activations (B, L, …) have one row per token, and those of padding are not needed."""
    dtype: torch.dtype = torch.float32
    """Type of the activations as the trunk computes them."""
    _skips: list["_Skip"] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._skips = [_Skip(module) for module in self.skipped]

    def below(self, inputs: Inputs) -> Inputs:
        """Run the lower part; return the activations (B, …) and the small inputs that the upper part also needs."""
        reached: list[Tensor] = []

        def stop(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            reached.append(_first(args, kwargs))
            raise _ReachedError

        hook = self.module.register_forward_pre_hook(stop, with_kwargs=True)
        try:
            self.trunk(**inputs)
        except _ReachedError:
            pass
        finally:
            hook.remove()
        self.dtype = reached[0].dtype
        small = {name: value for name, value in inputs.items() if name not in self.left_out}
        return {**small, ACTIVATIONS: reached[0]}

    def above(self, inputs: Inputs) -> Tensor:
        """Run the upper part from what `below` returned; return the output (B, W) of the trunk."""
        activations = inputs[ACTIVATIONS].to(self.dtype)
        given = {name: value for name, value in inputs.items() if name != ACTIVATIONS}
        for name, (shape, dtype) in self.left_out.items():
            given[name] = _nan(dtype, activations.device).expand(len(activations), *shape)

        def inject(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            return _with_first(activations, args, kwargs)

        hook = self.module.register_forward_pre_hook(inject, with_kwargs=True)
        try:
            with _replaced(self._skips):
                output: Tensor = self.trunk(**given)
        finally:
            hook.remove()
        return output


def find_cut(trunk: nn.Module, inputs: Inputs, may_cut_padding: bool = False) -> Cut:
    """Return the cut of a trunk before its first trained parameter.

    Args:
        trunk: trunk with the parameters that are trained; it can have any structure.
        inputs: inputs of a few rows (B, …), in the trunk's precision, texts of different lengths. Features and
            gradients above the cut are compared with those of the whole trunk on these rows.
        may_cut_padding: whether padding has no effect on the features, so that only activations of tokens are needed.

    Raises:
        NoCutError: nothing below the first trained parameter is frozen, or the parts do not compute exactly the same
            features and gradients as the whole trunk.
    """
    if any(module._compiled_call_impl is not None for module in trunk.modules()):
        raise NoCutError("train.compile compiles it as a whole")
    calls = _calls(trunk, inputs)
    names = {module: name for name, module in trunk.named_modules()}
    first = _first_trained(trunk, calls)
    before = _before(trunk, calls, calls[first][0][0])
    if not _weights(before):
        raise NoCutError("nothing before its first trained weight is frozen")
    if any(_is_random(module) for module in before):
        raise NoCutError("its frozen part has dropout, or BatchNorm that learns")
    whole = _of_whole(trunk, inputs)
    left_out = {name: (tuple(value.shape[1:]), value.dtype) for name, value in inputs.items() if value.ndim > 2}
    for module, skipped in _candidates(trunk, calls, names[first], _weights(before)):
        cut = Cut(trunk, names[module], module, skipped, left_out)
        stored = _stored(cut, inputs)
        if stored is None:
            continue
        cut = _without_needed(cut, stored, whole[0])
        if _weights(cut.skipped) < _WORTH * _weights(before):
            continue
        if may_cut_padding and "attention_mask" in inputs:
            kept = _without_padding(stored)
            cut.of_tokens = True
        else:
            kept = stored
        if kept is not None and _equal(_of_cut(cut, kept), whole):
            return cut
    raise NoCutError("its frozen part cannot be separated exactly from the rest")


def _calls(trunk: nn.Module, inputs: Inputs) -> dict[nn.Module, list[tuple[int, int]]]:
    """Return for each module when its calls began and ended."""
    clock = iter(range(1 << 60))
    calls: dict[nn.Module, list[tuple[int, int]]] = {}
    began: dict[nn.Module, list[int]] = {}

    def begin(module: nn.Module, _: Any) -> None:
        began.setdefault(module, []).append(next(clock))

    def end(module: nn.Module, _: Any, __: Any) -> None:
        calls.setdefault(module, []).append((began[module].pop(), next(clock)))

    hooks = [module.register_forward_pre_hook(begin) for module in trunk.modules()]
    hooks += [module.register_forward_hook(end) for module in trunk.modules()]
    try:
        with torch.no_grad():
            trunk(**inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return calls


def _first_trained(trunk: nn.Module, calls: Mapping[nn.Module, Sequence[tuple[int, int]]]) -> nn.Module:
    """Return the first module that runs with a trained parameter of its own.

    A module that contains others with trained parameters does not count: its own, e.g. the final projection of
    open_clip, may be used at the end. If they are used earlier, gradients differ, and the cut is refused.
    """
    trained = [m for m in calls if any(p.requires_grad for p in m.parameters(recurse=False))]
    holding = [m for m in trained if not any(other is not m and other in set(m.modules()) for other in trained)]
    if not holding:
        raise NoCutError("no module of it has a trained weight")
    return min(holding, key=lambda module: calls[module][0][0])


def _before(trunk: nn.Module, calls: Mapping[nn.Module, Sequence[tuple[int, int]]], time: int) -> list[nn.Module]:
    """Return the modules all of whose calls ended before a time, without modules inside of these."""
    ended = {m for m in calls if all(end < time for _, end in calls[m])}
    inside = {part for module in ended for part in module.modules() if part is not module}
    return [module for module in trunk.modules() if module in ended and module not in inside]


def _candidates(
    trunk: nn.Module, calls: Mapping[nn.Module, Sequence[tuple[int, int]]], name: str, weights: int
) -> list[tuple[nn.Module, list[nn.Module]]]:
    """Return modules at which a cut is worthwhile, with the modules before each: blocks that contain `name` first."""
    path = name.split(".")
    holders = [trunk.get_submodule(".".join(path[:length])) for length in range(1, len(path) + 1)]
    found = [(m, _before(trunk, calls, calls[m][0][0])) for m in holders if len(calls.get(m, ())) == 1]
    shares = {module: _weights(before) / weights for module, before in found}
    worthwhile = [each for each in found if shares[each[0]] >= _WORTH]
    return sorted(worthwhile, key=lambda each: -min(shares[each[0]], _MOST))  # stable: outer modules first


def _weights(modules: Sequence[nn.Module]) -> int:
    """Return the number of weights that take part in products: without embeddings."""
    parts = {part for module in modules for part in module.modules() if not isinstance(part, nn.Embedding)}
    return sum(weight.numel() for part in parts for weight in part.parameters(recurse=False))


def _is_random(module: nn.Module) -> bool:
    random = (nn.modules.dropout._DropoutNd, nn.modules.batchnorm._BatchNorm)
    return any(part.training and isinstance(part, random) for part in module.modules())


def _stored(cut: Cut, inputs: Inputs) -> Inputs | None:
    """Return the output of the lower part, or None if it is not one tensor with a row per input."""
    rows = len(next(iter(inputs.values())))
    try:
        with torch.no_grad():
            stored = cut.below(inputs)
    except (IndexError, StopIteration):  # the module was not reached, or gets no tensor
        return None
    return stored if stored[ACTIVATIONS].ndim > 1 and len(stored[ACTIVATIONS]) == rows else None


def _without_needed(cut: Cut, stored: Inputs, expected: Tensor) -> Cut:
    """Return the cut without skipped modules whose output something else needs, e.g. rotary positions."""
    if _close(_features(cut, stored), expected):
        return cut

    def only(modules: Sequence[nn.Module]) -> Cut:
        return Cut(cut.trunk, cut.name, cut.module, modules, cut.left_out, cut.of_tokens, cut.dtype)

    def needed(modules: Sequence[nn.Module]) -> list[nn.Module]:
        if _close(_features(only(modules), stored), expected):
            return []
        half = len(modules) // 2
        return [*needed(modules[:half]), *needed(modules[half:])] if half else list(modules)

    used = needed(cut.skipped)
    return only([module for module in cut.skipped if module not in used])


@torch.no_grad()
def _features(cut: Cut, stored: Inputs) -> Tensor | None:
    try:
        return cut.above(stored)
    except Exception:  # a trunk may fail on placeholders in any way: it is then not cut
        return None


def _without_padding(stored: Inputs) -> Inputs | None:
    """Return the stored inputs with zeros instead of the activations of padding; None if they are not per token."""
    mask, activations = stored.get("attention_mask"), stored[ACTIVATIONS]
    if mask is None or activations.ndim != 3 or activations.shape[:2] != mask.shape:
        return None
    return {**stored, ACTIVATIONS: activations * mask.bool().unsqueeze(-1)}


def _of_whole(trunk: nn.Module, inputs: Inputs) -> tuple[Tensor, list[Tensor | None]]:
    return _with_gradients(trunk, lambda: trunk(**inputs))


def _of_cut(cut: Cut, stored: Inputs) -> tuple[Tensor, list[Tensor | None]] | None:
    try:
        return _with_gradients(cut.trunk, lambda: cut.above(stored))
    except Exception:
        return None


def _with_gradients(trunk: nn.Module, run: Callable[[], Tensor]) -> tuple[Tensor, list[Tensor | None]]:
    """Return the features and the gradients of a weighted sum of them in the trained parameters."""
    with torch.enable_grad():
        features = run()
        numbers = torch.arange(features.numel(), device=features.device, dtype=features.dtype)
        weights = (numbers * 0.7).cos().view_as(features)  # any fixed weights that differ
        trained = [parameter for parameter in trunk.parameters() if parameter.requires_grad]
        gradients = torch.autograd.grad((features * weights).sum(), trained, allow_unused=True)
    return features.detach(), list(gradients)


def _equal(one: tuple[Tensor, list[Tensor | None]] | None, expected: tuple[Tensor, list[Tensor | None]]) -> bool:
    """Return whether features and gradients are equal up to rounding; gradients relative to the largest one."""
    if one is None or not _close(one[0], expected[0]):
        return False
    if any((a is None) != (b is None) for a, b in zip(one[1], expected[1], strict=True)):
        return False
    pairs = [(a, b) for a, b in zip(one[1], expected[1], strict=True) if a is not None and b is not None]
    largest = max((float(b.norm()) for _, b in pairs), default=0.0)
    return all(_close(a, b, largest) for a, b in pairs)


def _close(value: Tensor | None, expected: Tensor, norm: float = 0.0) -> bool:
    if value is None or value.shape != expected.shape:
        return False
    tolerance = _TOLERANCE.get(expected.dtype, 1e-2)
    return float((value - expected).norm()) <= tolerance * max(norm, float(expected.norm()))  # False for NaN


class _Skip:
    """Replacement of the forward of a module: returns placeholders with the shapes of the module's output.

    The module itself runs once for each combination of input shapes, to learn these shapes.
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
    """Shape, type and device of a tensor."""

    def __init__(self, tensor: Tensor) -> None:
        if not tensor.is_floating_point():
            raise NoCutError("its frozen part computes whole numbers")
        self.shape, self.dtype, self.device = tensor.shape, tensor.dtype, tensor.device

    def placeholder(self) -> Tensor:
        """Return a tensor of NaN that takes no memory."""
        return _nan(self.dtype, self.device).expand(self.shape)


def _nan(dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.full((), float("nan") if dtype.is_floating_point else 0, dtype=dtype, device=device)


def _described(leaf: object) -> object:
    return (leaf.shape, leaf.dtype) if isinstance(leaf, Tensor) else repr(leaf) if _is_plain(leaf) else type(leaf)


def _is_plain(leaf: object) -> bool:
    return leaf is None or isinstance(leaf, bool | int | float | str)


@contextmanager
def _replaced(skips: Sequence[_Skip]) -> Iterator[None]:
    """Context in which the modules return placeholders."""
    for skip in skips:
        skip.module.forward = skip
    try:
        yield
    finally:
        for skip in skips:
            del skip.module.forward


def _is_activation(value: object) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and value.ndim > 1


def _first(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    return next(value for value in (*args, *kwargs.values()) if _is_activation(value))


def _with_first(
    activations: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of a module with the activations in place of its first tensor."""
    for position, value in enumerate(args):
        if _is_activation(value):
            return (*args[:position], activations, *args[position + 1 :]), kwargs
    name = next(name for name, value in kwargs.items() if _is_activation(value))
    return args, {**kwargs, name: activations}
