"""Settings, captions, images and timing for all sections, and failures reported as lines."""

import csv
import gc
import json
import os
import platform
import random
import statistics
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import open_clip
import torch
from PIL import Image

import clipkit.cli
import clipkit.evaluation
import clipkit.training  # noqa: F401  imported before the sections are forked
from clipkit.versions import __version__

TINY = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2},
}
# Captions of Flickr8k per thousand, by their number of tokens.
LENGTHS = {
    5: 1, 6: 4, 7: 11, 8: 31, 9: 60, 10: 84, 11: 92, 12: 105, 13: 106, 14: 93, 15: 92, 16: 81, 17: 64, 18: 46, 19: 38,
    20: 26, 21: 20, 22: 15, 23: 9, 24: 8, 25: 4, 26: 3, 27: 2, 28: 1, 29: 1, 30: 1, 31: 1,
}  # fmt: skip
WORDS = (
    "a the two man woman dog boy girl child people red white black blue brown green small large young old in on with"
    " of and to at near through water grass snow beach street ball rock field tree runs jumps plays stands sits walks"
)


class Report(Protocol):
    """Prints one line."""

    def __call__(self, what: str, **figures: Any) -> None: ...


@dataclass(frozen=True)
class Settings:
    """Options of the script."""

    small: bool
    captions_file: Path
    folder: Path
    """Temporary folder of the script, shared by its sections."""
    models: tuple[str, ...]
    peak: float
    """TFLOP/s of which the shares are shares."""

    @property
    def device(self) -> torch.device:
        """CPU for the small variant, otherwise the GPU."""
        return torch.device("cpu" if self.small else "cuda")

    @property
    def precision(self) -> str:
        """Precision of the training steps."""
        return "fp32" if self.small else "bf16"

    @cached_property
    def captions(self) -> list[str]:
        """Captions of the CSV, or random ones."""
        if self.captions_file.is_file():
            with self.captions_file.open(encoding="utf-8", newline="") as file:
                return [row["caption"] for row in csv.DictReader(file)]
        draw, words = random.Random(0), WORDS.split()
        lengths = draw.choices(list(LENGTHS), list(LENGTHS.values()), k=30_000)
        return [" ".join(draw.choices(words, k=length - 2)) for length in lengths]

    def some_captions(self, count: int) -> list[str]:
        """Return so many captions, repeated if there are fewer."""
        return [self.captions[index % len(self.captions)] for index in range(count)]

    def images(self, count: int) -> list[Path]:
        """Return JPEG files of 500 × 375 pixels: 64 different ones, under as many names as asked for."""
        folder = self.folder / "images"
        folder.mkdir(exist_ok=True)
        draw = np.random.default_rng(0)
        for index in range(sum(1 for _ in folder.iterdir()), count):
            file = folder / f"{index:06d}.jpg"
            if index >= 64:
                os.link(folder / f"{index % 64:06d}.jpg", file)
                continue
            coarse = Image.fromarray(draw.integers(0, 256, (12, 16, 3), dtype=np.uint8))
            pixels = np.asarray(coarse.resize((500, 375), Image.Resampling.BICUBIC), dtype=np.float32)
            noisy = pixels + draw.normal(0, 8, pixels.shape)
            Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(file, quality=90)
        return [folder / f"{index:06d}.jpg" for index in range(count)]

    def pairs(self, count: int, captions: int = 1) -> Path:
        """Write a CSV with so many images, each with so many captions."""
        file = self.folder / f"pairs_{count}_{captions}.csv"
        texts = iter(self.some_captions(count * captions))
        with file.open("w", encoding="utf-8", newline="") as out:
            rows = csv.writer(out)
            rows.writerow(["image", "caption"])
            rows.writerows([image, next(texts)] for image in self.images(count) for _ in range(captions))
        return file

    def recipe(self, data: Path, model: str, name: str, **changes: Any) -> dict[str, Any]:
        """Return a recipe without evaluations; `changes` have the form section__key."""
        recipe: dict[str, Any] = {
            "model": {"name": f"open_clip:{model}"},
            "data": {"train": str(data), "workers": 0},
            "train": {"precision": self.precision, "epochs": 1},
            "output": str(self.folder / name),
        }
        for key, value in changes.items():
            section, _, entry = key.partition("__")
            recipe.setdefault(section, {})[entry] = value
        return recipe


