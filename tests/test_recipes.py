"""The recipes of the repository: valid, with a header that has the command and says what was measured."""

import re
from pathlib import Path

import pytest

from clipkit.recipe import Recipe

RECIPES = sorted((Path(__file__).parents[1] / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_a_recipe_is_valid_and_its_header_complete(file: Path) -> None:
    assert Recipe.from_yaml(file).output
    header = re.match(r"(#.*\n)+", file.read_text(encoding="utf-8"))
    assert header is not None
    assert f"clipkit train recipes/{file.name}" in header[0] or "clipkit demo" in header[0]
    assert re.search(r"result|do not pay off|defaults preserve", header[0], re.IGNORECASE)
    for line in header[0].splitlines():
        assert len(line) <= 140
