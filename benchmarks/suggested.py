"""Compare the recipe of `clipkit suggest` with the plain default on held-out parts of five datasets, as JSON.

    pip install 'clipkit-torch[demo,data]'
    python benchmarks/suggested.py OUT [--seeds 3] [--first 0]

The base is that of benchmarks/forgetting.py: for each seed, a dual encoder of 3.7 M parameters that learned
compositions of 40 emoji. It is tuned on compositions of other emoji: `few` (160 images), `many` (2,400, five
captions each), `classes` (folders of 40 classes), `stream` (shards read over HTTP), `long` (captions beyond the
context). The plain default is a recipe of model, data and output alone, with a batch of at most the number of
images. Both recipes have the same validation data and choose the epoch on it. All figures are of a test part: mean
recall, for `classes` zero-shot accuracy.

Started again with the same OUT, it continues: finished runs are read, not repeated.
"""

import argparse
import csv
import io
import json
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from forgetting import COLORS, CORNERS, SIDE, pretrained, write_data
from PIL import Image

import clipkit
from clipkit.data.sources.emoji import read_emoji
from clipkit.evaluation import retrieval, zeroshot
from clipkit.models import load

PARTS = {"train": 20, "dev": 6, "test": 6}  # of the 32 compositions of each emoji
EMOJI = {"few": 40, "many": 120, "classes": 40, "stream": 40, "long": 40}
FEW = 4  # compositions of each emoji in `few`
SHARDS = 4
REPEAT = "It is drawn in flat colors without any shadow and has a plain background without a texture or a frame."


def captions_of(dataset: str, name: str, color: str, corner: str) -> list[str]:
    """Return the captions of a composition."""
    if dataset == "many":
        return [
            f"{name} on {color}, {corner}",
            f"{color} background with {name}, {corner}",
            f"{corner}: {name}, {color}",
            f"a drawing of {name} in the {corner} corner of a {color} square",
            f"{name}",
        ]
    return [f"{name} on {color}, {corner}" + f". {REPEAT}" * (dataset == "long")]


def write_dataset(folder: Path, dataset: str, seed: int) -> None:
    """Write PART.csv for each part, or for `classes` a folder per class, and for `stream` also shards."""
    if (folder / "done").exists():
        return
    generator = np.random.default_rng([seed, sorted(EMOJI).index(dataset)])
    simple = [one for one in read_emoji() if len(one.codes) == 1 and one.group not in (None, "Symbols", "Flags")]
    # The base learns the first 40 of this permutation, as in benchmarks/forgetting.py.
    others = np.setdiff1d(np.arange(len(simple)), np.random.default_rng(seed).choice(len(simple), 80, replace=False))
    rows: dict[str, list[list[str]]] = {part: [] for part in PARTS}
    parts = [part for part, count in PARTS.items() for _ in range(count)]
    for index in generator.choice(others, EMOJI[dataset], replace=False):
        drawing = Image.open(simple[index].image).convert("RGBA").resize((32, 32), Image.Resampling.LANCZOS)
        name = simple[index].name.replace("/", "-")
        taken = 0
        compositions = [(color, corner) for color in COLORS for corner in CORNERS]
        for (color, corner), part in zip(compositions, generator.permutation(parts), strict=True):
            taken += part == "train"
            if dataset == "few" and part == "train" and taken > FEW:
                continue
            image = Image.new("RGB", (SIDE, SIDE), COLORS[color])
            image.paste(drawing, CORNERS[corner], drawing)
            inside = f"{part}/{name}" if dataset == "classes" else "images"
            file = f"{inside}/{index:04d}-{color}-{corner.replace(' ', '-')}.png"
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            image.save(folder / file)
            rows[part] += [[file, caption] for caption in captions_of(dataset, name, color, corner)]
    for part, lines in rows.items():
        if dataset != "classes":
            with (folder / f"{part}.csv").open("w", encoding="utf-8", newline="") as opened:
                csv.writer(opened).writerows([["image", "caption"], *lines])
    if dataset == "stream":
        write_shards(folder, rows["train"])
    (folder / "done").touch()