def prepare(settings: Settings) -> None:
    """Register the tiny architecture, before the sections are forked."""
    gc.collect()
    gc.freeze()  # what has been imported is not searched again at each `free`
    file = settings.folder / "gpu-tiny.json"
    file.write_text(json.dumps(TINY))
    open_clip.add_model_config(file)


def section_machine(settings: Settings, report: Report) -> None:
    """Say what the figures were measured on."""
    if not settings.small and not torch.cuda.is_available():
        raise SystemExit("there is no GPU; use --small")
    real = settings.captions_file.is_file()
    tokens = (open_clip.get_tokenizer("ViT-B-32")(settings.some_captions(2000)) != 0).sum(1).float().mean()
    gpu: dict[str, Any] = {}
    if not settings.small:
        free, total = torch.cuda.mem_get_info()
        gpu = {"memory_gb": round(total / 1e9, 1), "free_gb": round(free / 1e9, 1)}
    report(
        "machine",
        device=platform.processor() or "cpu" if settings.small else torch.cuda.get_device_name(),
        **gpu,
        cores=os.cpu_count(),
        threads=torch.get_num_threads(),
        clipkit=__version__,
        torch=torch.__version__,
        open_clip=open_clip.__version__,
        python=platform.python_version(),
        precision=settings.precision,
        captions=str(settings.captions_file.name) if real else "random words with the lengths of Flickr8k's captions",
        tokens_per_caption=round(tokens.item(), 2),
    )


@dataclass(frozen=True)
class Timing:
    """Durations of one measurement."""

    seconds: list[float]

    @property
    def median(self) -> float:
        """Median in seconds."""
        return statistics.median(self.seconds)

    @property
    def figures(self) -> dict[str, Any]:
        """Median, lowest and highest, and their number."""
        low, high = min(self.seconds), max(self.seconds)
        values = {"seconds": self.median, "lowest": low, "highest": high}
        return {name: short(value) for name, value in values.items()} | {"repetitions": len(self.seconds)}


def short(value: float) -> float:
    """Round to four digits."""
    return float(f"{value:.4g}")


def timed(
    work: Callable[[], object], device: torch.device, budget: float = 0.5, least: int = 3, most: int = 20, warm: int = 1
) -> Timing:
    """Repeat `work` at least `least` times, and more often while it takes less than `budget` seconds together."""
    for _ in range(warm):
        work()
    seconds: list[float] = []
    while len(seconds) < least or (sum(seconds) < budget and len(seconds) < most):
        seconds.append(_once(work, device))
    return Timing(seconds)


def _once(work: Callable[[], object], device: torch.device) -> float:
    if device.type == "cpu":
        began = time.perf_counter()
        work()
        return time.perf_counter() - began
    torch.cuda.synchronize()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    work()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1000


def free(device: torch.device) -> None:
    """Free unused memory, and forget the peak."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def memory(device: torch.device) -> dict[str, float]:
    """Return the peak memory since `free` on a GPU, in GB."""
    return {} if device.type == "cpu" else {"memory_gb": round(torch.cuda.max_memory_allocated() / 1e9, 2)}


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that the card has too little memory, for either library."""
    return isinstance(error, torch.OutOfMemoryError) or "out of memory" in str(error) or "ALLOC_FAILED" in str(error)


@contextmanager
def attempt(report: Report, what: str, device: torch.device, **figures: Any) -> Iterator[None]:
    """Report an error of the block as a line, and continue after the block with free memory."""
    free(device)
    failed: dict[str, Any] = {}
    try:
        yield
    except Exception as error:
        failed["failed"] = "out of memory" if is_out_of_memory(error) else f"{type(error).__name__}: {error}"[:600]
        if not is_out_of_memory(error):
            failed["at"] = [line.strip() for line in traceback.format_tb(error.__traceback__)[-2:]]
    if failed:
        report(what, **figures, **failed)
    free(device)
