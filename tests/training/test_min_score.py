"""`data.min_score`: captions that hardly fit their image are left out, counted and reported."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import clipkit
from clipkit.data import read_pairs
from clipkit.errors import DataError, RecipeError
from clipkit.recipe import Recipe
from clipkit.training import start_features as module
from clipkit.training.min_score import low_scores
from clipkit.training.plan import make_plan
from tests.conftest import draw, write_csv
from tests.forked import together
from tests.training import start_bits

Build = Callable[..., Recipe]


@pytest.fixture(scope="module")
def scores(tiny_clip: Path, shapes: Path) -> dict[tuple[str, str], float]:
    """Similarity of each pair, computed pair by pair."""
    model, pairs = clipkit.load(tiny_clip, device="cpu"), read_pairs(str(shapes / "captions.csv"))
    images, texts = model.encode_image(pairs.images).double(), model.encode_text(pairs.captions).double()
    return {
        (str(pairs.images[image]), pairs.captions[row]): float(images[image] @ texts[row])
        for row, image in enumerate(pairs.image_of_caption.tolist())
    }


def used(recipe: Recipe) -> tuple[set[tuple[str, str]], list[str]]:
    """Return the pairs that a run would use, and its notes."""
    plan = make_plan(recipe)
    pairs = plan.data.train.pairs
    rows = zip(pairs.image_of_caption.tolist(), pairs.captions, strict=True)
    return {(str(pairs.images[image]), caption) for image, caption in rows}, plan.data.notes


def test_a_share_and_a_similarity_leave_out_the_lowest_scores(
    recipe: Build, scores: dict[tuple[str, str], float]
) -> None:
    by_score = sorted(scores, key=lambda pair: scores[pair])
    kept, notes = used(recipe({"data.min_score": "25%"}))
    assert kept == set(by_score[8:])
    least = (scores[by_score[2]] + scores[by_score[3]]) / 2
    kept, notes = used(recipe({"data.min_score": least}))
    assert kept == set(by_score[3:])
    image, caption = by_score[0]
    assert "3 of 32 captions" in notes[-1]
    assert f"{image}: {caption!r}" in notes[-1]
    assert f"{scores[by_score[0]]:.3f}" in notes[-1]
    assert len(used(recipe({"data.min_score": -1}))[0]) == 32


def test_images_without_captions_are_left_out_too(recipe: Build, scores: dict[tuple[str, str], float]) -> None:
    best = {}
    for (image, _), score in scores.items():
        best[image] = max(score, best.get(image, -1.0))
    least = sorted(best.values())[3] - 1e-6
    plan = make_plan(recipe({"data.min_score": least}))
    assert len(plan.data.train.pairs.images) == 13
    assert "3 of 16 images" in plan.data.notes[-1]
    assert plan.sampler.steps_per_epoch == 1


def test_low_scores_are_those_of_a_loop() -> None:
    scores = np.random.default_rng(0).normal(size=50).astype(np.float32).round(1)
    scores[[3, 40]] = np.nan
    order = sorted((row for row in range(50) if not np.isnan(scores[row])), key=lambda row: (scores[row], row))
    for share in (0.01, 0.3, 0.99):
        assert set(np.flatnonzero(low_scores(scores, None, share))) == set(order[: int(share * 50)])
    assert set(np.flatnonzero(low_scores(scores, 0.3, None))) == {row for row in order if scores[row] < np.float32(0.3)}


def test_unreadable_images_have_no_score_and_stay(recipe: Build, tmp_path: Path) -> None:
    names = [f"{number}.png" for number in range(10)]
    for number, name in enumerate(names):
        draw("red", "circle", shift=number).save(tmp_path / name)
    (tmp_path / names[4]).write_bytes(b"<html>")
    (tmp_path / names[7]).unlink()
    data = write_csv(tmp_path / "d.csv", ["image", "caption"], [[name, f"a {name}"] for name in names])
    changes = {"data.train": str(data), "data.max_bad": 3, "train.batch_size": 2}
    plan = make_plan(recipe({**changes, "data.min_score": "20%"}))
    images = plan.data.train.pairs.images
    assert len(images) == 8
    assert {images[position].name for position in plan.data.missing} == {names[4], names[7]}


@pytest.mark.parametrize("value", ["10", "0%", "100%", "low", 1.5])
def test_invalid_values_are_refused(recipe: Build, value: object) -> None:
    with pytest.raises(RecipeError, match="data.min_score") as caught:
        recipe({"data.min_score": value})
    assert str(value) in str(caught.value)


def test_recipes_that_cannot_compare_before_training_are_refused(recipe: Build, tmp_path: Path) -> None:
    towers = {"image": {"name": "timm:test_vit"}, "text": {"name": "hf:bert"}}
    rest = {"data": {"train": "a.csv", "min_score": 0.1}, "output": str(tmp_path)}
    with pytest.raises(RecipeError, match="data.min_score needs model.name"):
        Recipe.from_dict({"model": towers, **rest})
    with pytest.raises(RecipeError, match="data.min_score"):
        recipe({"data.min_score": 0.1, "objective": "views", "views": {"image": {}}, "data.validation": None})
    with pytest.raises(RecipeError, match="train.shard does not support data.min_score"):
        recipe({"data.min_score": 0.1, "train.shard": True})
    with pytest.raises(RecipeError, match="is a stream.*data.min_score"):
        make_plan(recipe({"data.min_score": 0.1, "data.train": "http://127.0.0.1:9/{0..1}.tar", "data.samples": 9}))


def test_too_few_images_are_an_error(recipe: Build) -> None:
    with pytest.raises(DataError, match="data.min_score 0.99 leaves 0 images, fewer than train.batch_size 8"):
        make_plan(recipe({"data.min_score": 0.99}))


def test_a_resumed_run_leaves_out_the_same(recipe: Build, tmp_path: Path) -> None:
    changes = {"data.min_score": "25%", "train.epochs": 1}
    clipkit.train(recipe(changes))
    log = (tmp_path / "run" / "log.txt").read_text()
    assert log.index("data.min_score removes 8 of 32 captions") < log.index("epoch 1/1")
    clipkit.train(recipe(changes), resume=True)  # compares the data
    with pytest.raises(RecipeError, match="data.min_score: 25% → 50%"):
        clipkit.train(recipe({**changes, "data.min_score": "50%"}), resume=True)


@pytest.mark.slow
def test_blocks_do_not_depend_on_the_number_of_processes(
    recipe: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "r.yaml"
    file.write_text(recipe({}).to_yaml())
    monkeypatch.setattr(module, "_BLOCK", start_bits.BLOCK)
    start_bits.write(file)
    together(2, start_bits.__file__, str(file))
    assert (tmp_path / "0-of-1.txt").read_text() == (tmp_path / "0-of-2.txt").read_text()
    assert (tmp_path / "0-of-1.txt").read_text() == (tmp_path / "1-of-2.txt").read_text()
