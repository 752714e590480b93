"""Measure what a training step costs, as JSON: GradCache against one pass, clipkit's trainer against open_clip's.

    python benchmarks/step_cost.py ../shared/flickr8k/train.csv [--steps 20] [--batch 64]

The model is a ViT-Ti/16 at 112 pixels with a 6-layer text tower of width 256, from scratch, with the same shape in
both libraries; float32 on a CPU, bfloat16 on a GPU. The data are the first images of the CSV with one caption each.
Each trainer runs in its own process; the trainers alternate.
"""

import argparse
import csv
import itertools
import json
import multiprocessing
import statistics
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
PRECISION = "bf16" if DEVICE == "cuda" else "fp32"
SIZE, CONTEXT, WIDTH, TEXT_WIDTH, EMBED = 112, 77, 192, 256, 256


def save_clip(folder: Path) -> None:
    """Write the model in transformers' layout, with CLIP's tokenizer from the vocabulary that open_clip ships."""
    import gzip

    from open_clip.tokenizer import bytes_to_unicode
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

    from clipkit.models.image_processors import processor_class

    package = find_spec("open_clip")
    assert package is not None
    assert package.origin is not None
    packed = (Path(package.origin).parent / "bpe_simple_vocab_16e6.txt.gz").read_bytes()
    merges = gzip.decompress(packed).decode().split("\n")[1 : 49152 - 256 - 2 + 1]
    letters = list(bytes_to_unicode().values())
    words = letters + [letter + "</w>" for letter in letters] + ["".join(merge.split()) for merge in merges]
    words += ["<|startoftext|>", "<|endoftext|>"]
    text = {"hidden_size": TEXT_WIDTH, "intermediate_size": 4 * TEXT_WIDTH, "num_hidden_layers": 6}
    vision = {"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_hidden_layers": 12, "num_attention_heads": 3}
    config = CLIPConfig(
        text_config=text | {"num_attention_heads": 4, "eos_token_id": 49407, "hidden_act": "gelu"},
        vision_config=vision | {"image_size": SIZE, "patch_size": 16, "hidden_act": "gelu"},
        projection_dim=EMBED,
    )
    torch.manual_seed(0)
    CLIPModel(config).save_pretrained(folder)
    vocabulary = {word: index for index, word in enumerate(words)}
    CLIPTokenizer(vocab=vocabulary, merges=[tuple(m.split()) for m in merges]).save_pretrained(folder)
    square = {"height": SIZE, "width": SIZE}
    processor_class("CLIP")(size={"shortest_edge": SIZE}, crop_size=square).save_pretrained(folder)


def some_pairs(source: Path, images: int, out: Path) -> None:
    """Write the first images of a captions file, with absolute paths and one caption each."""
    seen: dict[str, str] = {}
    with source.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if len(seen) == images and row["image"] not in seen:
                break
            seen.setdefault(row["image"], row["caption"])
    with out.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["image", "caption"])
        rows.writerows([str((source.parent / name).resolve()), caption] for name, caption in seen.items())


def train_clipkit(folder: Path, batch: int, micro: int, workers: int) -> list[float]:
    """Train with clipkit; return the seconds of each step, including waiting for data."""
    import clipkit
    from clipkit.recipe import Recipe

    recipe = Recipe.from_dict(
        {
            "model": {"name": str(folder / "model")},
            "data": {"train": str(folder / "pairs.csv"), "workers": workers, "crop_scale": [0.9, 1.0]},
            "optim": {"lr": 5e-4, "weight_decay": 0.2, "warmup": 0, "clip": 1.0},
            "train": {"epochs": 1, "batch_size": batch, "micro_batch_size": micro, "precision": PRECISION},
            "output": str(folder / "run"),
        }
    )
    clipkit.train(recipe, overwrite=True)
    rows = [json.loads(line) for line in (folder / "run" / "speed.jsonl").read_text().splitlines()]
    return [row["step_seconds"] + row["data_wait_seconds"] for row in rows]


