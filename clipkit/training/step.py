"""Training step: the gradient of one global batch, independent of micro-batch size and number of processes."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from jaxtyping import Float
from torch import Tensor, nn

from clipkit.data import Batch
from clipkit.errors import TrainingError
from clipkit.models import DualEncoder, Tower
from clipkit.models.devices import is_accelerator, is_shard
from clipkit.models.towers import TextTower
from clipkit.processes import Processes
from clipkit.seeds import mix
from clipkit.training.gradient_sum import GradientSum
from clipkit.training.objectives.objective import Gathered, Value
from clipkit.training.transfer import MicroBatches, send

# Captions of similar length run together even if the whole batch fits, because short captions then need less padding.
# On a CPU, a fixed number of captions runs together; on an accelerator, a quarter of all tokens, but at least this
# number, which keeps it busy.
_CPU_CAPTIONS = 16
_ACCELERATOR_TOKENS = 16_384
# Lengths on an accelerator are multiples of this number, so that its kernels are fast.
_ALIGNED = 8


def is_out_of_memory(error: RuntimeError) -> bool:
    """Return whether an error of torch or of a library such as cuBLAS means that an accelerator ran out of memory."""
    return isinstance(error, torch.OutOfMemoryError) or "ALLOC_FAILED" in str(error)


@dataclass(frozen=True)
class Encoder:
    """Computes one kind of features, either with a whole tower or only with its trunk."""

    tower: Tower
    of_trunk: bool = False

    def __call__(self, inputs: dict[str, Tensor]) -> Float[Tensor, "B D"]:
        """Return the features, without normalization."""
        inputs = self.tower.ready(inputs)
        return self.tower.trunk(**inputs) if self.of_trunk else self.tower(inputs)

    def parameters(self) -> Iterator[nn.Parameter]:
        """Return the parameters of the tower or of the trunk."""
        return (self.tower.trunk if self.of_trunk else self.tower).parameters()


class Abandoned(Exception):
    """Exception for a stop signal: all processes have abandoned the step before any weight changed."""


class _TooLarge(Exception):
    """Exception for a micro-batch that does not fit into the memory of a process."""


@dataclass(eq=False)
class Step:
    """Computes the gradients of the loss of a global batch, on every process.

    The gradients are those of one process with the whole batch in one autograd graph. Each process encodes its rows of
    the batch, and gathers the features of all processes. It then computes the part of the loss for its rows. The
    gradients are summed over the processes.

    If not all rows fit into memory, features are first computed without a graph. After the loss has given the gradients
    of the features, each micro-batch runs again with a graph and the same random numbers (GradCache, Gao et al. 2021).

    Args:
        model: the model, without distributed wrappers.
        encoders: encoder of each kind of features, by the name of its inputs; in the same order on all processes.
        value: function that computes this process's part of the loss from gathered features.
        accelerator: object that applies mixed precision and scales gradients.
        batch_size: pairs in the global batch, G.
        micro_batch_size: rows of this process in one pass with a graph; halved on all processes if one lacks memory.
        may_split: True if a batch that does not fit may be split into more micro-batches.
        stop_requested: called between micro-batches; True ends the step.
        log: called with one line when the micro-batch becomes smaller.
        on_features: called with the gathered features, without gradients, and the number of the step.
        is_sharded: True if trunks are distributed over the processes (FSDP2), so that all processes must run the same
            number of passes.
    """

    model: DualEncoder
    encoders: Mapping[str, Encoder]
    value: Value
    processes: Processes
    accelerator: Accelerator
    batch_size: int
    micro_batch_size: int
    seed: int
    may_split: bool = True
    stop_requested: Callable[[], bool] = lambda: False
    log: Callable[[str], None] = lambda message: None
    on_features: Callable[[Gathered, int], None] = lambda gathered, step: None
    is_sharded: bool = False

    def __post_init__(self) -> None:
        # A batch may not be split if BatchNorm learns its statistics. They change in the forward pass: such a step
        # must be completed once it has started. So must a step whose passes wait for the other processes.
        if not self.may_split or self.is_sharded:
            self.stop_requested = lambda: False

    def __call__(self, batch: Batch, step: int) -> Tensor:
        """Compute the gradients, and return the loss of the global batch, which is the same on every process.

        Args:
            batch: this process's rows of the global batch: `processes.share(batch_size)`.
            step: number of the step, from 0. The random state depends on the seed, the step and the process.

        Raises:
            Abandoned: a process received a stop signal; no parameter was changed.
            TrainingError: the smallest possible micro-batch does not fit into memory.
        """
        while True:
            try:
                return self._gradients(batch, step)
            except _TooLarge:
                pass  # leave the except block first: it keeps the memory of the failed attempt alive
            self._halve(step)

    def _gradients(self, batch: Batch, step: int) -> Tensor:
        model, processes = self.model, self.processes
        encodings = {}
        for number, (name, encoder) in enumerate(self.encoders.items()):
            parts, seeds = self._parts(encoder.tower, batch.inputs[name]), (self.seed, step, processes.index, number)
            encodings[name] = _Encoding(encoder, parts, self.accelerator, seeds, self.stop_requested)
        towers = list(encodings.values())
        # The same on every process, even if their numbers of rows differ.
        everything_fits = -(-self.batch_size // processes.count) <= self.micro_batch_size
        with self._agreed():
            for tower in towers:
                # The backward pass starts with the last micro-batch of the last tower, so its graph can be kept.
                tower.forward(keep=len(tower.parts) if everything_fits else int(tower is towers[-1]))
        columns = [batch.image_ids, batch.caption_ids, batch.caption_rows]
        ids = send({"ids": torch.stack(columns, dim=1)}, model.device)["ids"]
        ids = processes.gather(ids, self.batch_size)
        gathered = {name: processes.gather(one.features, self.batch_size) for name, one in encodings.items()}
        gathered |= {"image_ids": ids[:, 0], "caption_ids": ids[:, 1], "caption_rows": ids[:, 2]}
        scalars = {"scale": model.logit_scale.exp()}
        if model.logit_bias is not None:
            scalars["bias"] = model.logit_bias
        with self._agreed():
            loss = self.value(gathered, scalars, processes.share(self.batch_size))
            with torch.no_grad():
                self.on_features(gathered, step)
        # The tower whose graph is kept runs first. If all graphs are kept, the image tower runs first: while its large
        # kernels run on an accelerator, the CPU starts the many small kernels of the text tower.
        ordered = towers if everything_fits else towers[::-1]
        # One process has nothing to sum, so it skips the loop over the parameters in every step.
        groups = _completed_by(ordered, model) if processes.count > 1 else [[] for _ in (model, *ordered)]
        sums = GradientSum(groups, processes)
        self.accelerator.backward(loss)
        with self._agreed(sums):
            sums.complete(0)
            for group, tower in enumerate(ordered, start=1):
                tower.backward(partial(sums.completes, group))
                sums.complete(group)
        return processes.sum(loss)

    @contextmanager
    def _agreed(self, sums: GradientSum | None = None) -> Iterator[None]:
        """Return a context in which either all processes complete their work, or all raise an error.

        Args:
            sums: all-reduces of gradients that start during the work. The end of the context waits for them.

        Raises:
            Abandoned: a process received a stop signal.
            _TooLarge: a process ran out of memory.
        """
        too_large = False
        try:
            yield
        except RuntimeError as error:
            # With shards, the other processes wait for this process in a pass and cannot be informed, so the run ends.
            if self.is_sharded or not is_out_of_memory(error):
                raise
            too_large = True
        except Abandoned:
            pass
        present = [] if sums is None else sums.flush()
        too_large, stop, *present = self.processes.any(too_large, self.stop_requested(), *present)
        if too_large or stop:
            if sums is not None:
                sums.wait()
            self.model.zero_grad(set_to_none=True)
            raise Abandoned if stop else _TooLarge
        if sums is not None:
            sums.finish(present)

    def _halve(self, step: int) -> None:
        rows = -(-self.batch_size // self.processes.count)
        size = min(self.micro_batch_size, rows)
        if size == 1 or not self.may_split:
            raise TrainingError(
                f"step {step + 1}: out of memory with {size} pair{'s' * (size > 1)} on each process"
                + ("" if self.may_split else ", which cannot be split while BatchNorm learns its statistics")
                + "; use smaller images, a smaller model, or train.gradient_checkpointing: true"
            )
        self.micro_batch_size = size // 2
        if torch.accelerator.is_available():
            torch.accelerator.empty_cache()
        self.log(f"step {step + 1}: out of memory; the step is repeated with micro-batch size {size // 2}, not {size}")

    def _parts(self, tower: Tower, inputs: dict[str, Tensor]) -> MicroBatches:
        device = self.model.device
        if not isinstance(tower, TextTower) or "attention_mask" not in inputs:
            every = len(next(iter(inputs.values())))
            starts = range(0, every, self.micro_batch_size)
            rows = [slice(start, min(start + self.micro_batch_size, every)) for start in starts]
            return MicroBatches(inputs, rows, device)
        lengths, order = inputs["attention_mask"].sum(dim=1).cpu().sort(stable=True)
        if not is_accelerator(device):
            parts = self._equally_many(order.split(min(self.micro_batch_size, _CPU_CAPTIONS)))
            return MicroBatches(inputs, parts, device, tower.cut_padding)
        parts = self._equally_many(order.split(_sizes(lengths, self.micro_batch_size)))
        return MicroBatches(inputs, parts, device, partial(tower.cut_padding, multiple=_ALIGNED))

    def _equally_many(self, parts: Sequence[Tensor]) -> Sequence[Tensor]:
        """Split the largest micro-batches until all processes have the same number of micro-batches.

        If the model is not sharded, the micro-batches are returned unchanged.
        """
        if not self.is_sharded:
            return parts
        count, parts = self.processes.largest(len(parts)), list(parts)
        while len(parts) < count:
            index = max(range(len(parts)), key=lambda index: len(parts[index]))
            parts[index : index + 1] = parts[index].chunk(2)
        return parts


@dataclass(eq=False)
class _Encoding:
    """Micro-batches of one tower: `forward` computes the features, and `backward` computes the gradients later."""

    encoder: Encoder
    parts: MicroBatches
    accelerator: Accelerator
    seeds: tuple[int, ...]
    stop_requested: Callable[[], bool]
    features: Tensor = field(default_factory=lambda: torch.empty(0), init=False)

    def __post_init__(self) -> None:
        self._graphs: dict[int, Tensor] = {}
        """Features of the micro-batches whose graphs are kept."""
        self._rows = [rows for rows in self.parts.rows if isinstance(rows, Tensor)]
        if self._rows:  # the parts have another order than the slice; copy it to the device now
            order = torch.cat(self._rows)
            sent = send({"order": order, "place": order.argsort()}, self.parts.device)
            self._rows, self._place = list(sent["order"].split([len(rows) for rows in self._rows])), sent["place"]

    @property
    def learns(self) -> bool:
        """True if a parameter of the tower is trained."""
        return any(parameter.requires_grad for parameter in self.encoder.parameters())

    def forward(self, keep: int) -> None:
        """Compute the features of all rows, and store them in `features` as a leaf of the autograd graph.

        Args:
            keep: number of micro-batches, counted from the last one, whose graphs are kept for `backward`.
        """
        first_kept = len(self.parts) - keep if self.learns else len(self.parts)
        computed = []
        for index in range(len(self.parts)):
            with torch.set_grad_enabled(index >= first_kept):
                features = self._run(index, index + 1)
            computed.append(features.detach())
            if features.requires_grad:
                self._graphs[index] = features
        features = torch.cat(computed)
        self.features = (features[self._place] if self._rows else features).requires_grad_(self.learns)

    def backward(self, last: Callable[[], None]) -> None:
        """Compute the gradients of the parameters from the gradients of the features.

        The micro-batches run in reverse order. If the graph of a micro-batch was not kept, its forward pass runs again.

        Args:
            last: called before the last backward pass, which is that of the first micro-batch.
        """
        gradient = self.features.grad
        if gradient is None:
            return
        for index in reversed(range(len(self.parts))):
            features = self._graphs.pop(index, None)  # frees the graph after its backward pass
            if features is None:
                features = self._run(index, index - 1)
            if index == 0:
                last()
            features.backward(gradient[self._rows[index] if self._rows else self.parts.rows[index]])

    def _run(self, index: int, following: int) -> Float[Tensor, "B D"]:
        if self.stop_requested():
            raise Abandoned
        # The random state depends only on the computed part, so setting it again replays the same random numbers.
        # On a CPU, torch.manual_seed is slow: it formats the call stack for each kind of accelerator that is missing.
        seed = torch.default_generator.manual_seed if self.accelerator.device.type == "cpu" else torch.manual_seed
        seed(mix(*self.seeds, index))
        inputs = self.parts.get(index, following)
        with self.accelerator.autocast():
            features = self.encoder(inputs)
        features = features.to(torch.promote_types(features.dtype, torch.float32))
        return features if self.encoder.of_trunk else F.normalize(features, dim=-1)


def _completed_by(encodings: list[_Encoding], model: nn.Module) -> list[list[nn.Parameter]]:
    """Group the parameters by the last backward pass that adds to their gradients.

    The first group is completed by the backward pass of the loss. Each other group is completed by the backward pass of
    one encoding.

    Args:
        encodings: the encodings in the order of their backward passes; several encodings may share a tower.
    """
    last = dict.fromkeys(model.parameters(), 0)
    for number, encoding in enumerate(encodings, start=1):
        last |= dict.fromkeys(encoding.encoder.parameters(), number)
    last = {one: number for one, number in last.items() if not is_shard(one)}  # FSDP2 sums the others
    groups: list[list[nn.Parameter]] = [[] for _ in range(len(encodings) + 1)]
    for parameter in reversed(last):  # a backward pass goes from the last layer to the first
        groups[last[parameter]].append(parameter)
    return groups


def _sizes(lengths: Tensor, micro_batch_size: int) -> list[int]:
    """Return the sizes of the micro-batches of captions on an accelerator.

    Micro-batches of short captions have more rows, but no micro-batch has more tokens than fit into memory.

    Args:
        lengths: number of tokens of each caption, ascending.
        micro_batch_size: number of captions of the largest length that fit into memory.
    """
    most = min(max(_ACCELERATOR_TOKENS, int(lengths.sum()) // 4), micro_batch_size * int(lengths[-1]))
    sizes = [0]
    for length in lengths.tolist():  # the last caption of a part is its longest, to which the others are padded
        if sizes[-1] and (sizes[-1] + 1) * length > most:
            sizes.append(0)
        sizes[-1] += 1
    return sizes
