"""Commands whose libraries belong to an extra name the pip command."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from clipkit.data import read_pairs
from clipkit.data.checks import check
from clipkit.errors import DataError, RecipeError
from clipkit.training.plan import make_plan


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Function that hides an installed library."""
    find = importlib.util.find_spec

    def hide(name: str) -> None:
        monkeypatch.setattr(importlib.util, "find_spec", lambda asked: None if asked == name else find(asked))

    return hide


def test_check_of_images_names_its_extra(shapes: Path, without: Callable[[str], None]) -> None:
    without("imagehash")
    with pytest.raises(DataError, match=r"imagehash .*clipkit-torch\[data\]"):
        check(read_pairs(str(shapes / "captions.csv")))
    check(read_pairs(str(shapes / "captions.csv"), images=False))


def test_run_on_views_names_its_extra_before_the_first_step(
    recipe: Callable[..., Any], without: Callable[[str], None]
) -> None:
    without("sklearn")
    make_plan(recipe())
    views = {"objective": "views", "views.image": {"policies": ["moco", "moco"], "head": {"dim": 8}}}
    with pytest.raises(RecipeError, match=r"sklearn .*clipkit-torch\[report\]"):
        make_plan(recipe(views))
    make_plan(recipe(views | {"data.validation": None}))
