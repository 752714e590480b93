"""What a run has learned: the tensors that a checkpoint holds."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn

from clipkit.training.folder.average import Average
from clipkit.training.folder.checkpoint import read_tensors

MODEL, OPTIMIZER, AVERAGE = "model", "optimizer", "average"


class Learned:
    """Weights, their average, and the optimiser's state; not the frozen weights, which come from where they came.

    Args:
        model: its parameters that learn, and its buffers, which may change as BatchNorm's do.
        optimizer: over these parameters.
        ema: decay of the averaged weights; None for none.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, ema: float | None) -> None:
        self.model = model
        self.optimizer = optimizer
        self.average = Average(model, ema) if ema is not None else None

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """By file and name."""
        state = self.optimizer.state_dict()["state"]
        flat = {f"{index}.{key}": value for index, own in state.items() for key, value in own.items()}
        files = {MODEL: dict(self._of_model()), OPTIMIZER: flat}
        if self.average is not None:
            files[AVERAGE] = self.average.values
        return files

    def load(self, checkpoint: Path) -> None:
        """Everything as it was at the checkpoint."""
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
        """The weights that were evaluated at the checkpoint: averaged ones where there are any."""
        self._load_weights(checkpoint)
        if self.average is not None:
            self.model.load_state_dict(read_tensors(checkpoint, AVERAGE), strict=False)

    def chosen(self) -> AbstractContextManager[None]:
        """Within, the model has the weights that are evaluated and kept."""
        return self.average.applied() if self.average is not None else nullcontext()

    def _load_weights(self, checkpoint: Path) -> None:
        saved = read_tensors(checkpoint, MODEL)
        for name, value in self._of_model():
            value.copy_(saved[name])

    def _of_model(self) -> Iterator[tuple[str, Tensor]]:
        """Each tensor once, as safetensors wants it, also where a model has two names for it."""
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                yield name, parameter.detach()
        parameters = {name for name, _ in self.model.named_parameters(remove_duplicate=False)}
        for name, value in self.model.state_dict().items():
            if name not in parameters:
                yield name, value
