"""The training step: the gradient of one global batch, however it is cut."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from jaxtyping import Float
from torch import Tensor, nn

from clipkit.data import Batch
from clipkit.errors import TrainingError
from clipkit.models import DualEncoder, Tower
from clipkit.models.encode import channels_last
from clipkit.models.towers import TextTower
from clipkit.processes import Processes
from clipkit.seeds import mix
from clipkit.training.objectives.objective import Gathered, Value

# Captions of similar length are run together even when all fit: the shorter ones carry less padding.
_BUCKET = {"cpu": 16}
_ACCELERATOR_BUCKET = 256


def out_of_memory(error: RuntimeError) -> bool:
    """Whether an accelerator had no room: torch says so in one way, the libraries below it in theirs."""
    return isinstance(error, torch.OutOfMemoryError) or "ALLOC_FAILED" in str(error)


@dataclass(frozen=True)
class Encoder:
    """What makes one kind of features: a tower, or its trunk alone."""

    tower: Tower
    of_trunk: bool = False

    def __call__(self, inputs: dict[str, Tensor]) -> Float[Tensor, "B D"]:
        """Features, not normalised."""
        inputs = self.tower.ready(inputs)
        return self.tower.trunk(**inputs) if self.of_trunk else self.tower(inputs)

    def parameters(self) -> Iterator[nn.Parameter]:
        """Of what it runs."""
        return (self.tower.trunk if self.of_trunk else self.tower).parameters()


class Abandoned(Exception):
    """The step was given up before anything was updated, on all processes: one of them was asked to stop."""


class _TooLarge(Exception):
    """A micro-batch did not fit into some process's memory."""


