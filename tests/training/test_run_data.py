"""Several sources in a recipe, and a share kept for validation."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import clipkit
from clipkit.errors import DataError, RecipeError
from clipkit.recipe import Recipe
from clipkit.training.plan import make_plan
from tests.conftest import draw, write_csv

Build = Callable[..., Recipe]


@pytest.fixture
def more(tmp_path: Path) -> Path:
    (tmp_path / "more").mkdir()
    for number in range(8):
        draw("green", "circle", shift=number % 4).save(tmp_path / "more" / f"{number}.png")
    rows = [[f"{number}.png", f"green {number}"] for number in range(8)]
    return write_csv(tmp_path / "more" / "p.csv", ["file_name", "title"], rows)


def test_sources_with_weights_and_a_share_for_validation(
    recipe: Build, more: Path, shapes: Path, tmp_path: Path
) -> None:
    sources = [str(shapes / "captions.csv"), {"source": str(more), "weight": 2}]
    changes = {"data.train": sources, "data.validation": 0.25, "train.epochs": 1}
    clipkit.train(recipe(changes))
    log = (tmp_path / "run" / "log.txt").read_text()
    assert f"{shapes / 'captions.csv'} + {more}: 18 images" in log
    assert "columns: image from file_name, caption from title" in log
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert (results["data"]["name"], results["data"]["images"]) == (f"0.25 of {shapes / 'captions.csv'} + {more}", 6)
    with pytest.raises(RecipeError, match="the weights of data.train changed"):
        clipkit.train(recipe({**changes, "data.train": [sources[0], str(more)], "train.epochs": 2}), resume=True)
    # The bad ones of a share are left out of it.
    for image in [*more.parent.glob("*.png")]:
        image.write_bytes(b"<html>")
    clipkit.train(recipe({**changes, "data.max_bad": 8}), overwrite=True)
    assert "images are skipped, the first: " in (tmp_path / "run" / "log.txt").read_text()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.validation": 1.5}, "validation is 1.5; give a path, or a share"),
        ({"data.validation": 3}, "validation is 3; give a path, or a share"),
        ({"data.train": []}, "data.train"),
        ({"data.train": [{"source": "a.csv", "weight": 0}]}, "data.train.0.weight"),
        ({"data.train": [{"sauce": "a.csv"}]}, r"data.train.0.sauce is not a valid key; did you mean"),
        ({"data.train": 3}, "data.train"),
    ],
)
def test_what_a_recipe_may_not_say(recipe: Build, changes: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        recipe(changes)
    assert "\n" not in str(caught.value)


def test_captions_and_images_alone_do_not_mix(recipe: Build, shapes: Path) -> None:
    with pytest.raises(DataError, match="has images without captions"):
        make_plan(recipe({"data.train": [str(shapes / "captions.csv"), str(shapes / "images")]}))
