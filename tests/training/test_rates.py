"""Learning rates of pretrained and of new weights."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import clipkit
from clipkit.cli import main
from clipkit.errors import RecipeError
from clipkit.parsing import parse_yaml
from clipkit.recipe import LearningRates, OptimRecipe, Recipe
from clipkit.training.optimizer import build_optimizer
from clipkit.training.plan import make_plan
from clipkit.training.rates import kind_of
from clipkit.training.weights import Weights
from tests.conftest import read_lines
from tests.training.folder.test_resume import interrupted
from tests.training.test_kills import same_run
from tests.training.test_run import COMPOSED

Build = Callable[..., Recipe]
WITH_VIEWS = {
    "objective": {"captions": 1.0, "views": 0.5}, "views": {"image": {"policies": ["crop", "crop"]}},
    "optim.lr": {"pretrained": 1e-4, "new": 2e-3}, "train.epochs": 3, "checkpoint.every_steps": 2,
}  # fmt: skip


def recipe_of(model: dict[str, Any], **sections: Any) -> Recipe:
    return Recipe.from_dict({"model": model, "data": {"train": "a.csv"}, "output": "run"} | sections)


def towers(**changes: Any) -> dict[str, Any]:
    sides = {"image": {"name": "timm:resnet10t"}, "text": {"name": "hf:bert"}}
    return {side: values | changes.get(side, {}) for side, values in sides.items()}


@pytest.mark.parametrize(
    ("model", "kinds"),
    [
        ({"name": "org/clip"}, {"image.trunk.a": "pretrained", "text.head.a": "pretrained"}),
        ({"name": "org/clip"}, {"image.trunk.a.adapter.parts.q.lora_A": "adapter"}),
        ({"name": "org/clip"}, {"logit_scale": "pretrained", "view_heads.image.layers.0.weight": "new"}),
        ({"name": "open_clip:ViT-B-32/openai"}, {"logit_scale": "pretrained"}),
        ({"name": "open_clip:ViT-B-32"}, {"image.trunk.a": "new", "text.head.a": "new", "logit_scale": "new"}),
        (towers(), {"image.trunk.a": "pretrained", "image.head.a": "new"}),
        (towers(), {"text.trunk.a": "pretrained", "logit_bias": "new"}),
        (towers(text={"pretrained": False}), {"image.trunk.a": "pretrained", "text.trunk.a": "new"}),
    ],
)  # fmt: skip
def test_kind_of_weights_follows_from_where_they_come(model: dict[str, Any], kinds: dict[str, str]) -> None:
    recipe = recipe_of(model)
    assert {name: kind_of(name, recipe) for name in kinds} == kinds


def test_one_number_gives_the_two_groups_of_before() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.LayerNorm(2))
    groups = build_optimizer(
        Weights(model).trained, OptimRecipe(lr=3e-4), lambda name: "new" if "0." in name else "pretrained"
    )
    assert [(len(group["params"]), group["lr"]) for group in groups.param_groups] == [(1, 3e-4), (3, 3e-4)]


def test_each_kind_has_a_group_with_and_one_without_weight_decay() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    groups = build_optimizer(
        Weights(model).trained, OptimRecipe(), lambda name: "new" if "0." in name else "pretrained"
    ).param_groups
    assert [(group["lr"], group["weight_decay"]) for group in groups] == [
        (1e-5, 0.1), (1e-5, 0.0), (1e-3, 0.1), (1e-3, 0.0),
    ]  # fmt: skip
    assert groups[0]["params"][0] is model[1].weight


def test_rates_are_valid_values_of_a_recipe() -> None:
    assert recipe_of({"name": "a/b"}).optim.lr == LearningRates(pretrained=1e-5, new=1e-3)
    assert recipe_of({"name": "a/b"}, optim={"lr": {"new": 2e-3}}).optim.rates == LearningRates(
        pretrained=1e-5, new=2e-3
    )
    assert recipe_of({"name": "a/b"}).override({"optim.lr.new": 0.1}).optim.rates.new == 0.1
    assert recipe_of({"name": "a/b"}).override({"optim.lr": 0.1}).optim.rates == LearningRates(
        pretrained=0.1, new=0.1, adapter=0.1
    )
    for value, key in (
        ({"nwe": 1e-3}, "optim.lr.new"),
        ({"new": 0}, "optim.lr.new is 0"),
        ("fast", "optim.lr is 'fast'"),
    ):
        with pytest.raises(RecipeError, match=key):
            recipe_of({"name": "a/b"}, optim={"lr": value})


def test_main_rate_is_that_of_the_pretrained_weights_if_any_is_trained(recipe: Build) -> None:
    rates = {"pretrained": 1e-5, "new": 1e-3}
    assert make_plan(recipe({"optim.lr": rates})).peaks == (1e-5, 1e-5)
    assert make_plan(recipe({"model": COMPOSED, "optim.lr": rates})).peaks == (1e-3, 1e-3)
    assert make_plan(recipe({**WITH_VIEWS, "optim.lr": rates})).peaks == (1e-5, 1e-5, 1e-3, 1e-3)


def test_run_logs_both_rates_and_resumes(recipe: Build, tmp_path: Path) -> None:
    results = clipkit.train(recipe(WITH_VIEWS))
    rows = read_lines(tmp_path / "run" / "metrics.jsonl")
    assert [row["lr_new"] for row in rows] == pytest.approx([20 * row["lr"] for row in rows])
    assert max(row["lr"] for row in rows) == pytest.approx(1e-4)
    assert results["settings"]["learning_rates"] == {"pretrained": 1e-4, "new": 2e-3}
    assert "0.0001 for pretrained weights and 0.002 for new weights" in (tmp_path / "run" / "log.txt").read_text()
    assert "0.0001 for pretrained weights and 0.002" in (tmp_path / "run" / "model" / "README.md").read_text()
    other = {**WITH_VIEWS, "output": str(tmp_path / "other")}
    interrupted(recipe(other), after=3)
    clipkit.train(recipe(other), resume=True)
    same_run(tmp_path / "run", tmp_path / "other")


@pytest.mark.parametrize(
    ("model", "data", "policy"),
    [
        ({"name": "a/b"}, {}, "crop"),
        ({"name": "a/b", "image": {"tune": "frozen"}}, {}, "none"),
        ({"name": "a/b", "image": {"tune": "head"}}, {}, "none"),
        ({"name": "a/b", "image": {"tune": "last:1"}}, {}, "crop"),
        ({"name": "a/b", "text": {"tune": "frozen"}}, {}, "crop"),
        (towers(image={"tune": "frozen"}), {"augment": "crop"}, "crop"),
        (towers(image={"tune": "frozen"}), {"crop_scale": [0.5, 1.0]}, "crop"),
    ],
)
def test_frozen_image_trunk_is_not_augmented_by_default(
    model: dict[str, Any], data: dict[str, Any], policy: str
) -> None:
    recipe = recipe_of(model, data={"train": "a.csv"} | data)
    assert recipe.data.policy(recipe.model) == policy
    assert bool(recipe.data.augmentation(recipe.model)) == (policy == "crop")


def test_dry_run_says_what_auto_selects(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "r.yaml"
    file.write_text("model: {name: a/b}\ndata: {train: a.csv}\noutput: run\n")
    for changes, policy in (([], "crop"), (["model.image.tune=frozen"], "none")):
        monkeypatch.setattr("sys.argv", ["clipkit", "train", str(file), *changes, "--dry-run"])
        with pytest.raises(SystemExit):
            main()
        printed = capsys.readouterr().out
        assert f"# data.augment: auto means {policy} " in printed
        assert Recipe.from_dict(parse_yaml(printed)).optim.rates == LearningRates()
