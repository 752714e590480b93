"""Shared fixtures: images, captions, and a CLIP with a few thousand parameters."""

import csv
import gc
import gzip
import json
import os
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.charts import not_drawn

# No test uses the network, whatever libraries do by default.
os.environ["HF_HUB_OFFLINE"] = "1"
# No test reads or writes the user's cache.
_CACHE = tempfile.TemporaryDirectory(prefix="clipkit-tests-")
os.environ["CLIPKIT_CACHE"] = _CACHE.name

# No test cuts the power, and waiting for the disk takes a large part of a small run.
os.fsync = lambda descriptor: None  # type: ignore[assignment]

FLICKR8K = Path(__file__).parents[2] / "shared" / "flickr8k"

COLOURS = {"red": (220, 30, 30), "green": (30, 180, 60), "blue": (40, 60, 220), "yellow": (230, 210, 40)}
SHAPES = ("square", "circle", "stripe", "cross")


def pytest_collection_finish() -> None:
    """Exempt everything that was imported from garbage collection, which took a tenth of the time of small runs."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _same_seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _charts_are_not_drawn(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "tests/report/" not in request.node.nodeid:
        monkeypatch.setattr("clipkit.report.run.line_chart", not_drawn)


@pytest.fixture(scope="session")
def flickr8k() -> Path:
    if not FLICKR8K.is_dir():
        pytest.skip("../shared/flickr8k is missing")
    return FLICKR8K


def draw(color: str, shape: str, size: int = 32, shift: int = 0) -> Image.Image:
    """Draw a colored shape on a gray background."""
    pixels = np.full((size, size, 3), 128, dtype=np.uint8)
    y, x = np.mgrid[:size, :size] - size // 2 - shift
    match shape:
        case "square":
            inside = (abs(x) < size // 4) & (abs(y) < size // 4)
        case "circle":
            inside = x**2 + y**2 < (size // 3) ** 2
        case "stripe":
            inside = abs(y) < size // 8
        case _:
            inside = (abs(y) < size // 10) | (abs(x) < size // 10)
    pixels[inside] = COLOURS[color]
    return Image.fromarray(pixels)


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of 16 images of colored shapes: captions.csv has two captions per image, classes.csv the colors."""
    folder = tmp_path_factory.mktemp("shapes")
    (folder / "images").mkdir()
    captions, labels = [], []
    for number, (color, shape) in enumerate((c, s) for c in COLOURS for s in SHAPES):
        name = f"images/{number:02d}.png"
        draw(color, shape, shift=number % 3).save(folder / name)
        captions += [[name, f"a {color} {shape}"], [name, f"the {shape} is {color}"]]
        labels.append([name, color])
    write_csv(folder / "captions.csv", ["image", "caption"], captions)
    write_csv(folder / "classes.csv", ["image", "label"], labels)
    return folder


def write_csv(path: Path, header: list[str], rows: list[list[str]]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)
    return path


def clip_vocabulary(merge_count: int) -> tuple[dict[str, int], list[str]]:
    """Return the vocabulary and first merges of CLIP's tokenizer, from open_clip's file, as transformers has them."""
    package = find_spec("open_clip")
    assert package is not None
    assert package.origin is not None
    file = Path(package.origin).parent / "bpe_simple_vocab_16e6.txt.gz"
    merges = gzip.decompress(file.read_bytes()).decode("utf-8").split("\n")[1 : 1 + merge_count]
    from open_clip.tokenizer import bytes_to_unicode

    letters = list(bytes_to_unicode().values())
    words = letters + [letter + "</w>" for letter in letters] + ["".join(merge.split()) for merge in merges]
    words += ["<|startoftext|>", "<|endoftext|>"]
    return {word: index for index, word in enumerate(words)}, merges


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a randomly initialized CLIP in the Hub's layout and the beginning of CLIP's vocabulary."""
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

    from clipkit.models.image_processors import processor_class

    folder = tmp_path_factory.mktemp("tiny_clip")
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2}
    vocabulary, merges = clip_vocabulary(2000)
    end = len(vocabulary) - 1
    config = CLIPConfig(
        text_config=shape | {"vocab_size": end + 1, "bos_token_id": end - 1, "eos_token_id": end, "pad_token_id": end},
        vision_config=shape | {"image_size": 32, "patch_size": 8},
        projection_dim=24,
    )
    CLIPModel(config).save_pretrained(folder)
    CLIPTokenizer(vocab=vocabulary, merges=[tuple(m.split()) for m in merges]).save_pretrained(folder)
    processor_class("CLIP")(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def small_recipe(tiny_clip: Path, shapes: Path, output: Path) -> Any:
    """Return the recipe of a small fine-tune."""
    from clipkit.recipe import Recipe

    captions = str(shapes / "captions.csv")
    return Recipe.from_dict(
        {
            "model": {"name": str(tiny_clip)},
            "data": {"train": captions, "validation": captions, "workers": 0},
            "optim": {"lr": 1e-3},
            "train": {"epochs": 2, "batch_size": 8},
            "output": str(output),
        }
    )


@pytest.fixture
def recipe(shapes: Path, tiny_clip: Path, tmp_path: Path) -> Callable[..., Any]:
    """Function that returns the small fine-tune with changes: `recipe({"optim.lr": 1e-3})`."""

    def build(changes: dict[str, Any] | None = None) -> Any:
        return small_recipe(tiny_clip, shapes, tmp_path / "run").override(changes or {})

    return build


@pytest.fixture
def recipe_file(recipe: Callable[..., Any], tmp_path: Path) -> Path:
    """YAML file of the small fine-tune."""
    file = tmp_path / "recipe.yaml"
    file.write_text(recipe().to_yaml(), encoding="utf-8")
    return file


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of its own for a test."""
    monkeypatch.setenv("CLIPKIT_CACHE", str(tmp_path / "cache"))


def losses_of(recipe: Any) -> list[float]:
    """Return the losses of the steps of a run."""
    return [row["loss"] for row in read_lines(Path(recipe.output) / "metrics.jsonl")]


def read_lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