class Step:
    """Leaves the gradient of the global batch's loss in every parameter, on every process.

    Each process encodes its own rows, all see all features, each counts the loss terms of its own rows, and the
    gradients are summed: the result is that of one process holding the whole batch in one graph. When not all rows
    fit, features are computed without a graph first, and each micro-batch again, with one, once the loss has given
    their gradients (GradCache, Gao et al. 2021); random states are replayed.

    Args:
        model: its towers are run as they are, without a distributed wrapper.
        encoders: what the objective sees, by the names that the batch's inputs have too, in a fixed order.
        value: gathered features to this process's part of the loss.
        processes: who takes part.
        accelerator: mixed precision and the gradient scaler.
        batch_size: pairs in the global batch, G.
        micro_batch_size: rows of this process that are run with a graph at once; halved on all processes when they do
            not fit on one.
        seed: the run's.
        may_split: whether the batch may be split into more micro-batches when it does not fit.
        asked_to_stop: called between micro-batches.
        log: called with one line when the micro-batch becomes smaller.
        on_features: called with the gathered features and the step's number, without gradients.
    """

    def __init__(
        self,
        model: DualEncoder,
        encoders: Mapping[str, Encoder],
        value: Value,
        processes: Processes,
        accelerator: Accelerator,
        batch_size: int,
        micro_batch_size: int,
        seed: int,
        *,
        may_split: bool = True,
        asked_to_stop: Callable[[], bool] = lambda: False,
        log: Callable[[str], None] = lambda message: None,
        on_features: Callable[[Gathered, int], None] = lambda gathered, step: None,
    ) -> None:
        self.model = model
        self.encoders = encoders
        self.value = value
        self.processes = processes
        self.accelerator = accelerator
        self.batch_size = batch_size
        self.micro_batch_size = micro_batch_size
        self.seed = seed
        self.may_split = may_split
        # A tower that learns BatchNorm's statistics, the only one that may not be cut, learns them in the forward pass:
        # a step that has begun has to be finished.
        self.asked_to_stop = asked_to_stop if may_split else lambda: False
        self.log = log
        self.on_features = on_features

    def __call__(self, batch: Batch, step: int) -> Tensor:
        """The loss of the global batch, the same on every process.

        Args:
            batch: this process's rows, `processes.share(batch_size)` of the global batch.
            step: number of the step, which with the seed and the process sets the random state.

        Raises:
            Abandoned: a process was asked to stop; no parameter was changed.
            TrainingError: not even one pair fits into memory.
        """
        while True:
            try:
                return self._gradients(batch, step)
            except _TooLarge:
                pass  # left first, so that what the failed attempt held is free before the next one
            self._halve(step)

    def _gradients(self, batch: Batch, step: int) -> Tensor:
        model, processes = self.model, self.processes
        encodings = {
            name: _Encoding(
                encoder,
                self._parts(encoder.tower, batch.inputs[name]),
                self.accelerator,
                (self.seed, step, processes.index, number),
                self.asked_to_stop,
            )
            for number, (name, encoder) in enumerate(self.encoders.items())
        }
        towers = list(encodings.values())
        everything_fits = len(batch) <= self.micro_batch_size
        with self._agreed():
            for tower in towers:
                # The last micro-batch of all is the first one due in the backward pass: its graph can stay.
                tower.forward(keep=len(tower.parts) if everything_fits else int(tower is towers[-1]))
        ids = torch.stack([batch.image_ids, batch.caption_ids], dim=1).to(towers[0].features.device)
        ids = processes.gather(ids, self.batch_size)
        gathered = {name: processes.gather(own.features, self.batch_size) for name, own in encodings.items()}
        gathered |= {"image_ids": ids[:, 0], "caption_ids": ids[:, 1]}
        scalars = {"scale": model.logit_scale.exp()}
        if model.logit_bias is not None:
            scalars["bias"] = model.logit_bias
        with self._agreed():
            loss = self.value(gathered, scalars, processes.share(self.batch_size))
            with torch.no_grad():
                self.on_features(gathered, step)
        self.accelerator.backward(loss)
        with self._agreed():
            for tower in reversed(towers):
                tower.backward()
        processes.sum_gradients(model.parameters())
        return processes.sum(loss)

    @contextmanager
    def _agreed(self) -> Iterator[None]:
        """Around what each process does by itself: all come out of it, or none."""
        too_large = False
        try:
            yield
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            too_large = True
        except Abandoned:
            pass
        too_large, stop = self.processes.any(too_large, self.asked_to_stop())
        if too_large or stop:
            self.model.zero_grad(set_to_none=True)
            raise Abandoned if stop else _TooLarge

    def _halve(self, step: int) -> None:
        rows = -(-self.batch_size // self.processes.count)
        size = min(self.micro_batch_size, rows)
        if size == 1 or not self.may_split:
            raise TrainingError(
                f"step {step + 1}: out of memory with {size} pair{'s' * (size > 1)} on each process"
                + ("" if self.may_split else ", which BatchNorm's statistics forbid to cut further")
                + "; take a smaller image or model, or train.gradient_checkpointing: true"
            )
        self.micro_batch_size = size // 2
        if torch.accelerator.is_available():
            torch.accelerator.empty_cache()
        self.log(f"step {step + 1}: out of memory; begun again with micro-batches of {size // 2} instead of {size}")

    def _parts(self, tower: Tower, inputs: dict[str, Tensor]) -> list["_Part"]:
        if not isinstance(tower, TextTower) or "attention_mask" not in inputs:
            order = torch.arange(len(next(iter(inputs.values()))))
            return [_Part(rows, _take(inputs, rows)) for rows in order.split(self.micro_batch_size)]
        lengths = inputs["attention_mask"].sum(dim=1)
        bucket = min(self.micro_batch_size, _BUCKET.get(lengths.device.type, _ACCELERATOR_BUCKET))
        parts = lengths.argsort(stable=True).cpu().split(bucket)
        return [_Part(rows, tower.cut_padding(_take(inputs, rows))) for rows in parts]


@dataclass
class _Part:
    """A micro-batch of one tower: its rows in the slice, its inputs, and its features once computed."""

    rows: Tensor
    inputs: dict[str, Tensor]
    features: Tensor | None = None


class _Encoding:
    """One tower over its micro-batches: features first, gradients later."""

    def __init__(
        self,
        encoder: Encoder,
        parts: Sequence[_Part],
        accelerator: Accelerator,
        seeds: tuple[int, ...],
        asked_to_stop: Callable[[], bool],
    ) -> None:
        self.encoder = encoder
        self.parts = parts
        self.accelerator = accelerator
        self.seeds = seeds
        self.asked_to_stop = asked_to_stop
        self.learns = any(parameter.requires_grad for parameter in encoder.parameters())
        self.features = torch.empty(0)

    def forward(self, keep: int) -> None:
        """Features of all rows, in the slice's order, as a leaf; the graphs of the last `keep` parts are kept."""
        first_kept = len(self.parts) - keep if self.learns else len(self.parts)
        for index, part in enumerate(self.parts):
            with torch.set_grad_enabled(index >= first_kept):
                part.features = self._run(index)
        computed = [part.features.detach() for part in self.parts if part.features is not None]
        back_in_order = torch.cat([part.rows for part in self.parts]).argsort().to(computed[0].device)
        self.features = torch.cat(computed)[back_in_order].requires_grad_(self.learns)

    def backward(self) -> None:
        """From the features' gradient to the parameters', last part first; parts without a graph are run again."""
        gradient = self.features.grad
        if gradient is None:
            return
        for index in reversed(range(len(self.parts))):
            part = self.parts[index]
            features = part.features
            if features is None or not features.requires_grad:
                features = self._run(index)
            part.features = None  # its graph is done with
            features.backward(gradient[part.rows.to(gradient.device)])

    def _run(self, index: int) -> Float[Tensor, "B D"]:
        if self.asked_to_stop():
            raise Abandoned
        # The random state is a function of what is computed: setting it is all the replay there is.
        torch.manual_seed(mix(*self.seeds, index))
        with self.accelerator.autocast():
            features = self.encoder(self.parts[index].inputs)
        features = features.to(torch.promote_types(features.dtype, torch.float32))
        return features if self.encoder.of_trunk else F.normalize(features, dim=-1)


def _take(inputs: dict[str, Tensor], rows: Tensor) -> dict[str, Tensor]:
    return channels_last({name: value[rows.to(value.device)] for name, value in inputs.items()})
