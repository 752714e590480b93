"""Cross-fitting is what a user could do by hand: train without some images, then compare their captions with them."""

from pathlib import Path

import numpy as np
import pytest

import clipkit
from clipkit.data import read_pairs
from clipkit.errors import RecipeError, UserError
from clipkit.search.doubts import doubts_of
from clipkit.seeds import mix
from clipkit.training.cross_fit import CrossFit, cross_fit
from tests.training.test_closed_form import recipe_of

SMALL = {"train.epochs": 1, "model.image.layers": ["output", "mean:2"], "model.text.layers": ["output", "max"]}


TUNED = {"model.text.tune": "full", "model.start": "random"}


@pytest.mark.parametrize("changes", [{}, pytest.param(TUNED, marks=pytest.mark.slow)])
def test_a_fold_is_compared_by_a_model_that_was_trained_without_it(
    shapes: Path, tmp_path: Path, changes: dict[str, str]
) -> None:
    recipe = recipe_of(shapes, tmp_path / "unused", **SMALL, **changes)
    found = cross_fit(recipe)
    assert not (tmp_path / "unused").exists()
    pairs = read_pairs(shapes / "captions.csv")
    fold_of = np.random.default_rng(mix(recipe.train.seed, 8)).permutation(16) % 2
    held, rest = np.flatnonzero(fold_of == 1), np.flatnonzero(fold_of == 0)
    alone = recipe.override({"output": str(tmp_path / "alone"), "data.validation": None})
    clipkit.train(alone, train=pairs.take(rest))
    model, kept = clipkit.load(tmp_path / "alone"), pairs.take(held)
    features = model.encode_image(kept.images), model.encode_text(list(kept.captions))
    expected = doubts_of(*(rows.half().numpy() for rows in features), np.arange(16), kept.image_of_caption)
    captions = np.isin(pairs.image_of_caption, held)
    np.testing.assert_allclose(found.fits[captions], expected.fits, rtol=0.02, atol=0.02)
    np.testing.assert_allclose(found.agreements[captions], expected.agreements, rtol=0.02, atol=0.02)


def test_as_many_captions_as_the_precision_allows() -> None:
    data = read_pairs([("a.png", "one"), ("a.png", "two"), ("b.png", "three"), ("c.png", "four")], images=False)
    fits, nothing = np.array([3.0, np.nan, 1.0, 2.0]), np.full(4, np.nan)
    found = CrossFit(data, fits, nothing, 0.3, np.array([0.8, np.nan, 0.7, 0.9]))
    assert found.doubtful(0.85).tolist() == [2, 3]
    assert found.doubtful(0.8).tolist() == [2, 3, 0]
    assert found.doubtful(0.95).tolist() == []


def test_what_cannot_be_cross_fitted_is_refused(shapes: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="folds is 1"):
        cross_fit(recipe_of(shapes, tmp_path / "run"), folds=1)
    with pytest.raises(RecipeError, match="views"):
        cross_fit(recipe_of(shapes, tmp_path / "run", objective="views", **{"model.start": "random"}))
