"""Section `compile`: compiled towers beside eager ones, and beside open_clip's compiled model."""

import time
from functools import partial

import torch

from gpu_sections.common import Report, Settings, attempt, free, memory, short
from gpu_sections.trainers import Clipkit, OpenClip, parts_of

PAIRS = {"ViT-B-32": 2048, "ViT-B-16": 512, "ViT-L-14": 128}


def graphs() -> int:
    """Return how many graphs torch.compile has compiled in this process."""
    from torch._dynamo.utils import counters

    return int(counters["stats"]["unique_graphs"])


def section_compile(settings: Settings, report: Report) -> None:
    """Measure the time of compiling, the gain, and how often other captions or micro-batches compile again."""
    if settings.small:  # traces only: C++ code takes minutes to compile
        torch.compile = partial(torch.compile, backend="eager")
    for model in settings.models:
        size, seconds = 8 if settings.small else PAIRS.get(model, 128), None
        torch._dynamo.reset()  # other models of this process would count as recompilations
        with attempt(report, f"{model}, compile", settings.device, code="clipkit"):
            seconds = _clipkit(settings, report, model, size)
        with attempt(report, f"{model}, compile", settings.device, code="open_clip, compiled"):
            torch._dynamo.reset()
            _open_clip(settings, report, model, size, seconds)


def _clipkit(settings: Settings, report: Report, model: str, size: int) -> float:
    """Measure eager and compiled towers, and return the seconds of a compiled step in one pass."""
    eager: dict[int, float] = {}
    compiled: dict[int, float] = {}
    for code, seconds in (("clipkit, eager", eager), ("clipkit, compiled", compiled)):
        free(settings.device)
        trainer = Clipkit(settings, model, train__compile=seconds is compiled)
        batch = trainer.batch(size)
        for parts in (1, 4):
            before, began = graphs(), time.perf_counter()
            trainer.timing(batch, parts_of(size, parts), budget=0, least=1, warm=1)
            first = time.perf_counter() - began
            timing = trainer.timing(batch, parts_of(size, parts), warm=1)
            seconds[parts] = timing.median
            gain = {"eager_over_compiled": short(eager[parts] / timing.median)} if seconds is compiled else {}
            what = f"{model}, {size} pairs, {'one pass' if parts == 1 else f'{parts} micro-batches'}"
            report(
                what, code=code, pairs=size,
                **timing.figures, **trainer.speed(batch, timing.median), **gain, **memory(settings.device),
                first_two_steps_seconds=short(first), graphs=graphs() - before,
            )  # fmt: skip
            free(settings.device)
        if seconds is compiled:
            _other_captions(trainer, report, model, size)
        del trainer, batch
    return compiled[1]


def _open_clip(settings: Settings, report: Report, model: str, size: int, ours: float | None) -> None:
    """Measure open_clip's compiled model beside the seconds of clipkit's."""
    theirs, before, began = OpenClip(settings, model, compiled=True), graphs(), time.perf_counter()
    theirs.timing(size, size, steps=1, warm=1)
    first = time.perf_counter() - began
    timing = theirs.timing(size, size)
    report(
        f"{model}, {size} pairs, one pass", code="open_clip, compiled", pairs=size, **timing.figures,
        **memory(settings.device), clipkit_over_open_clip=None if ours is None else short(timing.median / ours),
        first_two_steps_seconds=short(first), graphs=graphs() - before,
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
