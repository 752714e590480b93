"""Measure the images per second of the data loader beside open_clip's, as JSON.

    python benchmarks/loader.py ../shared/flickr8k FOLDER [--count 2000] [--workers 2] [--rounds 3]

Write `count` images of Flickr8k to FOLDER, upscaled to 500 × 375 as JPEGs of quality 90, with captions.csv, and the
same images prepared by `clipkit data prepare --size 256`. Then measure alternately, so that other work on the machine
affects all candidates equally: open_clip's CSV dataset in its own DataLoader, clipkit's loader on the CSV, and
clipkit's loader on the prepared shards; each with open_clip's training transform for 224 pixels (a random resized crop
of 0.9 to 1 of the area, bicubic), batches of 256, and CLIP's tokens. open_clip's workers normalize; clipkit's workers
pass bytes on, and the device normalizes them. Both variants are measured: without normalization, and with it on the
CPU. Reported are images per second in each round, over two epochs without the first batch, and the ratios of the
medians.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import open_clip
import torch
from PIL import Image

from clipkit.data import EpochSampler, InputMaker, Policy, TextView, TokenStore, pair_loader, read_pairs
from clipkit.data.prepare import prepare
from clipkit.models import load
from clipkit.recipe import steps_of

_SIZE, _BATCH, _EPOCHS = (500, 375), 256, 2


def make(flickr8k: Path, folder: Path, count: int) -> None:
    """Write the upscaled images and the prepared shards, unless they exist."""
    if not (folder / "captions.csv").exists():
        pairs = read_pairs(str(flickr8k / "train.csv"))
        (folder / "images").mkdir(parents=True, exist_ok=True)
        rows = ["image,caption"]
        for position, image in enumerate(pairs.images[:count]):
            name = f"images/{position:05d}.jpg"
            Image.open(str(image)).convert("RGB").resize(_SIZE, Image.Resampling.BICUBIC).save(
                folder / name, quality=90
            )
            caption = pairs.captions[int(pairs.captions_of_image[position][0])].replace('"', "")
            rows.append(f'{name},"{caption}"')
        (folder / "captions.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    prepare(read_pairs(str(folder / "captions.csv")), folder / "prepared", size=256)


def open_clip_batches(folder: Path, workers: int) -> Iterator[int]:
    """Yield batch sizes from open_clip's dataset and loader, as its trainer builds them."""
    from open_clip_train.data import get_csv_dataset

    transform = open_clip.image_transform(224, is_train=True)
    arguments = SimpleNamespace(
        train_data=str(folder / "absolute.csv"),
        csv_img_key="image",
        csv_caption_key="caption",
        csv_separator=",",
        distributed=False,
        batch_size=_BATCH,
        workers=workers,
    )
    data = get_csv_dataset(arguments, transform, True, tokenizer=open_clip.get_tokenizer("ViT-B-32"))
    for _ in range(_EPOCHS):
        for images, _captions in data.dataloader:
            yield len(images)


def clipkit_batches(source: str, workers: int, normalize: bool) -> Iterator[int]:
    """Yield batch sizes from clipkit's loader, as a training run uses it, with or without normalization."""
    pairs = read_pairs(source)
    model = load("open_clip:ViT-B-32")
    preprocess = model.image.preprocess
    sampler = EpochSampler(pairs, "one", _BATCH, seed=0)
    policy = Policy(steps_of("clip"), preprocess.image_size, preprocess.of_crop, preprocess, seed=0)
    texts = {"text_features": TextView("same", pairs)}
    tokenize = model.text.tokenize
    store = TokenStore(pairs.captions, tokenize, tokenize.context_length, tokenize.pad_id)
    slices = sampler.slices(0, _EPOCHS * sampler.steps_per_epoch, slice(0, _BATCH))
    maker = InputMaker({"image_features": policy}, texts, tokenize, policy.draft, store)
    batches = pair_loader(pairs, slices, maker, workers)
    for batch in batches:
        if normalize:
            assert model.image.ready(batch.inputs["image_features"])["pixel_values"].dtype == torch.float32
        yield len(batch)


def rate(batches: Iterator[int]) -> float:
    """Return the images per second after the first batch."""
    next(batches)
    began = time.perf_counter()
    return sum(batches) / (time.perf_counter() - began)


def main() -> None:
    """Measure all candidates and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("flickr8k", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    folder, workers = arguments.folder, arguments.workers
    make(arguments.flickr8k, folder, arguments.count)
    # open_clip opens paths relative to the working directory, not to the CSV.
    rows = (folder / "captions.csv").read_text(encoding="utf-8").replace("\nimages/", f"\n{folder.resolve()}/images/")
    (folder / "absolute.csv").write_text(rows, encoding="utf-8")
    table, prepared = str(folder / "captions.csv"), str(folder / "prepared" / "shards-*.tar")
    sides: dict[str, Callable[[], Iterator[int]]] = {
        "open_clip": lambda: open_clip_batches(folder, workers),
        "clipkit": lambda: clipkit_batches(table, workers, False),
        "clipkit, normalized here": lambda: clipkit_batches(table, workers, True),
        "clipkit, prepared": lambda: clipkit_batches(prepared, workers, False),
        "clipkit, prepared, normalized here": lambda: clipkit_batches(prepared, workers, True),
    }
    rates: dict[str, Any] = {name: [] for name in sides}
    for _ in range(arguments.rounds):
        for name, side in sides.items():
            rates[name].append(round(rate(side()), 1))
    base = statistics.median(rates["open_clip"])
    ratios = {name: round(statistics.median(values) / base, 2) for name, values in rates.items() if name != "open_clip"}
    print(json.dumps({"images_per_second": rates, "to_open_clip": ratios, "workers": workers}, indent=2))


if __name__ == "__main__":
    main()
