"""Section `encode`: images from files, prepared shards and tensors, and text, beside open_clip in plain loops."""

import os
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

import clipkit
from clipkit.data.pairs import read_pairs
from clipkit.data.prepare import prepare, read_for_shards
from gpu_sections.common import Report, Settings, Timing, attempt, short, timed


def workers_of(settings: Settings) -> int:
    """Return the loader workers: two cores are left for the others."""
    return 1 if settings.small else max(1, min(14, (os.cpu_count() or 1) - 2))


def shards_of(settings: Settings, count: int, report: Report) -> str:
    """Prepare shards of so many images, and return their pattern."""
    out = settings.folder / f"shards_{count}"
    pairs = read_for_shards(str(settings.pairs(count)))
    made: list[Any] = []
    timing = timed(lambda: made.append(prepare(pairs, out)), torch.device("cpu"), budget=0, least=1, warm=0)
    report("clipkit data prepare", images=count, **timing.figures, images_per_second=short(count / timing.median))
    return str(made[0].pattern)


def section_encode(settings: Settings, report: Report) -> None:
    """Measure images per second and captions per second in fp32 and with `dtype="auto"`."""
    model, device = settings.models[0], settings.device
    count, texts = (16, 64) if settings.small else (6144, 20_000)
    batch_size = 8 if settings.small else 256
    captions = list(dict.fromkeys(settings.some_captions(texts)))
    files = settings.images(count)
    items = {"files": files, "prepared shards": read_pairs(shards_of(settings, count, report)).images}
    exact: dict[str, Tensor] = {}
    weights: dict[str, Tensor] = {}
    for name, dtype in (("fp32", torch.float32), ("auto", "auto")):
        with attempt(report, f"{model}, encode", device, code=f"clipkit, {name}"):
            ours = clipkit.load(f"open_clip:{model}", device=device, dtype=dtype)
            if weights:
                ours.load_state_dict(weights)
            weights = weights or {key: value.clone() for key, value in ours.state_dict().items()}
            features = _clipkit(report, model, ours, name, items, captions, batch_size)
            for kind in sorted(features.keys() & exact.keys()):
                difference = _difference(features[kind], exact[kind])
                report(f"{model}, difference from fp32, {kind}", code=f"clipkit, {name}", **difference)
            exact = exact or features
            del ours
    with attempt(report, f"{model}, encode", device, code="open_clip"):
        _open_clip(settings, report, model, files, captions, batch_size)


def _clipkit(
    report: Report, model: str, ours: Any, name: str, items: dict[str, Any], captions: list[str], batch_size: int
) -> dict[str, Tensor]:
    """Measure a loaded model, and return its features by the kind of its input."""
    device, code = ours.device, f"clipkit, {name}"
    features: dict[str, Tensor] = {}
    for kind, images in items.items():
        with attempt(report, f"{model}, images from {kind}", device, code=code):
            ours.encode_image(images[:batch_size])
            features[kind], timing = _encoded(partial(ours.encode_image, images))
            _rate(report, f"{model}, images from {kind}", "images", len(images), timing, code=code)
    with attempt(report, f"{model}, captions", device, code=code):
        ours.encode_text(captions[:batch_size])
        features["captions"], timing = _encoded(partial(ours.encode_text, captions))
        _rate(report, f"{model}, captions", "captions", len(captions), timing, code=code)
    with attempt(report, f"{model}, image tower alone", device, code=code), torch.inference_mode():
        side = ours.image.preprocess.image_size
        pixels = torch.randint(0, 256, (batch_size, 3, side, side), dtype=torch.uint8, device=device)
        inputs = ours.image.ready({"pixel_values": pixels})
        with torch.autocast(device.type, torch.bfloat16) if name == "auto" else nullcontext():
            timing = timed(lambda: ours.image(inputs), device, warm=3)
        _rate(report, f"{model}, image tower alone", "images", batch_size, timing, code=code)
    return features


def _encoded(work: Any) -> tuple[Tensor, Timing]:
    """Time something that returns features on the CPU: the clock of the host is right."""
    results: list[Tensor] = []
    timing = timed(lambda: results.append(work()), torch.device("cpu"), budget=1.0, least=2, most=5, warm=0)
    return results[-1], timing


def _rate(report: Report, what: str, unit: str, count: int, timing: Timing, **figures: Any) -> None:
    report(what, **figures, count=count, **timing.figures, **{f"{unit}_per_second": short(count / timing.median)})


def _difference(one: Tensor, two: Tensor) -> dict[str, float]:
    cosines = F.cosine_similarity(one, two)
    return {"largest": short((one - two).abs().max().item()), "lowest_cosine": round(cosines.min().item(), 6)}


class _Files(torch.utils.data.Dataset[Tensor]):
    """Images by position, through open_clip's transform."""

    def __init__(self, files: list[Path], transform: Any) -> None:
        self.files = files
        self.transform = transform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Tensor:
        with Image.open(self.files[index]) as image:
            pixels: Tensor = self.transform(image.convert("RGB"))
        return pixels


def _open_clip(
    settings: Settings, report: Report, model: str, files: list[Path], captions: list[str], batch_size: int
) -> None:
    """Measure open_clip with a DataLoader and its tokenizer, under bf16 autocast."""
    device, workers = settings.device, workers_of(settings)
    native, _, transform = open_clip.create_model_and_transforms(model)
    native = native.to(device).eval()
    tokenize = open_clip.get_tokenizer(model)
    cast = torch.autocast(device.type, torch.bfloat16)

    def images() -> Tensor:
        loader = DataLoader(_Files(files, transform), batch_size, num_workers=workers, pin_memory=not settings.small)
        with torch.inference_mode(), cast:
            return torch.cat(
                [native.encode_image(pixels.to(device, non_blocking=True)).float().cpu() for pixels in loader]
            )

    def texts() -> Tensor:
        with torch.inference_mode(), cast:
            return torch.cat(
                [
                    native.encode_text(tokenize(captions[start : start + 512]).to(device)).float().cpu()
                    for start in range(0, len(captions), 512)
                ]
            )

    code = "open_clip, bf16 autocast"
    with attempt(report, f"{model}, images from files", device, code=code):
        _, timing = _encoded(images)
        _rate(report, f"{model}, images from files", "images", len(files), timing, code=code, workers=workers)
    with attempt(report, f"{model}, captions", device, code=code):
        _, timing = _encoded(texts)
        _rate(report, f"{model}, captions", "captions", len(captions), timing, code=code)
