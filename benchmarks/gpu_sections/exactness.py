"""Section `exactness`: the same bits from the same recipe, also after a kill; one pass against micro-batches."""

import hashlib
import signal
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clipkit.training.step import Step
from gpu_sections.commands import CPU, command, lines, recipe_file
from gpu_sections.common import Report, Settings, attempt, short
from gpu_sections.features import workers_of
from gpu_sections.trainers import Clipkit, parts_of

RUNS = "ViT-S-32-alt"  # small checkpoints


def section_exactness(settings: Settings, report: Report) -> None:
    """Compare whole runs, then gradients."""
    recipe: dict[str, Any] = {}
    whole: dict[str, str] = {}
    for name in ("first", "second"):
        with attempt(report, f"same recipe, {name} run", CPU):
            recipe = _recipe(settings, name)
            done = command(settings, "train", recipe_file(settings, recipe))
            done.check()
            hashes = _hashes(Path(recipe["output"]))
            report(f"same recipe, {name} run", seconds=short(done.seconds), **_same(hashes, whole))
            whole = whole or hashes
    for number in (signal.SIGKILL, signal.SIGTERM):
        with attempt(report, f"{number.name}, then --resume", CPU):
            _killed(settings, report, number, whole)
    for precision in ("fp32", "bf16"):
        with attempt(report, f"gradients, {precision}", settings.device):
            _gradients(settings, report, precision)


def _killed(settings: Settings, report: Report, number: signal.Signals, whole: dict[str, str]) -> None:
    """Kill a run in the middle, resume it, and compare its bits with those of an undisturbed run."""
    recipe = _recipe(settings, number.name)
    file, metrics = recipe_file(settings, recipe), Path(recipe["output"]) / "metrics.jsonl"
    stop_at = 3 if settings.small else 15
    killed = command(settings, "train", file, until=lambda: len(lines(metrics)) >= stop_at, number=number)
    at = len(lines(metrics))
    done = command(settings, "train", file, "--resume")
    done.check()
    same = _same(_hashes(Path(recipe["output"])), whole)
    report(f"{number.name}, then --resume", exit_code=killed.code, at_step=at, seconds=short(done.seconds), **same)


def _recipe(settings: Settings, name: str) -> dict[str, Any]:
    count, batch_size, epochs = (16, 8, 3) if settings.small else (256, 64, 10)
    return settings.recipe(
        settings.pairs(count), "gpu-tiny" if settings.small else RUNS, f"exact {name}", train__batch_size=batch_size,
        train__epochs=epochs, checkpoint__every_steps=2 if settings.small else 10,
        data__workers=min(4, workers_of(settings)), optim__lr=1e-4,
    )  # fmt: skip


def _hashes(run: Path) -> dict[str, str]:
    """Return hashes of everything that the recipe determines."""
    files = [run / "metrics.jsonl", *sorted((run / "model").rglob("*.safetensors"))]
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def _same(hashes: dict[str, str], whole: dict[str, str]) -> dict[str, Any]:
    return {"same_bits": {name: hashes.get(name) == value for name, value in whole.items()}} if whole else {}


def _gradients(settings: Settings, report: Report, precision: str) -> None:
    """Report how far the gradients of micro-batches are from those of one pass, and of one pass done again."""
    model, size = settings.models[0], 8 if settings.small else 512
    trainer = Clipkit(settings, model, train__precision=precision)
    batch = trainer.batch(size)
    one = _gradient(trainer, trainer.step(size, size), batch)
    for what, micro in (
        ("one pass again", size), ("4 micro-batches", parts_of(size, 4)), ("16 micro-batches", parts_of(size, 16))
    ):  # fmt: skip
        other = _gradient(trainer, trainer.step(size, micro), batch)
        total = torch.stack([value.norm() for value in one[1].values()]).norm()
        apart = {name: (other[1][name] - value).norm() for name, value in one[1].items()}
        worst = max(apart, key=lambda name: float(apart[name] / one[1][name].norm().clamp(min=1e-30)))
        report(
            f"gradients, {precision}, {what} against one pass", model=model, pairs=size,
            loss=one[0], loss_difference=short(abs(other[0] - one[0])),
            same_bits=all(torch.equal(other[1][name], value) for name, value in one[1].items()),
            difference=short(float(torch.stack(list(apart.values())).norm() / total)),
            worst=worst, worst_difference=short(float(apart[worst] / one[1][worst].norm())),
        )  # fmt: skip


def _gradient(trainer: Clipkit, step: Step, batch: Any) -> tuple[float, dict[str, Tensor]]:
    loss = step(batch, 0).item()
    parameters = trainer.plan.model.named_parameters()
    gradients = {name: value.grad.clone() for name, value in parameters if value.grad is not None}
    trainer.plan.optimizer.zero_grad()
    return loss, gradients
