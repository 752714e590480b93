"""Mistakes planted into a shipped recipe are found by a guard or by the doctor afterwards."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import clipkit
from clipkit.data import read_pairs
from clipkit.errors import TrainingError, UserError
from clipkit.recipe import Recipe
from clipkit.training.folder.run_folder import RunFolder
from clipkit.training.guards.before import before_first_step
from clipkit.training.guards.doctor import examine
from clipkit.training.guards.monitor import Monitor
from clipkit.training.guards.pretrained import other_settings
from clipkit.training.model import model_of
from clipkit.training.plan import make_plan
from tests.conftest import draw, write_csv

RECIPE = Path(__file__).parents[3] / "recipes" / "finetune_clip.yaml"


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory, tiny_clip: Path) -> tuple[Path, Path]:
    """Return a tiny CLIP fitted to 64 pairs of shapes, and the pairs; captions name color, shape and position."""
    folder = tmp_path_factory.mktemp("fitted")
    rows = []
    colors, forms = ("red", "green", "blue", "yellow"), ("square", "circle", "stripe", "cross")
    for number in range(64):
        color, form, shift = colors[number % 4], forms[number // 4 % 4], number // 16 * 3 - 4
        draw(color, form, shift=shift).save(folder / f"{number}.png")
        rows.append([f"{number}.png", f"a {color} {form} at {shift}"])
    data = write_csv(folder / "pairs.csv", ["image", "caption"], rows)
    recipe = {
        "model": {"name": str(tiny_clip)}, "data": {"train": str(data), "augment": "none", "workers": 0},
        "optim": {"lr": 3e-3}, "train": {"epochs": 60, "batch_size": 32}, "output": str(folder / "run"),
    }  # fmt: skip
    clipkit.train(Recipe.from_dict(recipe))
    return folder / "run" / "model", data


def tuned(model: Path, data: Path, output: Path, changes: dict[str, Any]) -> Recipe:
    """Return the shipped recipe for this model and data, with changes."""
    base = {
        "model.name": str(model), "data.train": str(data), "data.validation": None, "data.workers": 0,
        "train.batch_size": 16, "train.epochs": 1, "output": str(output),
    }  # fmt: skip
    return Recipe.from_yaml(RECIPE).override(base | changes)


def names_found(recipe: Recipe) -> set[str]:
    """Return the names of the findings of the run and of the doctor."""
    try:
        result = clipkit.train(recipe)
    except (TrainingError, UserError):
        return {finding.name for finding in examine(recipe.output)[1]}
    found = {own["name"] for own in result["findings"]}
    assert found <= {finding.name for finding in examine(recipe.output)[1]}  # the doctor repeats them
    return {finding.name for finding in examine(recipe.output)[1]} | found


def names_before(recipe: Recipe) -> set[str]:
    """Return the names of the findings before the first step, without a run."""
    monitor = Monitor(make_plan(recipe), RunFolder(recipe.output), print)
    monitor.check_before(resumed=False)
    return {finding.name for finding in monitor.findings}


def test_shipped_recipe_has_no_finding(fitted: tuple[Path, Path], tmp_path: Path) -> None:
    model, data = fitted
    held_out = tmp_path / "held_out"
    held_out.mkdir()
    rows = []
    for number in range(16):
        draw("red", "cross", size=40, shift=number - 8).save(held_out / f"{number}.png")
        rows.append([f"{number}.png", f"a red cross somewhere, number {number}"])
    validation = write_csv(held_out / "pairs.csv", ["image", "caption"], rows)
    good = tuned(model, data, tmp_path / "run", {"data.validation": str(validation)})
    assert names_found(good) == set()


def settings(**changes: Any) -> dict[str, Any]:
    return {name.replace("__", "."): value for name, value in changes.items()}


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "the learning rate of a model from scratch": (settings(optim__lr=1e-3), "high_learning_rate"),
    "the learning rate in the wrong unit": (settings(optim__lr=1e-9), "low_learning_rate"),
    "nothing tuned": (settings(model__image__tune="frozen", model__text__tune="frozen"), "nothing_to_train"),
    "a warmup as long as the run": (settings(optim__warmup=0.9), "long_warmup"),
    "validated on the training data": (settings(data__validation="TRAIN"), "leaked_images"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistake_in_the_recipe_is_found(mistake: str, fitted: tuple[Path, Path], tmp_path: Path) -> None:
    model, data = fitted
    changes, name = MISTAKES[mistake]
    changes = {key: str(data) if value == "TRAIN" else value for key, value in changes.items()}
    assert name in names_before(tuned(model, data, tmp_path / "run", changes))


def test_divergence_without_validation_is_found(fitted: tuple[Path, Path], tmp_path: Path) -> None:
    recipe = tuned(*fitted, tmp_path / "run", settings(optim__lr=1000, optim__weight_decay=1000))
    assert {"not_finite", "high_learning_rate", "nothing_measured"} <= names_found(recipe)


def test_run_that_learns_nothing_is_at_chance_and_collapsed(
    fitted: tuple[Path, Path], tiny_clip: Path, tmp_path: Path
) -> None:
    data = fitted[1]
    changes = settings(train__epochs=12, optim__lr=1e-6)  # hardly learns
    model = clipkit.load(tiny_clip)
    with torch.no_grad():  # all images and all captions get the same features
        for tower in (model.image, model.text):
            tower.head.weight.mul_(0).add_(0.01)
    model.save(tmp_path / "blind")
    recipe = tuned(tmp_path / "blind", data, tmp_path / "run", changes)
    assert {"loss_at_chance", "collapsed"} <= names_found(recipe)


def test_small_images_long_captions_and_repeated_captions_are_found(fitted: tuple[Path, Path], tmp_path: Path) -> None:
    model, data = fitted
    folder = tmp_path / "data"
    folder.mkdir()
    rows = []
    for number in range(64):
        Image.open(data.parent / f"{number}.png").resize((12, 12)).save(folder / f"{number}.png")
        rows.append([f"{number}.png", "an image" if number % 4 else f"{'word ' * 100}{number}"])
    bad = write_csv(folder / "pairs.csv", ["image", "caption"], rows)
    found = names_before(tuned(model, bad, tmp_path / "run", settings(loss__duplicates="negative")))
    assert {"small_images", "cut_captions", "false_negatives"} <= found


@pytest.mark.parametrize("shift", [1, 5])
def test_captions_of_other_images_are_found_before_training(
    fitted: tuple[Path, Path], tmp_path: Path, shift: int
) -> None:
    model, data = fitted
    names, captions = zip(*(line.split(",") for line in data.read_text().splitlines()[1:]), strict=True)
    shifted = [[str(data.parent / name), caption] for name, caption in zip(names, captions[shift:], strict=False)]
    file = write_csv(tmp_path / "shifted.csv", ["image", "caption"], shifted)
    assert "unmatched_pairs" in {finding.name for finding in other_settings(clipkit.load(model), read_pairs(str(file)))}
    classes = write_csv(
        tmp_path / "classes.csv", ["image", "caption"], [[name, caption.split()[1]] for name, caption in shifted]
    )
    assert other_settings(clipkit.load(model), read_pairs(str(classes))) == []  # equal captions cannot be told apart


def test_bad_files_are_found(fitted: tuple[Path, Path], tmp_path: Path) -> None:
    model, data = fitted
    shutil.copytree(data.parent, tmp_path / "data", ignore=shutil.ignore_patterns("run"))
    (tmp_path / "data" / "5.png").write_bytes(b"not an image")
    recipe = tuned(model, tmp_path / "data" / "pairs.csv", tmp_path / "run", settings(data__max_bad=3))
    assert "bad_samples" in names_found(recipe)


def test_other_normalization_than_in_pretraining_is_found(fitted: tuple[Path, Path], tmp_path: Path) -> None:
    model, data = fitted
    shutil.copytree(model, tmp_path / "model")
    assert other_settings(clipkit.load(tmp_path / "model"), read_pairs(str(data))) == []
    file = tmp_path / "model" / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}))
    assert "other_normalization" in names_before(tuned(tmp_path / "model", data, tmp_path / "run", {}))


@pytest.mark.parametrize("name", ["simclr_images", "simcse_text", "slip_captions"])
def test_shipped_recipes_have_no_finding_before_training(name: str, flickr8k: Path) -> None:
    data = {"data.train": str(flickr8k / "train.csv"), "data.validation": str(flickr8k / "dev.csv")}
    recipe = Recipe.from_yaml(RECIPE.with_name(f"{name}.yaml")).override(data)
    train, validation = (read_pairs(str(source)) for source in data.values())
    assert before_first_step(recipe, model_of(recipe), train, validation, steps=500, warmup_steps=50) == []
