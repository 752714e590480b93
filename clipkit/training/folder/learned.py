"""Tensors that training changes and that a checkpoint contains."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from torch import Tensor

from clipkit.training.folder.average import Average
from clipkit.training.folder.checkpoint import read_tensors
from clipkit.training.weights import Weights

MODEL, OPTIMIZER, AVERAGE = "model", "optimizer", "average"


class Learned:
    """Trainable weights, buffers, averaged weights and the optimizer's state; frozen weights come from the base model.

    Args:
        weights: the trained weights, with the buffers of their model, because BatchNorm may change its buffers.
        optimizer: the optimizer of the trainable parameters.
        ema: decay of the averaged weights; None: no averaging.
    """

    def __init__(self, weights: Weights, optimizer: torch.optim.Optimizer, ema: float | None) -> None:
        self.weights = weights
        self.optimizer = optimizer
        self.average = Average(weights.trained, ema) if ema is not None else None
        names = {id(parameter): name for name, parameter in weights.trained.items()}
        groups = optimizer.param_groups
        self._names = [names[id(parameter)] for group in groups for parameter in group["params"]]
        """Names of the parameters in the order of the optimizer's state."""

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Return the tensors of a checkpoint, by file and name.

        All processes must call this method together. The result is complete only on the main process.
        """
        weights, state = self.weights, self.optimizer.state_dict()["state"]
        flat = {
            f"{index}.{key}": weights.to_file(self._names[index], value)
            for index, values in state.items()
            for key, value in values.items()
        }
        files = {MODEL: {name: weights.to_file(name, value) for name, value in self._of_model()}, OPTIMIZER: flat}
        if self.average is not None:
            files[AVERAGE] = {name: weights.to_file(name, value) for name, value in self.average.values.items()}
        return files

    def load(self, checkpoint: Path) -> None:
        """Restore all tensors from a checkpoint."""
        self._load_weights(checkpoint)
        indices: dict[int, dict[str, Tensor]] = {}
        for name, value in read_tensors(checkpoint, OPTIMIZER).items():
            index, _, key = name.partition(".")
            indices.setdefault(int(index), {})[key] = self.weights.from_file(self._names[int(index)], value)
        current = self.optimizer.state_dict()
        self.optimizer.load_state_dict({"state": indices, "param_groups": current["param_groups"]})
        if self.average is not None:
            self.average.load(self._parts(checkpoint, AVERAGE))

    def load_chosen(self, checkpoint: Path) -> None:
        """Load the averaged weights from a checkpoint; without averaging, load the trained weights."""
        self._load_weights(checkpoint)
        if self.average is not None:
            averaged = self._parts(checkpoint, AVERAGE)
            with torch.no_grad():
                for name, parameter in self.weights.trained.items():
                    parameter.copy_(averaged[name])

    def keep_chosen(self) -> None:
        """Set the model permanently to the averaged weights; without averaging, do nothing."""
        if self.average is not None:
            self.average.keep()

    @contextmanager
    def chosen(self) -> Iterator[None]:
        """Return a context in which the model has the averaged weights or, without averaging, the trained weights.

        In this context, the model is complete on each process.
        """
        with self.average.applied() if self.average is not None else nullcontext(), self.weights.model_is_whole():
            yield

    def _parts(self, checkpoint: Path, file: str) -> dict[str, Tensor]:
        """Read the tensors of a file; with `train.shard`, return only the rows of each tensor that this process has."""
        return {name: self.weights.from_file(name, value) for name, value in read_tensors(checkpoint, file).items()}

    def _load_weights(self, checkpoint: Path) -> None:
        saved = self._parts(checkpoint, MODEL)
        for name, value in self._of_model():
            value.copy_(saved[name])

    def _of_model(self) -> Iterator[tuple[str, Tensor]]:
        """Yield each tensor of the model only once, because safetensors does not accept shared tensors."""
        for name, parameter in self.weights.trained.items():
            yield name, parameter.detach()
        model = self.weights.model
        parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
        for name, value in model.state_dict().items():
            if name not in parameters:
                yield name, value
