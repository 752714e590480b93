"""Trained weights: their memory, their gradients, and their values in checkpoints."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext

import torch
from accelerate import Accelerator
from jaxtyping import Float
from torch import Tensor, nn

from clipkit.training.model import are_finite


class Weights:
    """Trained weights of a model that is complete on each process.

    For a model whose trunks are distributed over the processes, use the subclass `Shards`.
    """

    is_sharded = False
    """True if this process has only a part of each trunk."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
        """Trained parameters by their name in the model; a distributed parameter is the part of this process."""

    def collect_gradients(self) -> None:
        """Move the gradients of the batch to the parameters in `trained`; only the subclass `Shards` needs this."""

    def sum_of_squares(self, values: Mapping[str, Tensor]) -> Float[Tensor, ""]:
        """Return the sum of the squares of all values, over all processes.

        All processes must call this method together.

        Args:
            values: this process's values, e.g. gradients, by parameter name; at least one.
        """
        return torch.stack(torch._foreach_norm(list(values.values()))).square().sum()

    def clip_gradients(self, accelerator: Accelerator, most: float) -> Float[Tensor, ""]:
        """Scale the gradients so that their norm is at most `most`, and return their norm before scaling."""
        norm: Tensor = accelerator.clip_grad_norm_(list(self.trained.values()), most)
        return norm

    def are_finite(self) -> bool:
        """Return whether all trained weights are finite, on all processes."""
        return are_finite(list(self.trained.values()))

    def to_file(self, name: str, value: Tensor) -> Tensor:
        """Return the tensor that the main process writes to a checkpoint.

        All processes must call this method together.

        Args:
            value: this process's values of the parameter, of its average or of one of its moments.
        """
        return value

    def from_file(self, name: str, value: Tensor) -> Tensor:
        """Return this process's part of a tensor from a checkpoint; the inverse of `to_file`."""
        return value

    def model_is_whole(self) -> AbstractContextManager[None]:
        """Return a context in which the model has all its weights on each process, for encoding or saving.

        All processes must enter the context together.
        """
        return nullcontext()

    def end(self) -> None:
        """Make the model permanently complete on each process, after the last step."""
