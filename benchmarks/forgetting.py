"""Measure what tuning a pretrained model gains and forgets, by method, at each method's best learning rate, as JSON.

    pip install 'clipkit-torch[demo]'
    python benchmarks/forgetting.py OUT [--seeds 3]

The data are compositions: one of 80 emoji on one of 8 backgrounds, in one of 4 corners, with the caption "NAME on
COLOR, CORNER". For each seed, a small dual encoder learns 40 emoji from scratch; this is the pretrained model. It is
then tuned on the 40 other emoji by each method of `METHODS`. Compositions are divided into training, development and
test parts. Learning rates are chosen by the gain on the development part of seed 0 alone; the epoch and the
interpolation, with its rule (the best gain with at most one point of retention lost), on the development part of each
seed. All figures are of the test part: mean recall on the new emoji (gain) and on the emoji of pretraining (retention).
Methods that tune the text tower alone keep an index of images valid: their image features are compared with those of
the base, bit by bit, and the last table shows the share of the gain that they keep.

Started again with the same OUT, it continues: finished runs are read, not repeated.
"""

import argparse
import csv
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from PIL import Image

import clipkit
from clipkit.data import read_pairs
from clipkit.data.sources.emoji import read_emoji
from clipkit.evaluation import retrieval
from clipkit.models import DualEncoder, load
from clipkit.training.interpolation import alphas_of, interpolated, start_of

SIDE = 64
COLORS = {
    "red": (200, 60, 60), "green": (60, 160, 80), "blue": (60, 80, 200), "yellow": (230, 210, 80),
    "white": (245, 245, 245), "black": (20, 20, 20), "pink": (240, 170, 190), "gray": (128, 128, 128),
}  # fmt: skip
CORNERS = {"top left": (2, 2), "top right": (30, 2), "bottom left": (2, 30), "bottom right": (30, 30)}
PARTS = {"train": 20, "dev": 6, "test": 6}  # of the 32 compositions of each emoji
BOTH = ("image", "text")
METHODS: dict[str, dict[str, Any]] = {
    "full": {"tune": "full", "rates": [1e-4, 3e-4, 1e-3, 3e-3]},
    "full, layer decay 0.65": {"tune": "full", "rates": [3e-4, 1e-3, 3e-3, 1e-2], "optim.layer_decay": 0.65},
    "last:2": {"tune": "last:2", "rates": [3e-4, 1e-3, 3e-3, 1e-2]},
    "head": {"tune": "head", "rates": [1e-3, 3e-3, 1e-2, 3e-2]},
    # ProLIP's weight: 1 / number of training images per class.
    "head, pull_to_start 0.05": {"tune": "head", "rates": [1e-3, 3e-3, 1e-2, 3e-2], "optim.pull_to_start": 0.05},
    "lora": {"tune": "lora", "rates": [1e-3, 3e-3, 1e-2, 3e-2]},
    "text full": {"tune": "full", "sides": ("text",), "rates": [3e-4, 1e-3, 3e-3, 1e-2]},
    "text last:2": {"tune": "last:2", "sides": ("text",), "rates": [3e-4, 1e-3, 3e-3, 1e-2]},
    "text head": {"tune": "head", "sides": ("text",), "rates": [1e-3, 3e-3, 1e-2, 3e-2]},
    "text lora": {"tune": "lora", "sides": ("text",), "rates": [1e-3, 3e-3, 1e-2, 3e-2]},
}
MOST_FORGOTTEN = 0.01


