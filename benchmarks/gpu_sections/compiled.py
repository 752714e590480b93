"""Section `compile`: compiled towers beside eager ones, and beside open_clip's compiled model."""

import time
from functools import partial

import torch

from gpu_sections.common import Report, Settings, attempt, free, memory, short
from gpu_sections.steps import FIXED
from gpu_sections.trainers import Clipkit, OpenClip, parts_of


def graphs() -> int:
    """Return how many graphs torch.compile has compiled in this process."""
    from torch._dynamo.utils import counters

    return int(counters["stats"]["unique_graphs"])


def section_compile(settings: Settings, report: Report) -> None:
    """Measure the time of compiling, the gain, and how often other captions or micro-batches compile again."""
    model, device, size = settings.models[0], settings.device, 8 if settings.small else FIXED
    if settings.small:  # traces only: C++ code takes minutes to compile
        torch.compile = partial(torch.compile, backend="eager")
    ours: dict[tuple[bool, int], float] = {}
    for compiled in (False, True):
        code = "clipkit, compiled" if compiled else "clipkit, eager"
        with attempt(report, f"{model}, {size} pairs", device, code=code):
            trainer = Clipkit(settings, model, train__compile=compiled)
            batch = trainer.batch(size)
            for parts in (1, 4):
                what = f"{model}, {size} pairs, {'one pass' if parts == 1 else f'{parts} micro-batches'}"
                before, began = graphs(), time.perf_counter()
                trainer.timing(batch, parts_of(size, parts), budget=0, least=1, warm=1)
                first = time.perf_counter() - began
                timing = trainer.timing(batch, parts_of(size, parts), budget=2.0, warm=1)
                ours[compiled, parts] = timing.median
                gain = {"eager_over_compiled": short(ours[False, parts] / timing.median)} if compiled else {}
                report(
                    what, code=code, pairs=size, **timing.figures, **trainer.speed(batch, timing.median), **gain,
                    **memory(device), first_two_steps_seconds=short(first), graphs=graphs() - before,
                )  # fmt: skip
                free(device)
            if compiled:
                _other_captions(trainer, report, model, size)
            del trainer, batch
    with attempt(report, f"{model}, {size} pairs, one pass", device, code="open_clip, compiled"):
        theirs, before, began = OpenClip(settings, model, compiled=True), graphs(), time.perf_counter()
        theirs.timing(size, size, steps=1, warm=1)
        first = time.perf_counter() - began
        timing = theirs.timing(size, size)
        ratio = {"clipkit_over_open_clip": short(timing.median / ours[True, 1])} if (True, 1) in ours else {}
        report(
            f"{model}, {size} pairs, one pass", code="open_clip, compiled", pairs=size, **timing.figures, **ratio,
            **memory(device), first_two_steps_seconds=short(first), graphs=graphs() - before,
        )  # fmt: skip


def _other_captions(trainer: Clipkit, report: Report, model: str, size: int) -> None:
    """Train on batches with other captions, and so other lengths, and count the graphs that they compile."""
    before, seconds = graphs(), []
    for number in range(1, 5):
        began = time.perf_counter()
        trainer.timing(trainer.batch(size, first=number * size), size, budget=0, least=1, warm=0)
        seconds.append(short(time.perf_counter() - began))
    failed = torch._dynamo.utils.counters["recompile_limit"] if hasattr(torch, "_dynamo") else {}
    report(f"{model}, four batches of other captions", seconds=seconds, graphs=graphs() - before, limits=dict(failed))
