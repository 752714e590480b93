"""Tensors that training changes and that a checkpoint contains."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn

from clipkit.training.folder.average import Average
from clipkit.training.folder.checkpoint import read_tensors

MODEL, OPTIMIZER, AVERAGE = "model", "optimizer", "average"


class Learned:
    """Trainable weights, buffers, averaged weights and the optimizer's state; frozen weights come from the base model.

    Args:
        model: the model; its buffers are included because training may change them (BatchNorm).
        optimizer: the optimizer of the trainable parameters.
        ema: decay of the averaged weights; None: no averaging.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, ema: float | None) -> None:
        self.model = model
        self.optimizer = optimizer
        self.average = Average(model, ema) if ema is not None else None

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Return the tensors of a checkpoint by file and name."""
        state = self.optimizer.state_dict()["state"]
        flat = {f"{index}.{key}": value for index, values in state.items() for key, value in values.items()}
        files = {MODEL: dict(self._of_model()), OPTIMIZER: flat}
        if self.average is not None:
            files[AVERAGE] = self.average.values
        return files

    def load(self, checkpoint: Path) -> None:
        """Restore all tensors from a checkpoint."""
        self._load_weights(checkpoint)
        indices: dict[int, dict[str, Tensor]] = {}
        for name, value in read_tensors(checkpoint, OPTIMIZER).items():
            index, _, key = name.partition(".")
            indices.setdefault(int(index), {})[key] = value
        current = self.optimizer.state_dict()
        self.optimizer.load_state_dict({"state": indices, "param_groups": current["param_groups"]})
        if self.average is not None:
            self.average.load(read_tensors(checkpoint, AVERAGE))

    def load_chosen(self, checkpoint: Path) -> None:
        """Load the weights that the run evaluates: the averaged weights of a checkpoint if it has them."""
        self._load_weights(checkpoint)
        if self.average is not None:
            self.model.load_state_dict(read_tensors(checkpoint, AVERAGE), strict=False)

    def chosen(self) -> AbstractContextManager[None]:
        """Return a context in which the model has the weights to evaluate and save.

        These are the averaged weights if the run has them.
        """
        return self.average.applied() if self.average is not None else nullcontext()

    def _load_weights(self, checkpoint: Path) -> None:
        saved = read_tensors(checkpoint, MODEL)
        for name, value in self._of_model():
            value.copy_(saved[name])

    def _of_model(self) -> Iterator[tuple[str, Tensor]]:
        """Yield each tensor once, even if it has two names in the model: safetensors does not accept shared tensors."""
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                yield name, parameter.detach()
        parameters = {name for name, _ in self.model.named_parameters(remove_duplicate=False)}
        for name, value in self.model.state_dict().items():
            if name not in parameters:
                yield name, value