def train_open_clip(folder: Path, batch: int, micro: int, workers: int) -> list[float]:
    """Train with open_clip's loop and CSV loader; return the seconds of each step."""
    from open_clip import get_tokenizer
    from open_clip.loss import ClipLoss
    from open_clip.model import CLIP
    from open_clip.transform import image_transform
    from open_clip_train.data import get_csv_dataset
    from open_clip_train.params import parse_args
    from open_clip_train.train import train_one_epoch

    torch.manual_seed(0)
    model = CLIP(
        EMBED,
        vision_cfg={"image_size": SIZE, "layers": 12, "width": WIDTH, "head_width": 64, "patch_size": 16},
        text_cfg={"context_length": CONTEXT, "vocab_size": 49408, "width": TEXT_WIDTH, "heads": 4, "layers": 6},
        output_dict=True,
    ).to(DEVICE)
    args = parse_args(
        [
            "--train-data",
            str(folder / "pairs.csv"),
            "--batch-size",
            str(batch),
            "--workers",
            str(workers),
            "--csv-img-key",
            "image",
            "--csv-caption-key",
            "caption",
            "--csv-separator",
            ",",
            "--precision",
            "amp_bf16" if DEVICE == "cuda" else "fp32",
            "--grad-clip-norm",
            "1.0",
            "--skip-scheduler",
            "--report-to",
            "",
        ]
    )
    args.device, args.distributed, args.rank, args.world_size, args.distill = DEVICE, False, 0, 1, False
    args.wandb = args.tensorboard = False
    preprocess = image_transform(SIZE, is_train=True)
    data = {"train": get_csv_dataset(args, preprocess, is_train=True, tokenizer=get_tokenizer("ViT-B-32"))}
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.2)
    ends: list[float] = []

    def note_the_time(*_: Any) -> None:
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        ends.append(time.perf_counter())

    optimizer.register_step_post_hook(note_the_time)
    train_one_epoch(model, data, ClipLoss(), 0, optimizer, None, lambda step: None, None, args)
    return [after - before for before, after in itertools.pairwise(ends)]


def peak_and_seconds(trainer: Any, folder: Path, batch: int, micro: int, workers: int) -> tuple[list[float], float]:
    """Return the seconds of each step except the first two, and the peak memory of the process in GB."""
    import resource

    steps = trainer(folder, batch, micro, workers)
    if DEVICE == "cuda":
        return steps[2:], torch.cuda.max_memory_allocated() / 1e9
    return steps[2:], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def main() -> None:
    """Compare the trainers and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("captions", type=Path)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=1)
    arguments = parser.parse_args()
    batch = arguments.batch
    runs = {
        "clipkit, one pass": (train_clipkit, batch),
        "clipkit, micro-batches of a quarter": (train_clipkit, batch // 4),
        "open_clip": (train_open_clip, batch),
    }
    medians: dict[str, list[float]] = {name: [] for name in runs}
    peaks: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        save_clip(folder / "model")
        some_pairs(arguments.captions, arguments.steps * batch, folder / "pairs.csv")
        for _ in range(arguments.rounds):
            for name, (trainer, micro) in runs.items():
                with multiprocessing.get_context("spawn").Pool(1) as pool:
                    seconds, peak = pool.apply(_in_child, (trainer, folder, batch, micro, arguments.workers))
                medians[name].append(statistics.median(seconds))
                peaks[name] = round(max(peak, peaks.get(name, 0)), 3)
    step = {name: statistics.median(values) for name, values in medians.items()}
    one, cached, theirs = step.values()
    result = {
        "batch": batch,
        "steps": arguments.steps,
        "rounds": arguments.rounds,
        "seconds_a_step": {name: round(value, 4) for name, value in step.items()},
        "spread": {name: round(max(values) - min(values), 4) for name, values in medians.items()},
        "pairs_a_second": {name: round(batch / value, 1) for name, value in step.items()},
        "peak_gb": peaks,
        "micro_batches_against_one_pass": round(cached / one, 3),
        "clipkit_against_open_clip": round(theirs / one, 3),
        "machine": {
            "device": DEVICE,
            "precision": PRECISION,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        },
    }
    print(json.dumps(result, indent=2))


def _in_child(*arguments: Any) -> tuple[list[float], float]:
    # The pool's workers are daemons, which may not start processes; the data loaders must.
    multiprocessing.current_process()._config["daemon"] = False  # type: ignore[attr-defined]
    return peak_and_seconds(*arguments)


if __name__ == "__main__":
    main()
