"""Weights that training changes: where they are in memory, their gradients, and their values in files."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext

import torch
from accelerate import Accelerator
from jaxtyping import Float
from torch import Tensor, nn

from clipkit.training.model import are_finite


class Weights:
    """Trained weights of a model that is whole on each process.

    `Shards` is the same for a model whose trunks are distributed over the processes.

    Args:
        model: the model.
    """

    is_sharded = False
    """True if this process has only a part of each trunk."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
        """Trained parameters by their name in the model; a distributed parameter is the part of this process."""

    def collect_gradients(self) -> None:
        """Move the gradients of the batch to the parameters in `trained`."""

    def sum_of_squares(self, values: Mapping[str, Tensor]) -> Float[Tensor, ""]:
        """Return the sum of all squared numbers of the whole model. All processes call it together.

        Args:
            values: this process's values, by the names of their parameters; at least one.
        """
        return torch.stack(torch._foreach_norm(list(values.values()))).square().sum()

    def clip_gradients(self, accelerator: Accelerator, most: float) -> Float[Tensor, ""]:
        """Scale the gradients of the batch so that their norm is at most `most`; return the norm before."""
        norm: Tensor = accelerator.clip_grad_norm_(list(self.trained.values()), most)
        return norm

    def are_finite(self) -> bool:
        """Return whether all trained weights are finite, on all processes."""
        return are_finite(list(self.trained.values()))

    def to_file(self, name: str, value: Tensor) -> Tensor:
        """Return the tensor that the main process writes to a checkpoint. All processes call it together.

        Args:
            name: name of the parameter.
            value: this process's values, of the parameter, of its average or of its moments.
        """
        return value

    def from_file(self, name: str, value: Tensor) -> Tensor:
        """Return this process's values of a tensor of a checkpoint; the opposite of `to_file`."""
        return value

    def model_is_whole(self) -> AbstractContextManager[None]:
        """Return a context in which the model has all its weights on each process, for encoding or saving."""
        return nullcontext()

    def end(self) -> None:
        """Give each process the complete model permanently, after the last step."""
