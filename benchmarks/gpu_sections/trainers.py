"""The two trainers that are compared: clipkit's step and update, and open_clip's loop."""

import itertools
import math
import time
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import open_clip
import torch
from open_clip_train.train import train_one_epoch
from torch import Tensor

from clipkit.data import Batch
from clipkit.recipe import Recipe
from clipkit.training.folder.run_log import RunLog
from clipkit.training.guards.batch_statistics import batch_statistics
from clipkit.training.objectives.objective import Gathered
from clipkit.training.opening import tower_inputs
from clipkit.training.plan import make_plan
from clipkit.training.state import State
from clipkit.training.step import Step
from clipkit.training.throughput import Throughput, peak_of, works_of
from clipkit.training.update import update
from gpu_sections.common import Settings, Timing, timed


class Clipkit:
    """Plan of a run, whose step and update train on batches that are already in memory.

    Args:
        settings: options of the script.
        model: open_clip's name.
        changes: changes to the recipe.
    """

    def __init__(self, settings: Settings, model: str, **changes: Any) -> None:
        self.settings = settings
        # Only two pairs: the batches of a run have another origin, and every other object is the run's.
        options = {"train__batch_size": 2, "train__epochs": 1000, **changes}
        self.plan = make_plan(Recipe.from_dict(settings.recipe(settings.pairs(2), model, "unused", **options)))
        self.inputs = tower_inputs(self.plan, RunLog(False))
        self.throughput = Throughput(settings.peak * 1e12, works_of(self.inputs))
        self.messages: list[str] = []

    def batch(self, size: int, host: bool = False, first: int = 0) -> Batch:
        """Return random images, as bytes, with captions.

        Args:
            size: pairs.
            host: keep the images in the memory of the host.
            first: position of the first caption.
        """
        device, model = self.settings.device, self.plan.model
        side = model.image.preprocess.image_size
        generator = torch.Generator(device).manual_seed(first)
        block = torch.randint(
            0, 256, (min(size, 8192), 3, side, side), dtype=torch.uint8, device=device, generator=generator
        )
        if host:
            pixels = torch.empty((size, *block.shape[1:]), dtype=torch.uint8, pin_memory=not self.settings.small)
            for start in range(0, size, len(block)):
                pixels[start : start + len(block)] = block[: size - start]
        else:
            pixels = block.repeat(-(-size // len(block)), 1, 1, 1)[:size] if size > len(block) else block
        texts = self.settings.some_captions(first + size)[first:]
        ids = torch.arange(size)
        inputs = {"image_features": {"pixel_values": pixels}, "text_features": model.text.tokenize(texts)}
        return Batch(inputs, ids, ids, ids)

    def step(self, size: int, micro: int, may_split: bool = False) -> Step:
        """Return the run's step for so many pairs; unless it may split them, too little memory is an error."""
        plan = self.plan
        return Step(
            plan.model,
            self.inputs.encoders,
            plan.objective.value,
            plan.processes,
            plan.accelerator,
            size,
            micro,
            plan.recipe.train.seed,
            may_split=may_split,
            log=self.messages.append,
            on_features=self._keep,
        )

    def timing(self, batch: Batch, micro: int, budget: float = 2.0, least: int = 3, warm: int = 2) -> Timing:
        """Time what a run does in a step: gradients, clipping, optimizer, checks, and the statistics of the batch."""
        gradients = self.step(len(batch), micro)
        state = State(self.plan, gradients)

        def work() -> None:
            update(batch, gradients, self.plan, state)
            batch_statistics(*self._compared, self.plan.objective.sides)

        return timed(work, self.settings.device, budget, least, most=8, warm=warm)

    def _keep(self, gathered: Gathered, step: int) -> None:
        ids = (gathered["image_ids"], gathered["caption_ids"])
        self._compared = (*self.plan.objective.compared(gathered), *ids)

    def speed(self, batch: Batch, seconds: float) -> dict[str, float]:
        """Return pairs per second, and shares of the peaks."""
        speed = {"pairs_per_second": round(len(batch) / seconds, 1)}
        if self.settings.small:
            return speed
        operations = self.throughput.operations(batch)
        speed["tflops"] = round(operations / seconds / 1e12, 1)
        speed["share"] = round(self.throughput.share(batch, seconds) or 0, 4)
        peak = peak_of(torch.cuda.get_device_name(), self.settings.precision)
        return speed if peak is None else speed | {"mfu": round(operations / seconds / peak, 4)}


@dataclass
class _Loader:
    """The parts of open_clip's data loader that its loop uses; returns the same batch again and again."""

    images: Tensor
    texts: Tensor
    num_batches: int

    @property
    def dataloader(self) -> "_Loader":
        return self

    @property
    def num_samples(self) -> int:
        return self.num_batches * len(self.images)

    def set_epoch(self, epoch: int) -> None:
        pass

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for _ in range(self.num_batches):
            yield self.images, self.texts


class OpenClip:
    """open_clip's model, loss, optimizer and training loop.

    Args:
        settings: options of the script.
        model: open_clip's name.
        compiled: compile the whole model, as `--torchcompile` does.
    """

    def __init__(self, settings: Settings, model: str, compiled: bool = False) -> None:
        self.settings = settings
        torch.manual_seed(0)
        with settings.device:  # random weights are made on the card, in milliseconds
            native = open_clip.create_model(model, output_dict=True, device=settings.device)
        self.tokenize = open_clip.get_tokenizer(model)
        self.side = native.visual.preprocess_cfg["size"]
        self.side = self.side if isinstance(self.side, int) else self.side[0]
        self.optimizer = torch.optim.AdamW(native.parameters(), lr=1e-5, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.1)
        self.model = torch.compile(native) if compiled else native

    def timing(self, size: int, micro: int, steps: int = 3, warm: int = 2) -> Timing:
        """Time the steps of one epoch with images on the card; micro-batches are its `--accum-freq`."""
        device, accumulated = self.settings.device, size // micro
        torch.manual_seed(0)
        images = torch.randn(micro, 3, self.side, self.side, device=device)  # as its loader returns them: normalized
        texts = self.tokenize(self.settings.some_captions(micro)).to(device)
        args = Namespace(
            device=str(device),
            precision="fp32" if self.settings.small else "amp_bf16",
            distill=False,
            accum_freq=accumulated,
            skip_scheduler=True,
            grad_clip_norm=1.0,
            horovod=False,
            log_every_n_steps=10**9,
            world_size=1,
            batch_size=micro,
            rank=0,
            local_rank=0,
            log_local=False,
            wandb=False,
        )
        ends: list[Any] = []

        def note_the_time(*_: Any) -> None:
            event = _Clock() if device.type == "cpu" else torch.cuda.Event(enable_timing=True)
            event.record()
            ends.append(event)

        data = {"train": _Loader(images, texts, (warm + steps) * accumulated)}
        hook = self.optimizer.register_step_post_hook(note_the_time)
        try:
            train_one_epoch(self.model, data, open_clip.ClipLoss(), 0, self.optimizer, None, None, None, args)
        finally:
            hook.remove()
            self.optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize()
        ends = ends[warm - 1 :]
        return Timing([before.elapsed_time(after) / 1000 for before, after in itertools.pairwise(ends)])


class _Clock:
    """The two methods of a CUDA event, on a CPU."""

    def record(self) -> None:
        self.at = time.perf_counter()

    def elapsed_time(self, end: "_Clock") -> float:
        return (end.at - self.at) * 1000


def parts_of(size: int, parts: int) -> int:
    """Return the micro-batch size that makes so many parts."""
    return math.ceil(size / parts)
