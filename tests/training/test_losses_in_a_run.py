"""Losses with wrong captions or teachers, and sums, in whole runs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import clipkit
from clipkit.data import checked_negatives, read_pairs
from clipkit.errors import DataError, RecipeError, TrainingError, UserError
from clipkit.losses import distillation, negclip
from clipkit.recipe import Recipe
from clipkit.training.plan import make_plan
from tests.conftest import read_lines, write_csv


@pytest.fixture
def with_negatives(shapes: Path, tmp_path: Path) -> str:
    pairs = read_pairs(str(shapes / "captions.csv"))
    rows = [
        [str(pairs.images[image]), caption, caption.replace("red", "blue").replace("green", "red") + " not"]
        for caption, image in zip(pairs.captions, pairs.image_of_caption, strict=True)
    ]
    return str(write_csv(tmp_path / "negatives.csv", ["image", "caption", "negative_caption"], rows))


def first_loss(run: Path) -> float:
    return float(read_lines(run / "metrics.jsonl")[0]["loss"])


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("workers", [0, 1])
def test_negatives_come_from_the_row_of_their_caption(
    recipe: Callable[..., Recipe], with_negatives: str, tmp_path: Path, frozen: bool, workers: int
) -> None:
    """The loss of the first step is that of all captions with the negatives of their rows."""
    own = {
        "data.train": with_negatives, "data.augment": "none", "data.captions": "all", "data.workers": workers,
        "train.batch_size": 32, "train.epochs": 1, "loss.name": "negclip", "loss.duplicates": "negative",
        "model.text.tune": "frozen" if frozen else "full",
    }  # fmt: skip
    if workers and frozen:
        pytest.skip("a frozen text tower's captions do not pass through the workers")
    clipkit.train(recipe(own))
    pairs = read_pairs(with_negatives)
    assert pairs.negatives is not None
    model = clipkit.load(recipe().model.name)
    image = model.encode_image([pairs.images[image] for image in pairs.image_of_caption])
    expected = negclip(
        image, model.encode_text(pairs.captions), model.encode_text(pairs.negatives), model.logit_scale.exp()
    )
    assert first_loss(tmp_path / "run") == pytest.approx(expected.item(), rel=1e-5)


def test_negclip_without_negatives_names_the_missing_column(recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="negative_caption"):
        make_plan(recipe({"loss.name": "negclip"}))
    assert not (tmp_path / "run").exists()


def test_a_row_without_its_negative_is_named(shapes: Path, tmp_path: Path) -> None:
    rows = [[str(shapes / "images/00.png"), "a", "b"], [str(shapes / "images/01.png"), "c", ""]]
    file = write_csv(tmp_path / "d.csv", ["image", "caption", "negative_caption"], rows)
    assert read_pairs(str(file)).captions == ["a", "c"]  # losses without negatives skip the check
    with pytest.raises(DataError, match="row 2 has no negative_caption"):
        checked_negatives(read_pairs(str(file)))
    rows = [[str(shapes / "images/00.png"), "a", "b"], [str(shapes / "images/00.png"), "b", "c"]]
    file = write_csv(tmp_path / "d.csv", ["image", "caption", "negative_caption"], rows)
    with pytest.raises(DataError, match="row 1's negative_caption 'b'"):
        checked_negatives(read_pairs(str(file)))


@pytest.fixture
def teacher(tiny_clip: Path, tmp_path: Path) -> Path:
    """Another model: the tiny one with other weights."""
    model = clipkit.load(tiny_clip)
    torch.manual_seed(9)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    model.save(tmp_path / "teacher")
    return tmp_path / "teacher"


def test_distillation_uses_the_teacher_of_the_recipe(
    recipe: Callable[..., Recipe], teacher: Path, shapes: Path, tmp_path: Path
) -> None:
    own = {
        "data.augment": "none", "train.batch_size": 16, "data.captions": "one",
        "loss": {"name": "distillation", "teacher": str(teacher)},
    }  # fmt: skip
    clipkit.train(recipe(own | {"train.epochs": 6}))
    rows = read_lines(tmp_path / "run" / "metrics.jsonl")
    assert rows[-1]["loss"] < rows[0]["loss"]
    # The first step has all images, each with the caption that the sampler chooses.
    from clipkit.data import EpochSampler

    pairs, wise, pupil = (
        read_pairs(str(shapes / "captions.csv")),
        clipkit.load(teacher),
        clipkit.load(recipe().model.name),
    )
    samples = next(iter(EpochSampler(pairs, "one", 16, 0).slices(0, 1, slice(0, 16))))
    images = [pairs.images[sample.image] for sample in samples]
    captions = [pairs.captions[sample.caption] for sample in samples]
    expected = distillation(
        pupil.encode_image(images), pupil.encode_text(captions), pupil.logit_scale.exp(),
        wise.encode_image(images), wise.encode_text(captions), wise.logit_scale.exp(),
    )  # fmt: skip
    assert rows[0]["loss"] == pytest.approx(expected.item(), rel=1e-5)


def test_resume_refuses_a_changed_teacher(recipe: Callable[..., Recipe], teacher: Path, tmp_path: Path) -> None:
    own = recipe({"loss": {"name": "distillation", "teacher": str(teacher)}, "train.epochs": 2})
    clipkit.train(own)
    (tmp_path / "run" / "results.json").unlink()
    model = clipkit.load(teacher)
    with torch.no_grad():
        model.logit_scale += 1
    model.save(teacher)
    with pytest.raises(UserError, match="the teacher"):
        clipkit.train(own, resume=True)


def test_a_sum_of_losses_is_the_weighted_sum(recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    def loss_of(names: Any) -> float:
        clipkit.train(recipe({"loss.name": names, "train.epochs": 1, "data.augment": "none"}), overwrite=True)
        return first_loss(tmp_path / "run")

    parts = loss_of("infonce"), loss_of("ntxent")
    both = loss_of([{"name": "infonce"}, {"name": "ntxent", "weight": 0.25}])
    assert both == pytest.approx(parts[0] + 0.25 * parts[1], rel=1e-6)


def test_a_run_that_would_train_nothing_is_refused(recipe: Callable[..., Recipe]) -> None:
    frozen = {"model.image.tune": "frozen", "model.text.tune": "frozen"}
    with pytest.raises(RecipeError, match="no trainable parameter"):
        make_plan(recipe(frozen | {"loss.name": "triplet"}))


def test_a_batch_without_negatives_ends_the_run_with_its_counts(
    recipe: Callable[..., Recipe], shapes: Path, tmp_path: Path
) -> None:
    rows = [[str(shapes / f"images/{n:02d}.png"), "a thing"] for n in range(16)]
    data = str(write_csv(tmp_path / "d.csv", ["image", "caption"], rows))
    with pytest.raises(TrainingError, match="8 pairs of the batch have 8 distinct images and 1 distinct captions"):
        clipkit.train(recipe({"data.train": data, "loss.name": "triplet"}))


def test_the_report_shows_the_chance_level_of_the_loss(recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    result = clipkit.train(recipe({"loss.name": "ntxent", "train.epochs": 1}))
    assert result["settings"]["loss_at_chance"] == pytest.approx(torch.tensor(15.0).log().item())
    assert "chance" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
