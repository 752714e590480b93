from pathlib import Path

import pytest

from clipkit.errors import RecipeError
from clipkit.recipe import Recipe, parse_overrides

MINIMAL = {"model": {"name": "a/b"}, "data": {"train": "t.csv"}, "output": "runs/x"}


def problem(values: dict[str, object]) -> str:
    with pytest.raises(RecipeError) as caught:
        Recipe.from_dict(values)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_printed_recipe_is_complete_and_reads_back_the_same(tmp_path: Path) -> None:
    recipe = Recipe.from_dict(MINIMAL).override({"optim.lr": 3e-4, "data.crop_scale": [0.5, 1.0]})
    file = tmp_path / "r.yaml"
    file.write_text(recipe.to_yaml())
    assert Recipe.from_yaml(file) == recipe
    for key in ("weight_decay: 0.1", "every_epochs: 1", "seed: 0", "captions: one"):
        assert key in recipe.to_yaml()


def test_overrides_are_read_as_yaml() -> None:
    assert parse_overrides(["optim.lr=1e-5", "data.validation=null", "train.epochs=3", "data.crop_scale=[0.5, 1]"]) == {
        "optim.lr": "1e-5",  # as YAML 1.1 has it; the recipe makes a number of it
        "data.validation": None,
        "train.epochs": 3,
        "data.crop_scale": [0.5, 1],
    }
    assert Recipe.from_dict(MINIMAL).override(parse_overrides(["optim.lr=1e-5"])).optim.lr == 1e-5


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("optim.warmup_steps", "optim.warmup"),
        ("optim.learning_rate", "optim.lr"),
        ("train.batchsize", "train.batch_size"),
        ("batch_size", "train.batch_size"),
        ("data.val", "data.validation"),
        ("model.image.tun", "model.image.tune"),
    ],
)
def test_an_unknown_key_names_the_nearest_real_one(key: str, nearest: str) -> None:
    with pytest.raises(RecipeError) as caught:
        Recipe.from_dict(MINIMAL).override({key: 1})
    assert f"{key} is not an option" in str(caught.value)
    assert nearest in str(caught.value)


def test_what_is_wrong_is_one_line_with_the_key_and_the_value() -> None:
    assert "train.batch_size is 1" in problem(MINIMAL | {"train": {"batch_size": 1}})
    assert "train.precision is 'fp8'" in problem(MINIMAL | {"train": {"precision": "fp8"}})
    assert "data.train is missing" in problem(MINIMAL | {"data": {}})
    assert "last:N" in problem(MINIMAL | {"model": {"name": "a/b", "image": {"tune": "some"}}})
    assert "either name" in problem(MINIMAL | {"model": {"image": {"name": "timm:resnet10t"}}})
    assert "embed_dim is for two towers" in problem(MINIMAL | {"model": {"name": "a/b", "embed_dim": 3}})


def test_a_file_that_cannot_be_used_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="there is no such recipe"):
        Recipe.from_yaml(tmp_path / "none.yaml")
    bad = tmp_path / "bad.yaml"
    bad.write_text("model: [unclosed")
    with pytest.raises(RecipeError, match="not valid YAML"):
        Recipe.from_yaml(bad)
    bad.write_text("- a list")
    with pytest.raises(RecipeError, match="a mapping of sections"):
        Recipe.from_yaml(bad)
    with pytest.raises(RecipeError, match="not an override"):
        parse_overrides(["optim.lr"])


@pytest.mark.parametrize("file", sorted((Path(__file__).parents[1] / "recipes").glob("*.yaml")), ids=lambda f: f.stem)
def test_the_shipped_recipes_are_valid(file: Path) -> None:
    Recipe.from_yaml(file)
