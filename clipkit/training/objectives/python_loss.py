"""Losses that a user writes as Python functions."""

import hashlib
import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from clipkit.errors import RecipeError, TrainingError
from clipkit.images import kind_of
from clipkit.training.objectives.objective import Gathered, Scalars, Value

_OPTIONAL = ("scale", "bias", "image_ids", "caption_ids", "rows")


def checked_loss(loss: Callable[..., Any]) -> list[str]:
    """Check a loss function, and return the names of its arguments after the image and text features.

    Raises:
        RecipeError: the loss is not a function, needs unknown arguments, or has trainable parameters.
    """
    if not callable(loss):
        raise RecipeError(
            f"loss is {kind_of(loss)}, not a function; give a function loss(image_features, text_features, scale)"
        )
    if isinstance(loss, nn.Module) and any(parameter.requires_grad for parameter in loss.parameters()):
        raise RecipeError(
            f"the loss {type(loss).__name__} has parameters, which clipkit does not train; use a function of "
            "the features and the model's logit scale, or freeze the parameters"
        )
    parameters = list(inspect.signature(loss).parameters.values())
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    others = [p for p in parameters if p not in positional[:2] and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    named = [p.name for p in others if p.name in _OPTIONAL and p.kind != p.POSITIONAL_ONLY]
    unknown = [p.name for p in others if p.name not in named and p.default is p.empty]
    if len(positional) < 2 or unknown:
        what = f"needs an argument {unknown[0]}" if unknown else "takes fewer than two arguments"
        raise RecipeError(
            f"the loss {_name(loss)} {what}; use the arguments image_features, text_features and, if needed, "
            f"{', '.join(_OPTIONAL)}, by these names"
        )
    return named


def value_of_loss(loss: Callable[..., Any]) -> Value:
    """Convert a loss function to the `value` function of an objective.

    The `value` function computes the part of the loss that belongs to some rows of the batch. A loss with the argument
    `rows` must return the sum of the terms of these rows, divided by the batch size G. Any other loss is computed for
    the whole batch, and multiplied by (number of rows) / G. The parts of all processes sum to the loss of the batch.

    Args:
        loss: function of image features (G, D) and text features (G, D) that returns a scalar. It can also have the
            arguments scale, bias, image_ids (G,), caption_ids (G,) and rows.

    Raises:
        RecipeError: the loss is not suitable (see `checked_loss`).

    Example:
        >>> import torch
        >>> value = value_of_loss(lambda image, text: (image - text).square().mean())
        >>> features = {"image_features": torch.ones(4, 2), "text_features": torch.zeros(4, 2)}
        >>> [value(features, {}, rows).item() for rows in (slice(0, 4), slice(0, 1))]
        [1.0, 0.25]
    """
    names = checked_loss(loss)

    def value(gathered: Gathered, scalars: Scalars, rows: slice) -> Tensor:
        image, text = gathered["image_features"], gathered["text_features"]
        available: dict[str, Any] = {**gathered, **scalars, "rows": rows}
        arguments = {name: available[name] for name in names if name in available}
        found = loss(image, text, **arguments)
        if not isinstance(found, Tensor) or found.numel() != 1:
            kind = f"a tensor of shape {tuple(found.shape)}" if isinstance(found, Tensor) else kind_of(found)
            raise TrainingError(f"the loss {_name(loss)} returned {kind}; return a tensor with one number")
        share = 1.0 if "rows" in names else (rows.stop - rows.start) / len(image)
        return found.reshape(()) * share

    return value


def code_hash(function: object) -> str:
    """Return a hash of the code and constants of a function, without variables from outside of the function."""
    is_function = hasattr(function, "__code__")
    call: Any = (
        function if is_function else type(function).__dict__.get("forward", vars(type(function)).get("__call__"))
    )
    digest = hashlib.sha256(getattr(function, "__qualname__", type(function).__qualname__).encode())
    waiting = [getattr(call, "__code__", None)]
    while waiting:
        code = waiting.pop()
        if code is None:
            continue
        digest.update(code.co_code + repr(code.co_names).encode())
        plain = [constant for constant in code.co_consts if not hasattr(constant, "co_code")]
        digest.update(repr(plain).encode())
        waiting += [constant for constant in code.co_consts if hasattr(constant, "co_code")]
    return digest.hexdigest()


def _name(loss: object) -> str:
    return getattr(loss, "__qualname__", type(loss).__name__)