def write_data(folder: Path, seed: int) -> None:
    """Write the images, and old_PART.csv and new_PART.csv for each part."""
    generator = np.random.default_rng(seed)
    simple = [one for one in read_emoji() if len(one.codes) == 1 and one.group not in (None, "Symbols", "Flags")]
    chosen = generator.choice(len(simple), 80, replace=False)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    rows: dict[str, list[list[str]]] = {f"{half}_{part}": [] for half in ("old", "new") for part in PARTS}
    parts = [part for part, count in PARTS.items() for _ in range(count)]
    for number, index in enumerate(chosen):
        half = "old" if number < 40 else "new"
        drawing = Image.open(simple[index].image).convert("RGBA").resize((32, 32), Image.Resampling.LANCZOS)
        compositions = [(color, corner) for color in COLORS for corner in CORNERS]
        for (color, corner), part in zip(compositions, generator.permutation(parts), strict=True):
            image = Image.new("RGB", (SIDE, SIDE), COLORS[color])
            image.paste(drawing, CORNERS[corner], drawing)
            name = f"images/{number:02d}-{color}-{corner.replace(' ', '-')}.png"
            image.save(folder / name)
            rows[f"{half}_{part}"].append([name, f"{simple[index].name} on {color}, {corner}"])
    for name, lines in rows.items():
        with (folder / f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([["image", "caption"], *lines])


def pretrained(folder: Path, seed: int) -> Path:
    """Train the dual encoder that serves as the pretrained one; return its run folder."""
    recipe = {
        "model": {
            "image": {"name": "timm:test_vit", "pretrained": False, "image_size": SIDE},
            "text": {
                "name": "hf:bert", "pretrained": False, "tokenizer": "open_clip:ViT-B-32", "context_length": 24,
                "config": {
                    "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 256
                },
            },
            "embed_dim": 64,
        },
        "data": {"train": str(folder / "old_train.csv"), "validation": str(folder / "old_dev.csv"), "workers": 0,
                 "augment": "none"},
        "optim": {"lr": 2e-3},
        "train": {"epochs": 40, "batch_size": 100, "seed": seed},
        "eval": {"every_epochs": 20},
        "output": str(folder / "base"),
    }  # fmt: skip
    clipkit.train(clipkit.Recipe.from_dict(recipe), resume=True)
    return folder / "base"


def tuned(base: Path, folder: Path, method: str, rate: float, seed: int) -> tuple[DualEncoder, float]:
    """Tune the base; return the best weights and their mean recall on the development part."""
    own = dict(METHODS[method])
    tune, sides, _ = own.pop("tune"), own.pop("sides", BOTH), own.pop("rates")
    towers = {side: {"tune": tune if side in sides else "frozen"} for side in BOTH}
    output = folder / "runs" / f"{method}-{rate:g}".replace(" ", "-").replace(",", "").replace(":", "")
    recipe = clipkit.Recipe.from_dict(
        {
            "model": {"name": str(base), **towers},
            "data": {
                "train": str(folder / "new_train.csv"),
                "validation": str(folder / "new_dev.csv"),
                "workers": 0,
                "augment": "none",
            },
            "loss": {"logit_scale": "freeze"},
            "train": {"epochs": 10, "batch_size": 100, "seed": seed},
            "eval": {"every_epochs": 5},
            "output": str(output),
        }
    ).override({"optim.lr": rate, **own})
    result = clipkit.train(recipe, resume=True)
    return load(str(output)), result["settings"]["best"]["value"]


def mean_recall(model: DualEncoder, file: Path) -> float:
    """Return the mean recall on a table of pairs."""
    return float(retrieval(model, str(file), cache=False)["metrics"]["mean_recall"]["value"])


def both(model: DualEncoder, folder: Path, part: str) -> dict[str, float]:
    """Return the mean recall on the new emoji and on those of pretraining."""
    names = {"new": "new", "old": "old"}
    return {name: mean_recall(model, folder / f"{half}_{part}.csv") for name, half in names.items()}


def keeps_index(base: Path, model: DualEncoder, folder: Path) -> bool:
    """Return whether the image features of the new test part are those of the base, bit by bit."""
    images = read_pairs(str(folder / "new_test.csv")).images
    return torch.equal(load(str(base)).encode_image(images), model.encode_image(images))


def interpolated_figures(base: Path, model: DualEncoder, folder: Path) -> dict[str, float]:
    """Interpolate by the rule on the development part; return alpha and the figures on the test part."""
    start = start_of(load(str(base)))
    names = {"target": "new", "retention": "old"}
    _, alpha = interpolated(model, start, lambda: both(model, folder, "dev"), names, alphas_of(11), MOST_FORGOTTEN)
    return {"alpha": alpha, **both(model, folder, "test")}


def measure(out: Path, seeds: int, methods: Sequence[str]) -> dict[str, Any]:
    """Return the figures of the base and of each method, by seed."""
    found: dict[str, Any] = {"base": [], "methods": {name: {"runs": []} for name in methods}}
    for seed in range(seeds):
        folder = out / f"seed{seed}"
        write_data(folder, seed)
        base = pretrained(folder, seed)
        found["base"].append(both(load(str(base)), folder, "test"))
        for name, row in found["methods"].items():
            rates = METHODS[name]["rates"] if seed == 0 else [row["rate"]]
            tried = {rate: tuned(base, folder, name, rate, seed) for rate in rates}
            best = max(tried, key=lambda rate: tried[rate][1])
            if seed == 0:
                row["rate"], row["development"] = best, {f"{rate:g}": value for rate, (_, value) in tried.items()}
            model = tried[best][0]
            row["runs"].append(
                {
                    "keeps_index": keeps_index(base, model, folder),
                    "end": both(model, folder, "test"),
                    "interpolated": interpolated_figures(base, model, folder),
                }
            )
        print(json.dumps(found), flush=True)
    return found


def table_of_index(found: dict[str, Any]) -> str:
    """Return the gain of each method that tunes the text tower alone, as a share of the gain of both towers."""
    lines = ["| method | gain, both towers | gain, text tower | share of the gain | same image features |"]
    lines.append("| --- " * 5 + "|")
    for name, row in found["methods"].items():
        if name.removeprefix("text ") not in found["methods"] or not name.startswith("text "):
            continue
        gains = [
            [run["end"]["new"] - base["new"] for run, base in zip(each["runs"], found["base"], strict=True)]
            for each in (found["methods"][name.removeprefix("text ")], row)
        ]
        shares = [alone / together for together, alone in zip(*gains, strict=True)]
        same = "yes" if all(run["keeps_index"] for run in row["runs"]) else "no"
        lines.append(f"| {name} | {' | '.join(map(cell, (*gains, shares)))} | {same} |")
    return "\n".join(lines)


def cell(values: list[float]) -> str:
    """Return the mean, the lowest and the highest value in percent."""
    return f"{100 * mean(values):.1f} ({100 * min(values):.1f} – {100 * max(values):.1f})"


def table(found: dict[str, Any]) -> str:
    """Return the means over the seeds, with the lowest and highest value, as a Markdown table."""
    lines = ["| method | learning rate | new | old | interpolated: new | old | alpha |", "| --- " * 7 + "|"]
    base = [cell([seed[half] for seed in found["base"]]) for half in ("new", "old")]
    lines.append(f"| before tuning | | {base[0]} | {base[1]} | | | |")
    for name, row in found["methods"].items():
        cells = [
            cell([run[kind][half] for run in row["runs"]])
            for kind in ("end", "interpolated")
            for half in ("new", "old")
        ]
        alphas = ", ".join(f"{run['interpolated']['alpha']:g}" for run in row["runs"])
        lines.append(f"| {name} | {row['rate']:g} | {' | '.join(cells)} | {alphas} |")
    return "\n".join(lines)


def main() -> None:
    """Run all methods and print the JSON and the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", choices=list(METHODS), action="append", help="only this method")
    arguments = parser.parse_args()
    found = measure(arguments.out, arguments.seeds, arguments.only or list(METHODS))
    (arguments.out / "forgetting.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print(table(found), table_of_index(found), sep="\n\n")


if __name__ == "__main__":
    main()
