"""Averaged weights: an exponential moving average of the trainable parameters."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Average:
    """Exponential moving average (EMA) of the trainable parameters, including the logit scale.

    After update number t, counted from 1, the average becomes d · average + (1 − d) · weights. Here d is
    min(decay, (1 + t) / (10 + t)), so that the initial weights of a tower from scratch soon lose their influence.

    Args:
        trained: the trainable parameters by name; the average starts with their current values.
        decay: upper limit of d, below 1.

    Example:
        >>> layer = nn.Linear(1, 1, bias=False)
        >>> average = Average(dict(layer.named_parameters()), 0.5)
        >>> start = layer.weight.item()
        >>> _ = layer.weight.data.add_(11.0)
        >>> average.update(1)   # d = 2 / 11
        >>> round(average.values["weight"].item() - start, 4)
        9.0
    """

    def __init__(self, trained: Mapping[str, nn.Parameter], decay: float) -> None:
        self.decay = decay
        self._trainable = dict(trained)
        self.values: dict[str, Tensor] = {name: value.detach().clone() for name, value in self._trainable.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Add the weights after update number `step` to the average."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.values.values()), list(self._trainable.values()), 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Return a context in which the model has the averaged weights."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def keep(self) -> None:
        """Set the weights of the model permanently to their average."""
        for name, parameter in self._trainable.items():
            parameter.copy_(self.values[name])

    def load(self, values: dict[str, Tensor]) -> None:
        """Restore a saved average."""
        self.values = {
            name: values[name].detach().to(old.device, old.dtype, copy=True) for name, old in self.values.items()
        }

    def _swap(self) -> None:
        for name, parameter in self._trainable.items():
            parameter.data, self.values[name] = self.values[name], parameter.data
