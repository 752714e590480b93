"""Objective translations: a text tower learns translations from a teacher's text features, without images."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import clipkit
from clipkit.errors import DataError, RecipeError
from clipkit.recipe import Recipe
from clipkit.training.plan import make_plan
from tests.conftest import COLOURS, SHAPES, read_lines, write_csv
from tests.training.test_run import COMPOSED

Build = Callable[..., Recipe]
WORDS = {"red": "rot", "green": "grün", "blue": "blau", "yellow": "gelb"}
FORMS = {"square": "Quadrat", "circle": "Kreis", "stripe": "Streifen", "cross": "Kreuz"}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [[f"a {color} {shape}", f"{FORMS[shape]} {WORDS[color]}"] for color in COLOURS for shape in SHAPES]
    return write_csv(tmp_path_factory.mktemp("translations") / "pairs.csv", ["caption", "translation"], rows)


@pytest.fixture
def german(recipe: Build, pairs: Path, tiny_clip: Path) -> Build:
    """Function that returns a recipe in which a new text tower learns from tiny_clip."""

    def build(changes: dict[str, Any]) -> Recipe:
        student = {
            "model": {"name": None, "text": COMPOSED["text"], "embed_dim": 24},
            "data.train": str(pairs), "data.validation": str(pairs), "objective": "translations",
            "translations": {"teacher": str(tiny_clip)}, "optim.lr": 1e-2,
        }  # fmt: skip
        return recipe(student | changes)

    return build


def test_a_new_tower_learns_the_teachers_features(german: Build, tiny_clip: Path, pairs: Path, tmp_path: Path) -> None:
    result = clipkit.train(german({"train.epochs": 12, "eval.every_epochs": 12}))
    rows = read_lines(tmp_path / "run" / "metrics.jsonl")
    assert rows[-1]["loss"] < 0.5 * rows[0]["loss"]
    assert result["metrics"]["text_view_recall@5"]["value"] > 0.5
    student, teacher = clipkit.load(tmp_path / "run"), clipkit.load(tiny_clip)
    texts = [line.split(",") for line in pairs.read_text().splitlines()[1:]]
    target = teacher.encode_text([caption for caption, _ in texts])
    found = student.encode_text([translation for _, translation in texts])
    ranks = (found @ target.T).argsort(dim=1, descending=True)
    top = (ranks[:, :5] == torch.arange(len(texts))[:, None]).any(dim=1).double().mean().item()
    assert top == pytest.approx(result["metrics"]["text_view_recall@5"]["value"])
    assert json.loads((tmp_path / "run" / "results.json").read_text())["data"]["images"] == 16


def test_the_value_is_that_of_a_loop_and_half_the_squared_distance(german: Build) -> None:
    plan = make_plan(german({}))
    generator = torch.Generator().manual_seed(0)
    made = [torch.nn.functional.normalize(torch.randn(6, 24, generator=generator), dim=1) for _ in range(2)]
    rows = torch.tensor([3, 0, 9, 15, 7, 7])
    gathered = {"text_features": made[0], "translation_features": made[1], "image_ids": rows, "caption_rows": rows}
    target = clipkit.load(plan.recipe.translations.teacher).encode_text(  # type: ignore[union-attr]
        [plan.data.train.pairs.captions[row] for row in rows]
    )
    loop = sum((1 - float(x @ t)) + (1 - float(y @ t)) for x, y, t in zip(*made, target, strict=True)) / 12
    value = plan.objective.value(gathered, {}, slice(0, 6))
    assert value.item() == pytest.approx(loop, abs=1e-6)
    parts = [plan.objective.value(gathered, {}, slice(start, start + 2)).item() for start in (0, 2, 4)]
    assert sum(parts) == pytest.approx(loop, abs=1e-6)
    mse = torch.nn.functional.mse_loss(torch.cat(made), torch.cat([target, target]))
    assert value.item() == pytest.approx(mse.item() * 24 / 2, abs=1e-6)


def test_a_whole_model_keeps_its_image_features_to_the_bit(
    recipe: Build, pairs: Path, tiny_clip: Path, shapes: Path, tmp_path: Path
) -> None:
    own = {
        "data.train": str(pairs), "data.validation": None, "objective": "translations",
        "translations": {"teacher": str(tiny_clip)},
    }  # fmt: skip
    with pytest.raises(RecipeError, match="model.image.tune is full; set model.image.tune: frozen"):
        recipe(own)
    clipkit.train(recipe({**own, "model.image.tune": "frozen"}))
    before, after = clipkit.load(tiny_clip), clipkit.load(tmp_path / "run")
    images = sorted((shapes / "images").glob("*.png"))
    assert torch.equal(before.encode_image(images), after.encode_image(images))
    assert not torch.equal(before.encode_text(["Kreis rot"]), after.encode_text(["Kreis rot"]))
    assert before.logit_scale.item() == after.logit_scale.item()


def test_what_is_missing_or_does_not_fit_is_refused(german: Build, shapes: Path, pairs: Path) -> None:
    with pytest.raises(RecipeError, match="embed_dim: 24"):
        make_plan(german({"model.embed_dim": 16}))
    with pytest.raises(RecipeError, match="translations: {teacher: MODEL}"):
        german({"translations": None})
    with pytest.raises(RecipeError, match="translations applies only to the objective translations"):
        german({"objective": "views", "views": {"text": {"policies": ["same", "crop"]}}})
    with pytest.raises(DataError, match="column named paraphrase or translation"):
        make_plan(german({"data.train": str(shapes / "captions.csv"), "data.validation": None}))
    with pytest.raises(RecipeError, match="is a stream.*translations.teacher"):
        make_plan(german({"data.train": "http://127.0.0.1:9/{0..1}.tar", "data.samples": 9, "data.validation": None}))
