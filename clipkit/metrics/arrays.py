"""Decorator that lets the metrics accept NumPy arrays and nested lists instead of tensors."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, get_args

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")


def takes_arrays(function: Callable[P, R]) -> Callable[P, R]:
    """Let a function accept NumPy arrays and nested lists of numbers in place of tensors.

    Only arguments whose annotation is a tensor type are converted.

    Raises:
        ValueError: the returned function is called with an argument that is not an array of numbers.

    Example:
        >>> takes_arrays(lambda x: x)([1, 2])  # not converted, because x has no annotation
        [1, 2]
    """
    signature = inspect.signature(function)
    names = [name for name, parameter in signature.parameters.items() if _is_tensor(parameter.annotation)]

    @functools.wraps(function)
    def converted(*args: P.args, **kwargs: P.kwargs) -> R:
        bound = signature.bind(*args, **kwargs)
        for name in names:
            if name in bound.arguments:
                bound.arguments[name] = _tensor(name, bound.arguments[name])
        return function(*bound.args, **bound.kwargs)

    return converted


def _is_tensor(annotation: Any) -> bool:
    return getattr(annotation, "array_type", None) is Tensor or any(map(_is_tensor, get_args(annotation)))


def _tensor(name: str, value: Any) -> Any:
    if value is None or isinstance(value, Tensor):
        return value
    try:
        tensor = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"{name} is a {type(value).__name__} that cannot be converted to numbers ({reason}); give a tensor or an "
            "array"
        ) from None
    is_index = not tensor.is_floating_point() and tensor.dtype != torch.bool
    return tensor.long() if is_index else tensor
