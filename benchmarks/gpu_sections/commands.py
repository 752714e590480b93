"""Sections `pipeline` and `evaluate`: whole commands, in processes of their own."""

import json
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from gpu_sections.common import Report, Settings, attempt, short
from gpu_sections.features import shards_of, workers_of

CPU = torch.device("cpu")  # these sections leave the GPU to their commands


@dataclass(frozen=True)
class Done:
    """A command that has ended."""

    code: int | None
    seconds: float
    output: str

    def check(self) -> None:
        """Raise an error if it failed."""
        if self.code != 0:
            raise RuntimeError(f"exit code {self.code}: {self.output[-400:]}")


def command(
    settings: Settings,
    *words: str | Path,
    until: Callable[[], bool] = lambda: False,
    number: int = 0,
    limit: float = 60,
) -> Done:
    """Run `clipkit WORDS` in a fork, which has all imports; when `until` is true, send it the signal `number`."""
    output = settings.folder / f"command-{time.monotonic_ns()}.txt"
    process = multiprocessing.get_context("fork").Process(target=_command, args=([str(word) for word in words], output))
    began = time.monotonic()
    process.start()
    sent = False
    while process.exitcode is None:
        process.join(0.005)
        if time.monotonic() - began > limit:
            process.kill()
        elif not sent and until():
            os.kill(process.pid or 0, number)
            sent = True
    return Done(process.exitcode, time.monotonic() - began, output.read_text(errors="replace"))


def _command(words: list[str], output: Path) -> None:
    for number in (1, 2):
        os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    from clipkit.cli import main

    sys.argv = ["clipkit", *words]
    main()


def lines(file: Path) -> list[dict[str, Any]]:
    """Return the complete rows of a log."""
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def recipe_file(settings: Settings, recipe: dict[str, Any]) -> Path:
    """Write a recipe, and return its file."""
    file = Path(f"{recipe['output']}.yaml")
    file.write_text(yaml.safe_dump(recipe))
    return file


def section_pipeline(settings: Settings, report: Report) -> None:
    """Train from JPEG files and from prepared shards, and report how much of the time the run waited."""
    model, count, batch_size = settings.models[0], *((32, 8) if settings.small else (4096, 2048))
    sources = {
        "JPEG files": lambda: str(settings.pairs(count)),
        "prepared shards": lambda: shards_of(settings, count, report),
    }
    for source, data in sources.items():
        what = f"clipkit train, {model}, from {source}"
        with attempt(report, what, CPU):
            epochs = 2 if settings.small else 4 if source == "JPEG files" else 8
            recipe = settings.recipe(
                Path(data()), model, f"pipeline {source}", train__batch_size=batch_size, train__epochs=epochs,
                data__workers=workers_of(settings),
            )  # fmt: skip
            done = command(settings, "train", recipe_file(settings, recipe))
            done.check()
            rows = lines(Path(recipe["output"]) / "speed.jsonl")[2:]
            spent = sum(row["step_seconds"] + row["data_wait_seconds"] for row in rows)
            report(
                what,
                command_seconds=short(done.seconds),
                workers=workers_of(settings),
                batch_size=batch_size,
                steps=len(rows),
                pairs_per_second=short(len(rows) * batch_size / spent),
                waiting=round(sum(row["data_wait_seconds"] for row in rows) / spent, 4),
                step_seconds=short(statistics.median(row["step_seconds"] for row in rows)),
                mfu=max((row["mfu"] for row in rows if "mfu" in row), default=None),
                memory_gb=round(rows[-1]["memory_bytes"] / 1e9, 2),
            )


def section_evaluate(settings: Settings, report: Report) -> None:
    """Measure `clipkit eval retrieval`, and again with its features in the cache."""
    model, (count, captions) = settings.models[0], (16, 2) if settings.small else (1000, 5)
    os.environ["CLIPKIT_CACHE"] = str(settings.folder / "cache")
    data, result = settings.pairs(count, captions), settings.folder / "result.json"
    for again in (False, True):
        what = f"clipkit eval retrieval, {model}{', again' if again else ''}"
        with attempt(report, what, CPU):
            words = ("eval", "retrieval", "--model", f"open_clip:{model}", "--data", data, "--json", result)
            done = command(settings, *words)
            done.check()
            metrics = json.loads(result.read_text())["metrics"]
            report(what, images=count, captions=count * captions, seconds=short(done.seconds), metrics=len(metrics))
