"""Search for a module before which a trunk can be cut into a frozen and a trained part."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from clipkit.models.cut import ACTIVATIONS, Cut, Inputs, NoCutError, Outside, first_tensor, is_activation

# Largest difference from the whole trunk that rounding can cause, as a share of the norm.
_TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}
# Shares of the weights that are in the lower part: the smallest share for which storing saves enough time, and the
# share from which a cut before an outer module, such as a block, is preferred to a cut inside this module.
_WORTH, _MOST = 0.5, 0.9


def find_cut(trunk: nn.Module, inputs: Inputs, may_cut_padding: bool = False) -> Cut:
    """Split a trunk into a frozen lower part and an upper part with all trained parameters.

    A cut must pass a test: for `inputs`, features and gradients must equal those of the whole trunk.

    Args:
        trunk: trunk of any structure. The trained parameters have `requires_grad`.
        inputs: inputs (B, …) of a few images or texts, in the trunk's precision. Texts must have different lengths.
        may_cut_padding: True if padding does not affect the features. The activations of padding are then not needed.

    Raises:
        NoCutError: the trunk has no trained weights or is compiled, the frozen part has no weights or changes in
            training (dropout, BatchNorm), or no cut passes the test.
    """
    if any(module._compiled_call_impl is not None for module in trunk.modules()):
        raise NoCutError("train.compile compiles it as a whole")
    calls = _calls(trunk, inputs)
    names = {module: name for name, module in trunk.named_modules()}
    first = _first_trained(trunk, calls)
    before = _ended_before(trunk, calls, calls[first][0][0])
    if not _weights(before):
        raise NoCutError("no layer comes before its first trained weight")
    if any(_is_random(module) for module in before):
        raise NoCutError("its frozen layers contain dropout or BatchNorm in training mode")
    whole = _of_whole(trunk, inputs)
    left_out = {name: (tuple(value.shape[1:]), value.dtype) for name, value in inputs.items() if value.ndim > 2}
    for module, skipped in _candidates(trunk, calls, names[first], _weights(before)):
        cut = Cut(trunk, names[module], module, skipped, left_out)
        stored = _stored(cut, inputs)
        if stored is None:
            continue
        if (outside := _outside_of(cut, stored, calls)) is not None:
            cut = outside
            stored = _stored(cut, inputs) or stored
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
    raise NoCutError("its frozen and trained layers cannot be separated without a change of the features")


def _calls(trunk: nn.Module, inputs: Inputs) -> dict[nn.Module, list[tuple[int, int]]]:
    """Run a trunk, and return the start and end of each call of each module.

    Times are integers that count the starts and ends of calls.
    """
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
    """Return the first module to run that directly contains a trained parameter.

    A module that contains another such module is ignored, because its direct parameters, e.g. open_clip's final
    projection, are usually used last. If they are used earlier, `find_cut` rejects the cut.
    """
    trained = [m for m in calls if any(p.requires_grad for p in m.parameters(recurse=False))]
    holding = [m for m in trained if not any(other is not m and other in set(m.modules()) for other in trained)]
    if not holding:
        raise NoCutError("it has no trained weights")
    return min(holding, key=lambda module: calls[module][0][0])


def _ended_before(trunk: nn.Module, calls: Mapping[nn.Module, Sequence[tuple[int, int]]], time: int) -> list[nn.Module]:
    """Return the outermost modules whose calls all end before `time`, as counted by `_calls`."""
    ended = {m for m in calls if all(end < time for _, end in calls[m])}
    inside = {part for module in ended for part in module.modules() if part is not module}
    return [module for module in trunk.modules() if module in ended and module not in inside]


def _candidates(
    trunk: nn.Module, calls: Mapping[nn.Module, Sequence[tuple[int, int]]], name: str, weights: int
) -> list[tuple[nn.Module, list[nn.Module]]]:
    """Return the modules before which the trunk can be cut, the best module first.

    The candidates are the module `name` and the modules that contain it. Each one is returned with the modules that end
    before it, and is dropped if these modules contain too few weights.

    Args:
        name: name of the first trained module.
        weights: number of weights before the first trained module.
    """
    path = name.split(".")
    holders = [trunk.get_submodule(".".join(path[:length])) for length in range(1, len(path) + 1)]
    found = [(m, _ended_before(trunk, calls, calls[m][0][0])) for m in holders if len(calls.get(m, ())) == 1]
    shares = {module: _weights(before) / weights for module, before in found}
    worthwhile = [each for each in found if shares[each[0]] >= _WORTH]
    return sorted(worthwhile, key=lambda each: -min(shares[each[0]], _MOST))  # stable: outer modules first


def _weights(modules: Sequence[nn.Module]) -> int:
    """Return the number of weights, not counting embeddings."""
    parts = {part for module in modules for part in module.modules() if not isinstance(part, nn.Embedding)}
    return sum(weight.numel() for part in parts for weight in part.parameters(recurse=False))


def _is_random(module: nn.Module) -> bool:
    random = (nn.modules.dropout._DropoutNd, nn.modules.batchnorm._BatchNorm)
    return any(part.training and isinstance(part, random) for part in module.modules())


def _stored(cut: Cut, inputs: Inputs) -> Inputs | None:
    """Return the result of `cut.below`, or None if its activations do not have one row per input."""
    rows = len(next(iter(inputs.values())))
    try:
        with torch.no_grad():
            stored = cut.below(inputs)
    except (IndexError, StopIteration):  # the module was not reached, or gets no tensor
        return None
    return stored if stored[ACTIVATIONS].ndim > 1 and len(stored[ACTIVATIONS]) == rows else None


@torch.no_grad()
def _outside_of(cut: Cut, stored: Inputs, calls: Mapping[nn.Module, Sequence[tuple[int, int]]]) -> Cut | None:
    """Return the cut with its field `outside` set, or None if the lower part computes no output columns."""
    start = calls[cut.module][0][0]
    seen: list[tuple[nn.Module | None, Tensor]] = []

    def see(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if any(is_activation(value) for value in (*args, *kwargs.values())):
            seen.append((module, first_tensor(args, kwargs)))

    later = [module for module, times in calls.items() if len(times) == 1 and times[0][0] > start]
    hooks = [module.register_forward_pre_hook(see, with_kwargs=True) for module in later]
    try:
        output = _features(cut, stored)
    finally:
        for hook in hooks:
            hook.remove()
    if output is None:
        return None
    for module, features in (*seen, (None, output)):
        missing = features.isnan()
        columns = missing.all(dim=0)
        if features.ndim == 2 and columns.any() and not columns.all() and torch.equal(missing.any(dim=0), columns):
            return replace(cut, outside=Outside(module, columns))
    return None


def _without_needed(cut: Cut, stored: Inputs, expected: Tensor) -> Cut:
    """Return a cut that still runs frozen modules whose output the upper part needs, e.g. rotary positions.

    The argument `stored` is the result of `cut.below`, and `expected` are the features of the whole trunk.
    """
    if _close(_features(cut, stored), expected):
        return cut

    def only(modules: Sequence[nn.Module]) -> Cut:
        return replace(cut, skipped=modules)

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
    """Return the stored inputs, but with zeros as the activations of padding tokens.

    The result is None if the activations do not have one row per token.
    """
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
    """Return features, and the gradients of their weighted sum with respect to the trained parameters."""
    with torch.enable_grad():
        features = run()
        numbers = torch.arange(features.numel(), device=features.device, dtype=features.dtype)
        weights = (numbers * 0.7).cos().view_as(features)  # fixed weights, different for each feature
        trained = [parameter for parameter in trunk.parameters() if parameter.requires_grad]
        gradients = torch.autograd.grad((features * weights).sum(), trained, allow_unused=True)
    return features.detach(), list(gradients)


def _equal(one: tuple[Tensor, list[Tensor | None]] | None, expected: tuple[Tensor, list[Tensor | None]]) -> bool:
    """Return whether features and gradients are equal up to rounding.

    The tolerance for gradients is relative to the largest gradient.
    """
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
