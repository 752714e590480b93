"""Sections `step`, `auto`, `fp16` and `huge`: training steps on batches that are already in memory."""

import time
from typing import Any

import torch

from clipkit.data import Batch
from clipkit.training.micro_batch import micro_batch_size_of
from clipkit.training.state import State
from clipkit.training.update import update
from gpu_sections.common import Report, Settings, attempt, free, is_out_of_memory, memory, short
from gpu_sections.trainers import Clipkit, OpenClip, parts_of

# Pairs from which the largest batch that fits in one pass is searched by doubling, and the largest that is tried.
STARTS = {"ViT-B-32": (1024, 16_384), "ViT-B-16": (256, 4096), "ViT-L-14": (128, 2048)}
FIXED = 2048
PROFILED = "ViT-B-32"


def section_step(settings: Settings, report: Report) -> None:
    """Measure whole updates, in one pass and in four micro-batches, beside open_clip's trainer."""
    for model in settings.models:
        with attempt(report, model, settings.device):
            _steps_of(settings, report, model)


def _steps_of(settings: Settings, report: Report, model: str) -> None:
    device = settings.device
    began = time.perf_counter()
    trainer: Clipkit | None = Clipkit(settings, model)
    assert trainer is not None
    start, cap = (8, 16) if settings.small else STARTS.get(model, (128, 2048))
    largest = _largest(trainer, start, cap)
    report(f"{model}, largest batch in one pass", pairs=largest, cap=cap, seconds=short(time.perf_counter() - began))
    sizes = [largest] if largest < FIXED or settings.small else sorted({FIXED, largest})
    # (pairs, parts) -> seconds
    ours: dict[tuple[int, int], float] = {}
    for size in sizes:
        batch = trainer.batch(size)
        for parts in (1, 4):
            what = f"{model}, {size} pairs, {'one pass' if parts == 1 else f'{parts} micro-batches'}"
            with attempt(report, what, device, code="clipkit"):
                timing = trainer.timing(batch, parts_of(size, parts))
                ours[size, parts] = timing.median
                against = {"over_one_pass": short(timing.median / ours[size, 1])} if (size, 1) in ours else {}
                report(
                    what, code="clipkit", pairs=size, **timing.figures, **trainer.speed(batch, timing.median),
                    **memory(device), **(against if parts > 1 else {}),
                )  # fmt: skip
        if (model == PROFILED or settings.small) and size == sizes[0]:
            with attempt(report, f"{model}, profile", device):
                report(f"{model}, {size} pairs, profile", **profile(trainer, batch, size))
        del batch
    del trainer
    free(device)
    compare(settings, report, model, OpenClip(settings, model), ours)


