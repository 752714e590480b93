"""`data.hard_negatives`: batches composed of pairs that the starting model can hardly tell apart."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import clipkit
from clipkit.data import hard_neighbors
from clipkit.errors import RecipeError
from clipkit.recipe import Recipe
from clipkit.training.plan import make_plan
from tests.conftest import read_lines

Build = Callable[..., Recipe]
HARD = {"data.hard_negatives": {"group": 2, "margin": 0.0}}


def test_batches_are_composed_by_the_starting_model(recipe: Build, tiny_clip: Path) -> None:
    plan = make_plan(recipe(HARD))
    pairs, model = plan.data.train.pairs, clipkit.load(tiny_clip, device="cpu")
    images, texts = model.encode_image(pairs.images), model.encode_text(pairs.captions)
    expected = hard_neighbors(images, texts, pairs.image_of_caption, 15, 0.0)
    assert plan.sampler.hard is not None  # type: ignore[union-attr]
    assert np.array_equal(plan.sampler.hard.neighbors, expected)  # type: ignore[union-attr]
    with_any = (expected >= 0).any(axis=1).sum()
    assert f"{with_any} of 16 images have hard negatives" in plan.data.notes[-1]


def test_neighbors_follow_the_captions_that_are_left(recipe: Build) -> None:
    plan = make_plan(recipe({**HARD, "data.min_score": "30%"}))
    pairs = plan.data.train.pairs
    assert len(pairs.captions) == 23
    assert plan.sampler.hard is not None  # type: ignore[union-attr]
    assert len(plan.sampler.hard.neighbors) == len(pairs.images)  # type: ignore[union-attr]


@pytest.mark.slow
def test_a_resumed_run_has_the_same_batches(recipe: Build, tmp_path: Path) -> None:
    whole = recipe({**HARD, "output": str(tmp_path / "whole"), "data.validation": None})
    clipkit.train(whole)
    half = whole.override({"output": str(tmp_path / "half"), "checkpoint.every_steps": 1})

    class Stop(clipkit.Callback):
        def on_checkpoint(self, run: object, folder: object) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        clipkit.train(half, callbacks=[Stop()])
    clipkit.train(half, resume=True)
    one, two = (read_lines(tmp_path / name / "metrics.jsonl") for name in ("whole", "half"))
    assert one == two
    with pytest.raises(RecipeError, match="data.hard_negatives.group"):
        clipkit.train(half.override({"data.hard_negatives.group": 3, "train.epochs": 3}), resume=True)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"data.hard_negatives": {"group": 1}}, "data.hard_negatives.group is 1"),
        ({**HARD, "data.captions": "all"}, "data.hard_negatives does not support data.captions: all"),
        ({**HARD, "data.train": [{"source": "a.csv", "weight": 2}]}, "hard_negatives does not support several sources"),
        ({**HARD, "train.shard": True}, "data.hard_negatives"),
    ],
)
def test_what_does_not_fit_is_refused(recipe: Build, changes: dict[str, object], named: str) -> None:
    with pytest.raises(RecipeError, match=named):
        recipe(changes)
