"""Measure how much of a language a text tower learns from translated captions alone, without images, as JSON.

    pip install 'clipkit-torch[demo]'
    python benchmarks/new_language.py OUT [--seeds 3]

The base is that of benchmarks/forgetting.py: a small dual encoder that learned compositions of 40 emoji with English
captions. Its text tower learns German from the pairs (English caption, German caption) of the training part, with the
objective translations; the teacher is the base. German names of the emoji are Unicode's (CLDR). All figures are of the
test part, whose compositions are new: mean recall with English and with German captions, before and after. With
`--pairs`, only that many pairs are used. The image features are compared with those of the base, bit by bit.

Started again with the same OUT, it continues: finished runs are read, not repeated.
"""

import argparse
import csv
import json
from pathlib import Path
from statistics import mean
from typing import Any

import emoji
import numpy as np
import torch
from forgetting import mean_recall, pretrained, write_data

import clipkit
from clipkit.data import read_pairs
from clipkit.data.sources.emoji import read_emoji
from clipkit.models import load

WORDS = {
    "red": "Rot", "green": "Grün", "blue": "Blau", "yellow": "Gelb", "white": "Weiß", "black": "Schwarz",
    "pink": "Rosa", "gray": "Grau", "top left": "oben links", "top right": "oben rechts",
    "bottom left": "unten links", "bottom right": "unten rechts",
}  # fmt: skip
RATE = 1e-3
EPOCHS = 20


def german_names() -> dict[str, str]:
    """Return the German name of each emoji by its English name."""
    emoji.config.load_language("de")
    german = {text: entry.get("de", "") for text, entry in emoji.EMOJI_DATA.items()}
    return {
        one.name: german.get("".join(map(chr, one.codes)), "").strip(":").replace("_", " ") or one.name
        for one in read_emoji()
    }


def translated(caption: str, names: dict[str, str]) -> str:
    """Return the German form of a caption "NAME on COLOR, CORNER"."""
    name, _, rest = caption.rpartition(" on ")
    color, _, corner = rest.partition(", ")
    return f"{names[name]} auf {WORDS[color]}, {WORDS[corner]}"


def write_translations(folder: Path, pairs: int | None, seed: int) -> Path:
    """Write the test part with German captions, and the pairs of the training part; return the latter."""
    names = german_names()
    for part in ("test", "train"):
        rows = list(csv.DictReader((folder / f"old_{part}.csv").open(encoding="utf-8")))
        with (folder / f"german_{part}.csv").open("w", encoding="utf-8", newline="") as file:
            table = [[row["image"], translated(row["caption"], names)] for row in rows]
            csv.writer(file).writerows([["image", "caption"], *table])
    captions = [row["caption"] for row in rows]
    chosen = np.random.default_rng(seed).permutation(len(captions))[:pairs]
    target = folder / f"pairs_{len(chosen)}.csv"
    with target.open("w", encoding="utf-8", newline="") as file:
        table = [[captions[row], translated(captions[row], names)] for row in chosen]
        csv.writer(file).writerows([["caption", "translation"], *table])
    return target


def measure(out: Path, seed: int, pairs: int | None) -> dict[str, Any]:
    """Return mean recalls before and after one run."""
    folder = out / f"seed{seed}"
    base = folder / "base"
    if not (base / "report.html").exists():
        write_data(folder, seed)
        pretrained(folder, seed)
    source = write_translations(folder, pairs, seed)
    output = folder / "runs" / source.stem
    recipe = {
        "model": {"name": str(base), "image": {"tune": "frozen"}},
        "data": {"train": str(source), "workers": 0},
        "objective": "translations",
        "translations": {"teacher": str(base)},
        "optim": {"lr": RATE},
        "train": {"epochs": EPOCHS, "batch_size": min(100, pairs or 100), "seed": seed},
        "output": str(output),
    }
    clipkit.train(clipkit.Recipe.from_dict(recipe), resume=True)
    models = {"before": load(str(base)), "after": load(str(output))}
    files = {"English": folder / "old_test.csv", "German": folder / "german_test.csv"}
    images = read_pairs(str(files["English"])).images
    before, after = (model.encode_image(images) for model in models.values())
    figures = {
        f"{name} {when}": mean_recall(model, file) for name, file in files.items() for when, model in models.items()
    }
    return {"seed": seed, "pairs": pairs, "same image features": torch.equal(before, after), **figures}


def main() -> None:
    """Run all seeds; print each, and the means with the lowest and highest value."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--pairs", type=int)
    arguments = parser.parse_args()
    rows = []
    for seed in range(arguments.seeds):
        rows.append(measure(arguments.out, seed, arguments.pairs))
        print(json.dumps(rows[-1]), flush=True)
    for name in (name for name in rows[0] if name.endswith(("before", "after"))):
        values = [100 * row[name] for row in rows]
        print(f"{name}: {mean(values):.1f} ({min(values):.1f} – {max(values):.1f})")


if __name__ == "__main__":
    main()