def compare(
    settings: Settings, report: Report, model: str, theirs: OpenClip, ours: dict[tuple[int, int], float], **more: Any
) -> None:
    """Measure open_clip at the same batches, or at a half, a quarter… if those do not fit."""
    device = settings.device
    for (size, parts), seconds in ours.items():
        what = f"{model}, {size} pairs, {'one pass' if parts == 1 else f'{parts} micro-batches'}"
        fitting = size
        while fitting >= size // 8 and fitting >= parts:
            free(device)
            try:
                timing = theirs.timing(fitting, fitting // parts)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                report(what, code="open_clip", pairs=fitting, failed="out of memory", **more)
            else:
                report(
                    what, code="open_clip", pairs=fitting, **timing.figures, **memory(device), **more,
                    pairs_per_second=round(fitting / timing.median, 1),
                    clipkit_over_open_clip=short(size / seconds / (fitting / timing.median)),
                )  # fmt: skip
                break
            fitting //= 2


def _largest(trainer: Clipkit, start: int, cap: int) -> int:
    """Return the largest batch that fits in one pass: `start` doubled, or halved if even that does not fit."""
    size, fitting = start, 0
    while 0 < size <= cap:
        if _fits(trainer, size):
            fitting, size = size, size * 2
            continue
        if fitting:
            break
        size //= 2
        cap = size
    if not fitting:
        raise RuntimeError("not even one pair fits")
    return fitting


def _fits(trainer: Clipkit, size: int) -> bool:
    free(trainer.settings.device)
    try:
        trainer.timing(trainer.batch(size), size, budget=0, least=1, warm=0)
    except Exception as error:
        trainer.plan.optimizer.zero_grad()
        if is_out_of_memory(error):
            return False
        raise
    finally:
        free(trainer.settings.device)
    return True


def profile(trainer: Clipkit, batch: Batch, micro: int) -> dict[str, Any]:
    """Return the kernels that take most of the time of an update, and the share of the time without any kernel."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as recording

    on_card = trainer.settings.device.type == "cuda"
    gradients = trainer.step(len(batch), micro)
    state = State(trainer.plan, gradients)
    update(batch, gradients, trainer.plan, state)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_card else [])]
    if on_card:
        torch.cuda.synchronize()
    with recording(activities=activities) as recorded:
        began = time.perf_counter()
        update(batch, gradients, trainer.plan, state)
        if on_card:
            torch.cuda.synchronize()
        took = time.perf_counter() - began
    rows = []
    for event in recorded.key_averages():
        if on_card and str(event.device_type) != "DeviceType.CUDA":
            continue  # the operator that launched the kernel has the same time
        if getattr(event, "is_user_annotation", False):
            continue  # a range of several kernels
        micros = event.self_device_time_total if on_card else event.self_cpu_time_total
        rows.append({"name": event.key[:110], "calls": event.count, "ms": round(micros / 1000, 3)})
    rows.sort(key=lambda row: -row["ms"])
    total = sum(row["ms"] for row in rows) / 1000
    return {
        "seconds_while_profiling": short(took),
        "seconds_in_kernels": short(total),
        "idle_share": round(max(0.0, 1 - total / took), 4),
        "kernels": rows[:15],
    }


def section_auto(settings: Settings, report: Report) -> None:
    """Measure the search for the largest micro-batch, and a step with what it found."""
    device, rows = settings.device, 16 if settings.small else 16_384
    for model in settings.models[:1] if settings.small else settings.models[::2]:
        with attempt(report, f"{model}, micro_batch_size: auto", device):
            trainer = Clipkit(settings, model)
            plan, began = trainer.plan, time.perf_counter()
            recipe = plan.recipe.override({"train.batch_size": rows})
            size = micro_batch_size_of(recipe, plan.model, trainer.inputs, plan.processes, plan.accelerator, None)
            took = time.perf_counter() - began
            free(device)
            pairs = min(rows, 2 * size)
            batch = trainer.batch(pairs)
            gradients = trainer.step(pairs, size, may_split=True)
            state, began = State(plan, gradients), time.perf_counter()
            update(batch, gradients, plan, state)
            report(
                f"{model}, micro_batch_size: auto", found=size, rows=rows, search_seconds=short(took), pairs=pairs,
                seconds=short(time.perf_counter() - began), used=gradients.micro_batch_size, **memory(device),
                messages=trainer.messages,
            )  # fmt: skip
            del batch, gradients, state, trainer, plan


def section_fp16(settings: Settings, report: Report) -> None:
    """Train ten steps in fp16 (on a CPU in bf16): finite losses, and the gradient scaler's factor."""
    model, device = settings.models[0], settings.device
    precision, size = ("bf16", 8) if settings.small else ("fp16", 512)
    with attempt(report, f"{model}, {precision}", device):
        trainer = Clipkit(settings, model, train__precision=precision, optim__lr=1e-4)
        for parts in (1, 4):
            batch, gradients = trainer.batch(size), trainer.step(size, parts_of(size, parts))
            state = State(trainer.plan, gradients)
            rows = [update(batch, gradients, trainer.plan, state) for _ in range(10)]
            timing = trainer.timing(batch, parts_of(size, parts))
            scaler = trainer.plan.accelerator.scaler
            report(
                f"{model}, {precision}, {parts} part{'s' * (parts > 1)}", pairs=size, **timing.figures,
                losses=[round(row["loss"], 4) for row in rows], grad_norms=[short(row["grad_norm"]) for row in rows],
                gradient_scale=None if scaler is None else scaler.get_scale(), **memory(device),
            )  # fmt: skip


def section_huge(settings: Settings, report: Report) -> None:
    """One step of 131,072 pairs with images in the memory of the host, or on the card if that is not supported."""
    model, device = settings.models[0], settings.device
    pairs, micro = (64, 16) if settings.small else (131_072, 2048)
    trainer = Clipkit(settings, model)
    small_batch = trainer.batch(micro)
    one_pass = trainer.timing(small_batch, micro).median / micro
    report(f"{model}, one pass", pairs=micro, seconds_per_pair=short(one_pass))
    del small_batch
    for host in (True, False):
        what = f"{model}, {pairs} pairs, images {'in host memory' if host else 'on the card'}"
        done = False
        with attempt(report, what, device):
            batch = trainer.batch(pairs, host=host)
            timing = trainer.timing(batch, micro, budget=0, least=1, warm=0)
            report(
                what, pairs=pairs, micro_batch_size=micro, **timing.figures, **trainer.speed(batch, timing.median),
                **memory(device), over_one_pass=short(timing.median / pairs / one_pass),
            )  # fmt: skip
            done = True
        if done:
            break
