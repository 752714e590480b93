"""Images a second out of the loader, beside open_clip's, as JSON.

    python benchmarks/loader.py ../shared/flickr8k FOLDER [--count 2000] [--workers 2] [--rounds 3]

Writes `count` images of Flickr8k to FOLDER, upscaled to 500 × 375 as JPEG of quality 90, with captions.csv, and the
same prepared by `clipkit data prepare --size 256`. Then, in turns, so that what else the machine does meets all of
them alike: open_clip's CSV data set in its own DataLoader, our loader on the CSV, our loader on the prepared shards;
each with open_clip's training transform for 224 pixels (a random resized crop of 0.9 to 1 of the area, bicubic), a
batch of 256, tokens of CLIP. open_clip's workers normalise; ours hand over bytes, which the device normalises: both are
given, without that and with it done here on the processor. Given are images a second in each round, over two epochs
without the first batch, and the ratios of the medians.
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

from clipkit.data import EpochSampler, InputMaker, Policy, TextView, TokenStore, pair_loader, prepare, read_pairs
from clipkit.models import load
from clipkit.recipe import steps_of

_SIZE, _BATCH, _EPOCHS = (500, 375), 256, 2


def make(flickr8k: Path, folder: Path, count: int) -> None:
    """The upscaled images and the prepared ones, where they are not there yet."""
    if not (folder / "captions.csv").exists():
        pairs = read_pairs(str(flickr8k / "train.csv"))
        (folder / "images").mkdir(parents=True, exist_ok=True)
        rows = ["image,caption"]
        for place, image in enumerate(pairs.images[:count]):
            own = f"images/{place:05d}.jpg"
            Image.open(str(image)).convert("RGB").resize(_SIZE, Image.Resampling.BICUBIC).save(folder / own, quality=90)
            caption = pairs.captions[int(pairs.captions_of_image[place][0])].replace('"', "")
            rows.append(f'{own},"{caption}"')
        (folder / "captions.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    prepare(read_pairs(str(folder / "captions.csv")), folder / "prepared", size=256)


def of_open_clip(folder: Path, workers: int) -> Iterator[int]:
    """Its own data set and loader, as its trainer builds them."""
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


def ours(source: str, workers: int, normalise: bool) -> Iterator[int]:
    """As a training run does it; what the device does left out, or done here."""
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
        if normalise:
            assert model.image.ready(batch.inputs["image_features"])["pixel_values"].dtype == torch.float32
        yield len(batch)


def rate(batches: Iterator[int]) -> float:
    """Images a second after the first batch."""
    next(batches)
    began = time.perf_counter()
    return sum(batches) / (time.perf_counter() - began)


def main() -> None:
    """One JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("flickr8k", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    folder, workers = arguments.folder, arguments.workers
    make(arguments.flickr8k, folder, arguments.count)
    # open_clip opens paths as they are, relative to the working directory.
    rows = (folder / "captions.csv").read_text(encoding="utf-8").replace("\nimages/", f"\n{folder.resolve()}/images/")
    (folder / "absolute.csv").write_text(rows, encoding="utf-8")
    table, prepared = str(folder / "captions.csv"), str(folder / "prepared" / "shards-*.tar")
    sides: dict[str, Callable[[], Iterator[int]]] = {
        "open_clip": lambda: of_open_clip(folder, workers),
        "clipkit": lambda: ours(table, workers, False),
        "clipkit, normalised here": lambda: ours(table, workers, True),
        "clipkit, prepared": lambda: ours(prepared, workers, False),
        "clipkit, prepared, normalised here": lambda: ours(prepared, workers, True),
    }
    found: dict[str, Any] = {name: [] for name in sides}
    for _ in range(arguments.rounds):
        for name, side in sides.items():
            found[name].append(round(rate(side()), 1))
    base = statistics.median(found["open_clip"])
    ratios = {name: round(statistics.median(own) / base, 2) for name, own in found.items() if name != "open_clip"}
    print(json.dumps({"images_per_second": found, "to_open_clip": ratios, "workers": workers}, indent=2))


if __name__ == "__main__":
    main()
