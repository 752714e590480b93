"""Measure what hard negatives give and take on near misses: batches of mined ones, and altered captions, as JSON.

    pip install 'clipkit-torch[demo]'
    python benchmarks/hard_negatives.py OUT [--seeds 3]

The base is that of benchmarks/forgetting.py: a small dual encoder that learned compositions of 40 emoji. It is tuned on
40 other emoji, with two wordings per image ("NAME on COLOR, CORNER" and "COLOR background with NAME, CORNER"), by each
method of `METHODS`, all with the same learning rate, epochs and batches. Figures are of the test part: mean recall with
the first wording; accuracy on near misses in which one word differs, the emoji, the color or the corner, with one
correct caption (SugarCrepe) and with both wordings, each of which must score higher than the incorrect one
(SugarCrepe++); the same with texts alone, where both wordings must be more similar to each other than to the incorrect
caption.

Started again with the same OUT, it continues: finished runs are read, not repeated.
"""

import argparse
import csv
import json
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from forgetting import COLORS, CORNERS, mean_recall, pretrained, write_data

import clipkit
from clipkit.evaluation import compositional
from clipkit.models import load

RATE = 1e-3
METHODS: dict[str, dict[str, Any]] = {
    "random batches": {},
    "hard negatives, groups of 4": {"data.hard_negatives": {"group": 4}},
    "the same, no margin": {"data.hard_negatives": {"group": 4, "margin": 0.0}},
    "hard negatives, groups of 16": {"data.hard_negatives": {"group": 16}},
    "negclip, altered captions": {"loss.name": "negclip"},
}
FIGURES = ("mean recall", "one caption", "two captions", "texts alone")


def wordings(name: str, color: str, corner: str) -> tuple[str, str]:
    """Return both wordings of a composition."""
    return f"{name} on {color}, {corner}", f"{color} background with {name}, {corner}"


def altered(parts: tuple[str, ...], names: list[str], generator: np.random.Generator) -> tuple[str, ...]:
    """Return a composition in which the emoji, the color or the corner is another one."""
    at = int(generator.integers(3))
    others = [one for one in (names, list(COLORS), list(CORNERS))[at] if one != parts[at]]
    return (*parts[:at], str(generator.choice(others)), *parts[at + 1 :])


def write_near_misses(folder: Path, seed: int) -> None:
    """Write the training part with two wordings and altered captions, and the near misses of the test part."""
    tables = {}
    for part in ("train", "test"):
        with (folder / f"new_{part}.csv").open(encoding="utf-8") as file:
            tables[part] = [(row["image"], row["caption"]) for row in csv.DictReader(file)]
    names = sorted({caption.rpartition(" on ")[0] for _, caption in tables["train"]})
    for part, rows in tables.items():
        generator = np.random.default_rng([seed, part == "test"])
        lines = []
        for image, caption in rows:
            name, _, rest = caption.rpartition(" on ")
            parts = (name, *rest.split(", "))
            right, wrong = wordings(*parts), wordings(*altered(parts, names, generator))
            if part == "train":
                lines += [[image, *pair] for pair in zip(right, wrong, strict=True)]
            else:
                lines.append([image, right[0], wrong[0], right[1]])
        header = ["image", "caption", "negative_caption", *(["caption2"] * (part == "test"))]
        with (folder / f"near_{part}.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([header, *lines])
    with (folder / "near_test_one.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header[:3], *(line[:3] for line in lines)])


def figures(name: str, folder: Path) -> dict[str, float]:
    """Return the figures of a model on the test part."""
    model = load(name)
    one, two = (compositional(model, folder / f"near_test{end}.csv", cache=False)["metrics"] for end in ("_one", ""))
    values = (
        mean_recall(model, folder / "new_test.csv"),
        *(float(metric["value"]) for metric in (one["text_acc"], two["text_acc"], two["text_only_acc"])),
    )
    return dict(zip(FIGURES, values, strict=True))


def tuned(folder: Path, method: str, seed: int) -> str:
    """Tune the base by a method; return the run folder."""
    output = folder / "runs" / f"near {method}".replace(" ", "-").replace(",", "")
    recipe = clipkit.Recipe.from_dict(
        {
            "model": {"name": str(folder / "base")},
            "data": {"train": str(folder / "near_train.csv"), "workers": 0, "augment": "none"},
            "loss": {"logit_scale": "freeze"},
            "optim": {"lr": RATE},
            "train": {"epochs": 10, "batch_size": 100, "seed": seed},
            "output": str(output),
        }
    ).override(METHODS[method])
    clipkit.train(recipe, resume=True)
    return str(output)


def main() -> None:
    """Run all methods; print each seed, and the means with the lowest and highest value as a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    found: dict[str, list[dict[str, float]]] = {name: [] for name in ("before tuning", *METHODS)}
    for seed in range(arguments.seeds):
        folder = arguments.out / f"seed{seed}"
        if not (folder / "base" / "report.html").exists():
            write_data(folder, seed)
            pretrained(folder, seed)
        write_near_misses(folder, seed)
        for name, rows in found.items():
            rows.append(figures(str(folder / "base") if name not in METHODS else tuned(folder, name, seed), folder))
        print(json.dumps({name: rows[-1] for name, rows in found.items()}), flush=True)
    print(f"| | {' | '.join(FIGURES)} |", "| --- " * (1 + len(FIGURES)) + "|", sep="\n")
    for name, rows in found.items():
        cells = ([100 * row[figure] for row in rows] for figure in FIGURES)
        shown = (f"{mean(values):.1f} ({min(values):.1f} – {max(values):.1f})" for values in cells)
        print(f"| {name} | {' | '.join(shown)} |")


if __name__ == "__main__":
    main()
