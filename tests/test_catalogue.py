"""The table of losses agrees with the functions, the recipe, --help and the documentation."""

import inspect
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from clipkit import catalogue, losses
from clipkit.catalogue import LOSSES, Need
from clipkit.errors import RecipeError
from clipkit.recipe import LossOptions, Recipe
from clipkit.training.objectives.loss_sum import chance_of, loss_sum
from tests.losses.oracles import features

LEAST = {"model": {"name": "m"}, "data": {"train": "t.csv"}, "output": "o"}


def recipe(loss: dict[str, object]) -> Recipe:
    return Recipe.from_dict(LEAST | {"loss": loss})


def test_the_table_has_a_row_for_every_public_loss() -> None:
    assert set(LOSSES) == set(losses.__all__)
    for row in LOSSES.values():
        assert all((row.summary, row.formula, row.positives, row.memory, row.level, row.source, row.use_when))
        assert set(row.options) <= set(LossOptions.model_fields)
        assert ("teacher" in row.options) == (Need.TEACHER in row.needs)


@pytest.mark.parametrize("name", LOSSES)
def test_needs_and_options_are_the_arguments_of_the_function(name: str) -> None:
    row = LOSSES[name]
    needed = {argument for need in row.needs for argument in need.arguments}
    options = set(row.options) - {"teacher"}
    assert set(inspect.signature(getattr(losses, name)).parameters) == {
        "image_features", "text_features", *needed, *options, "rows",
    }  # fmt: skip


@pytest.mark.parametrize("name", LOSSES)
def test_a_recipe_accepts_every_loss(name: str) -> None:
    entry = {"name": name} | ({"teacher": "t"} if "teacher" in LOSSES[name].options else {})
    assert recipe({"name": [entry, {"name": "infonce"}]}).loss.names == [name, "infonce"]


def test_the_page_is_up_to_date() -> None:
    page = Path(__file__).parents[1] / "docs" / "losses.md"
    assert page.read_text(encoding="utf-8") == catalogue.markdown(), "python -m clipkit.catalogue > docs/losses.md"


def test_the_loss_of_the_contributing_page_needs_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text(encoding="utf-8")
    function, row, loop = re.findall(r"```python\n(.*?)```", page.partition("## A new loss")[2], re.DOTALL)
    names: dict[str, Any] = dict(vars(catalogue))
    exec(function + loop, names)
    monkeypatch.setitem(LOSSES, "cosine_pull", eval(row, names))
    monkeypatch.setattr(losses, "cosine_pull", names["cosine_pull"], raising=False)
    with pytest.raises(RecipeError, match="cosine_pull.*another loss"):
        recipe({"name": "cosine_pull"})
    terms = recipe({"name": [{"name": "infonce"}, {"name": "cosine_pull", "weight": 0.5}]}).loss.terms
    assert losses.cosine_pull(*(own.bfloat16() for own in features(6, 4))).dtype == torch.float32
    image, text = features(6, 4)
    ids = torch.arange(6)
    given = {"image_features": image, "text_features": text, "image_ids": ids, "caption_ids": ids}
    value = loss_sum(terms)(given, {"scale": torch.tensor(3.0).double()}, slice(0, 6))
    expected = losses.infonce(image, text, 3.0) + 0.5 * names["cosine_pull_by_loops"](image, text)
    torch.testing.assert_close(value, expected)


def test_help_lists_them_without_importing_torch() -> None:
    code = "import sys; from clipkit.catalogue import table; print(table()); assert 'torch' not in sys.modules"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    for name in LOSSES:
        assert f"{name}: " in printed
    assert max(map(len, printed.splitlines())) < 100


def test_a_sum_of_losses_keeps_weights_and_options() -> None:
    both = recipe(
        {"name": [{"name": "infonce", "label_smoothing": 0.1}, {"name": "within_consistency", "weight": 0.25}]}
    )
    assert both.loss.names == ["infonce", "within_consistency"]
    assert [term.weight for term in both.loss.terms] == [1.0, 0.25]
    assert Recipe.from_dict(both.model_dump(mode="json")) == both
    assert both.override({"loss.name": "ntxent"}).loss.names == ["ntxent"]


@pytest.mark.parametrize(
    ("loss", "parts"),
    [
        ({"name": "infonse"}, ("loss.name", "'infonse'", "did you mean infonce?")),
        ({"name": [{"name": "infonse"}]}, ("loss.name.0.name", "'infonse'", "did you mean infonce?")),
        ({"name": [{"name": "infonce", "wieght": 1}]}, ("did you mean loss.name.0.weight?",)),
        ({"name": [{"name": "infonce", "weight": 0}]}, ("loss.name.0.weight is 0",)),
        ({"name": [{"weight": 1}]}, ("loss.name.0.name is missing",)),
        ({"name": "within_consistency"}, ("loss", "within_consistency", "another loss")),
        ({"name": "triplet", "margin": 5}, ("margin is 5",)),
        ({"name": "xyz"}, ("loss.name", "'xyz'", "choose one of contrastive, ")),
        ({"name": "infonce", "margin": 0.1}, ("loss.margin", "infonce", "duplicates, label_smoothing")),
        ({"name": "ntxent", "mining": "all"}, ("mining", "ntxent", "duplicates")),
        ({"name": "distillation"}, ("distillation", "teacher")),
        ({"name": []}, ("loss", "empty list")),
        ({"name": [{"name": "infonce"}], "duplicates": "ignore"}, ("duplicates", "list of losses")),
        ({"name": [{"name": "infonce", "margin": 1}]}, ("margin", "infonce")),
        ({"name": "infonce", "label_smoothing": 1.0}, ("label_smoothing",)),
    ],
)
def test_an_invalid_loss_is_refused_in_one_line(loss: dict[str, object], parts: tuple[str, ...]) -> None:
    with pytest.raises(RecipeError) as raised:
        recipe(loss)
    assert all(part in str(raised.value) for part in parts)
    assert "\n" not in str(raised.value)


def test_chance_of_a_sum_is_the_weighted_sum() -> None:
    both = recipe({"name": [{"name": "infonce", "weight": 2.0}, {"name": "cross_consistency"}]}).loss
    once = chance_of(recipe({"name": "infonce"}).loss.terms, 16)
    assert once is not None
    assert chance_of(both.terms, 16) == pytest.approx(2 * once)
    assert chance_of(recipe({"name": "sigmoid"}).loss.terms, 16) is None


def test_needs_of_a_sum_are_those_of_its_losses() -> None:
    assert Need.BIAS in recipe({"name": "sigmoid"}).loss.needs
    assert Need.BIAS not in recipe({"name": "infonce"}).loss.needs
    assert Need.NEGATIVES in recipe({"name": [{"name": "infonce"}, {"name": "negclip"}]}).loss.needs