def write_shards(folder: Path, rows: list[list[str]]) -> None:
    """Write tar shards of images and captions."""
    for shard in range(SHARDS):
        with tarfile.open(folder / f"shard-{shard}.tar", "w") as tar:
            for number, (file, caption) in enumerate(rows[shard::SHARDS]):
                for ending, content in (("png", (folder / file).read_bytes()), ("txt", caption.encode())):
                    member = tarfile.TarInfo(f"{number:05d}.{ending}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))


class Quiet(SimpleHTTPRequestHandler):
    """Server of files that prints nothing."""

    def log_message(self, format: str, *arguments: Any) -> None:
        """Print nothing."""


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve a folder at a local address."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def recipes_of(base: Path, folder: Path, dataset: str, address: str, seed: int) -> dict[str, clipkit.Recipe]:
    """Return both recipes."""
    train = {"classes": folder / "train", "stream": f"{address}/shard-{{0..{SHARDS - 1}}}.tar"}
    source = str(train.get(dataset, folder / "train.csv"))
    validation = f"{folder / 'dev'}?templates=imagenet_simple" if dataset == "classes" else str(folder / "dev.csv")
    suggestion = clipkit.suggest(source, str(base), validation=validation)
    (folder / "suggested.yaml").write_text(suggestion.to_yaml(), encoding="utf-8")
    common = {"train.seed": seed, "data.workers": 0}
    if dataset == "stream":
        common["data.train"] = source
    suggested = suggestion.recipe.override({**common, "output": str(folder / "suggested")})
    data: dict[str, Any] = {"train": source, "validation": validation, "samples": suggested.data.samples}
    size = min(512, suggestion.data.images)
    plain: dict[str, Any] = {"model": {"name": str(base)}, "data": data, "train": {"batch_size": size}}
    default = clipkit.Recipe.from_dict({**plain, "output": str(folder / "default")}).override(common)
    return {"default": default, "suggested": suggested}


def measured(model: str, folder: Path, dataset: str) -> float:
    """Return the mean recall, or the zero-shot accuracy, on the test part."""
    if dataset == "classes":
        result = zeroshot(load(model), f"{folder / 'test'}?templates=imagenet_simple", cache=False)
        return float(result["metrics"]["acc1"]["value"])
    return float(retrieval(load(model), str(folder / "test.csv"), cache=False)["metrics"]["mean_recall"]["value"])


def compare(out: Path, seed: int, dataset: str) -> dict[str, Any]:
    """Train both recipes; return the figures on the test part, and what was suggested."""
    start, folder = out / f"seed{seed}", out / f"seed{seed}" / dataset
    base = start / "base"
    if not (base / "report.html").exists():
        write_data(start, seed)
        pretrained(start, seed)
    write_dataset(folder, dataset, seed)
    with served(folder) as address:
        recipes = recipes_of(base, folder, dataset, address, seed)
        found: dict[str, Any] = {"dataset": dataset, "seed": seed, "before": measured(str(base), folder, dataset)}
        for name, recipe in recipes.items():
            if not Path(recipe.output, "report.html").exists():
                clipkit.train(recipe, overwrite=True)
            found[name] = measured(recipe.output, folder, dataset)
    chosen = recipes["suggested"]
    found["recipe"] = {
        "tune": chosen.model.image.tune, "lr": chosen.optim.lr, "batch_size": chosen.train.batch_size,
        "epochs": chosen.train.epochs,
    }  # fmt: skip
    return found


def table(rows: list[dict[str, Any]]) -> str:
    """Return the means over the seeds, with the lowest and highest value, as a Markdown table."""

    def cell(name: str, of: list[dict[str, Any]]) -> str:
        values = [100 * row[name] for row in of if name in row]
        return f"{mean(values):.1f} ({min(values):.1f} – {max(values):.1f})" if values else ""

    lines = ["| data | before | default | suggested | recipe |", "| --- " * 5 + "|"]
    for dataset in dict.fromkeys(row["dataset"] for row in rows):
        of = [row for row in rows if row["dataset"] == dataset]
        cells = " | ".join(cell(name, of) for name in ("before", "default", "suggested"))
        lines.append(f"| {dataset} | {cells} | {json.dumps(of[0].get('recipe', {}))} |")
    return "\n".join(lines)


def main() -> None:
    """Run all comparisons; print each, and the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first", type=int, default=0, help="first seed")
    parser.add_argument("--only", choices=list(EMOJI), action="append", help="only this dataset")
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for seed in range(arguments.first, arguments.first + arguments.seeds):
        for dataset in arguments.only or EMOJI:
            rows.append(compare(arguments.out, seed, dataset))
            print(json.dumps(rows[-1]), flush=True)
    (arguments.out / "suggested.json").write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    print(table(rows))


if __name__ == "__main__":
    main()
