"""Captions that belong to other images are found, by the run and by the doctor; a good run has no such finding."""

import random
from pathlib import Path

import pytest

import clipkit
from clipkit.recipe import Recipe
from clipkit.training.guards.doctor import examine
from tests.conftest import COLOURS, SHAPES, draw, write_csv

FOUND = {"validation_at_chance", "memorization"}


def written(folder: Path, size: int, order: list[int] | None = None) -> Path:
    """Write 64 images of shapes with captions, those of other images if `order` is given."""
    folder.mkdir()
    names, captions = [], []
    for number, (color, shape, shift) in enumerate((c, s, n) for n in range(4) for c in COLOURS for s in SHAPES):
        names.append(f"{number}.png")
        draw(color, shape, size, shift=3 * shift - 4).save(folder / names[-1])
        captions.append(f"a {color} {shape} at {shift}")
    order = order or list(range(64))
    return write_csv(
        folder / "pairs.csv", ["image", "caption"], [[n, captions[o]] for n, o in zip(names, order, strict=True)]
    )


@pytest.mark.slow
@pytest.mark.parametrize("shuffled", ["", "train", "both"])
def test_shuffled_captions_are_found(shuffled: str, tiny_clip: Path, tmp_path: Path) -> None:
    order = list(range(64))
    random.Random(1).shuffle(order)
    recipe = Recipe.from_dict({
        "model": {"name": str(tiny_clip)},
        "data": {
            "train": str(written(tmp_path / "train", 32, order if shuffled else None)),
            "validation": str(written(tmp_path / "dev", 36, order[::-1] if shuffled == "both" else None)),
            "augment": "none", "workers": 0,
        },
        "optim": {"lr": 3e-3}, "train": {"epochs": 60, "batch_size": 32}, "eval": {"every_epochs": 15},
        "output": str(tmp_path / "run"),
    })  # fmt: skip
    results = clipkit.train(recipe)
    found = [finding for finding in examine(tmp_path / "run")[1] if finding.name in FOUND]
    assert [finding.name for finding in found] == (["validation_at_chance"] if shuffled else [])
    assert {finding["name"] for finding in results["findings"]} & FOUND == {finding.name for finding in found}
    for finding in found:
        assert "clipkit data preview" in finding.advice
        assert finding.line() in (tmp_path / "run" / "log.txt").read_text()
