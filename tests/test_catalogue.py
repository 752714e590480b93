"""What --help, the recipe and the documentation say of losses is what the code is."""

import inspect
import subprocess
import sys
from pathlib import Path

import pytest

from clipkit import catalogue, losses
from clipkit.errors import RecipeError
from clipkit.recipe import LossOptions, Recipe
from clipkit.training.objectives.loss_sum import chance_of, loss_of, needs

ENTRIES = catalogue.losses()
LEAST = {"model": {"name": "m"}, "data": {"train": "t.csv"}, "output": "o"}


def recipe(loss: dict[str, object]) -> Recipe:
    return Recipe.from_dict(LEAST | {"loss": loss})


def test_every_loss_is_there_with_all_its_facts() -> None:
    assert set(ENTRIES) == set(losses.__all__)
    for entry in ENTRIES.values():
        assert set(entry.fields) == {"formula", "positives", "needs", "memory", "chance", "source", "take it"}
        assert all(entry.fields.values())
        assert set(entry.options) <= set(LossOptions.model_fields)


@pytest.mark.parametrize("name", ENTRIES)
def test_every_loss_can_be_named_in_a_recipe(name: str) -> None:
    own = {"name": name} | ({"teacher": "t"} if "teacher" in ENTRIES[name].options else {})
    term, _ = recipe({"name": [own, {"name": "infonce"}]}).loss.terms
    assert loss_of(term).function is getattr(losses, name)
    for option in ENTRIES[name].options:
        assert option == "teacher" or option in inspect.signature(loss_of(term).function).parameters


def test_the_page_is_up_to_date() -> None:
    page = Path(__file__).parents[1] / "docs" / "losses.md"
    assert page.read_text(encoding="utf-8") == catalogue.markdown(), "python -m clipkit.catalogue > docs/losses.md"


def test_help_shows_them_without_importing_torch() -> None:
    code = "import sys; from clipkit.catalogue import table; print(table()); assert 'torch' not in sys.modules"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    for name in ENTRIES:
        assert f"{name}: " in said
    assert max(map(len, said.splitlines())) < 100


def test_a_sum_of_losses_with_weights_and_options() -> None:
    own = recipe(
        {"name": [{"name": "infonce", "label_smoothing": 0.1}, {"name": "within_consistency", "weight": 0.25}]}
    )
    assert own.loss.names == ["infonce", "within_consistency"]
    assert [term.weight for term in own.loss.terms] == [1.0, 0.25]
    assert Recipe.from_dict(own.model_dump(mode="json")) == own
    assert own.override({"loss.name": "ntxent"}).loss.names == ["ntxent"]


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        ({"name": "infonse"}, "loss.name 'infonse' is no loss; did you mean infonce?"),
        ({"name": [{"name": "infonse"}]}, "loss.name.0.name 'infonse' is no loss; did you mean infonce?"),
        ({"name": [{"name": "infonce", "wieght": 1}]}, "did you mean loss.name.0.weight?"),
        ({"name": [{"name": "infonce", "weight": 0}]}, "loss.name.0.weight is 0"),
        ({"name": [{"weight": 1}]}, "loss.name.0.name is missing"),
        ({"name": "within_consistency"}, "put it in a list with another loss"),
        ({"name": "triplet", "margin": 5}, "margin is 5"),
        ({"name": "xyz"}, "there are contrastive, cross_consistency"),
        ({"name": "infonce", "margin": 0.1}, "margin is no option of infonce, which heeds duplicates, label_smoothing"),
        ({"name": "ntxent", "mining": "all"}, "mining is no option of ntxent"),
        ({"name": "distillation"}, "needs a teacher"),
        ({"name": []}, "empty list"),
        ({"name": [{"name": "infonce"}], "duplicates": "ignore"}, "give it to one of them"),
        ({"name": [{"name": "infonce", "margin": 1}]}, "margin is no option of infonce"),
        ({"name": "infonce", "label_smoothing": 1.0}, "label_smoothing"),
    ],
)
def test_what_is_wrong_is_one_line(loss: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError) as raised:
        recipe(loss)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_chance_of_a_sum() -> None:
    both = recipe({"name": [{"name": "infonce", "weight": 2.0}, {"name": "cross_consistency"}]}).loss
    once = chance_of(recipe({"name": "infonce"}).loss, 16)
    assert once is not None
    assert chance_of(both, 16) == pytest.approx(2 * once)
    assert chance_of(recipe({"name": "sigmoid"}).loss, 16) is None


def test_what_losses_need() -> None:
    assert needs(recipe({"name": "sigmoid"}).loss, "bias")
    assert not needs(recipe({"name": "infonce"}).loss, "bias")
    assert needs(recipe({"name": [{"name": "infonce"}, {"name": "negclip"}]}).loss, "negative_text_features")
