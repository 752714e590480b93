"""What is told before the first step."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import clipkit
from clipkit.data import read_pairs
from clipkit.models import DualEncoder
from clipkit.recipe import Recipe
from clipkit.training.guards.before import before_first_step, leaks
from clipkit.training.model import model_of
from tests.conftest import write_csv
from tests.models.families import SMALL

Build = Callable[..., Recipe]
NOTHING_ODD = {"optim.lr": 1e-5, "data.validation": None}


def names(recipe: Recipe, steps: int = 100, rising: int = 10, model: DualEncoder | None = None) -> list[str]:
    train = read_pairs(str(recipe.data.train))
    return [own.name for own in before_first_step(recipe, model or model_of(recipe), train, None, steps, rising)]


def test_a_good_recipe_is_left_alone(recipe: Build, plain: Path) -> None:
    assert names(recipe(NOTHING_ODD | {"data.train": str(plain)})) == []


PLANTED: dict[str, tuple[dict[str, Any], str]] = {
    "a learning rate for new weights": ({"optim.lr": 1e-3}, "high_learning_rate"),
    "a learning rate that moves nothing": ({"optim.lr": 1e-9}, "low_learning_rate"),
    "frozen towers": ({"model.image.tune": "frozen", "model.text.tune": "frozen"}, "nothing_to_train"),
}


@pytest.mark.parametrize("what", PLANTED)
def test_planted_mistakes_of_recipes(what: str, recipe: Build, plain: Path) -> None:
    changes, name = PLANTED[what]
    assert names(recipe(NOTHING_ODD | {"data.train": str(plain)} | changes)) == [name]


def test_a_long_warmup(recipe: Build, plain: Path) -> None:
    good = recipe(NOTHING_ODD | {"data.train": str(plain)})
    assert names(good, steps=100, rising=60) == ["long_warmup"]
    assert names(good, steps=100, rising=50) == []


def test_new_towers_want_another_learning_rate(recipe: Build, plain: Path) -> None:
    new = {
        "model": {
            "image": {"name": "timm:test_vit", "pretrained": False, "image_size": 32},
            "text": {
                "name": "hf:bert", "pretrained": False, "tokenizer": "open_clip:ViT-B-32", "context_length": 16,
                "config": SMALL | {"num_hidden_layers": 1},
            },
            "embed_dim": 16,
        },
        "data": {"train": str(plain)},
        "output": "unused",
    }  # fmt: skip
    for lr, expected in ((1e-3, []), (1e-6, ["low_learning_rate"]), (0.5, ["high_learning_rate"])):
        assert names(Recipe.from_dict(new | {"optim": {"lr": lr}})) == expected


def test_a_small_batch_with_the_scale_at_its_cap(recipe: Build, plain: Path) -> None:
    small = recipe(NOTHING_ODD | {"data.train": str(plain), "train.batch_size": 16})
    model = model_of(small)
    assert names(small, model=model) == []
    with torch.no_grad():
        model.logit_scale.fill_(4.6052)
    assert names(small, model=model) == ["small_batch"]
    assert names(recipe(NOTHING_ODD | {"data.train": str(plain), "train.batch_size": 64}), model=model) == []


def test_captions_that_are_cut(recipe: Build, plain: Path, tmp_path: Path) -> None:
    lines = plain.read_text().splitlines()
    long = [lines[0], *(f"{plain.parent}/{line} {'and so on ' * 40}" if n % 8 == 0 else f"{plain.parent}/{line}"
                        for n, line in enumerate(lines[1:]))]  # fmt: skip
    (tmp_path / "long.csv").write_text("\n".join(long) + "\n")
    assert names(recipe(NOTHING_ODD | {"data.train": str(tmp_path / "long.csv")})) == ["captions_cut"]


def test_images_smaller_than_the_input(recipe: Build, plain: Path, tmp_path: Path) -> None:
    from PIL import Image

    folder = tmp_path / "small"
    shutil.copytree(plain.parent, folder)
    for file in sorted(folder.glob("*.png"))[:30]:
        Image.open(file).resize((20, 40)).save(file)
    assert names(recipe(NOTHING_ODD | {"data.train": str(folder / "pairs.csv")})) == ["small_images"]


def test_captions_that_many_images_share(recipe: Build, plain: Path, tmp_path: Path) -> None:
    rows = [[str(plain.parent / f"{number}.png"), f"a thing of kind {number % 3}"] for number in range(64)]
    classes = write_csv(tmp_path / "classes.csv", ["image", "caption"], rows)
    base = NOTHING_ODD | {"data.train": str(classes)}
    assert names(recipe(base)) == ["false_negatives"]
    rows = [[own, caption if number % 16 else "the same"] for number, (own, caption) in enumerate(rows)]
    rows = [[own, f"{caption} {number if number % 16 else ''}"] for number, (own, caption) in enumerate(rows)]
    few = write_csv(tmp_path / "few.csv", ["image", "caption"], rows)
    assert names(recipe(base | {"data.train": str(few)})) == []  # the loss counts them as positives
    assert names(recipe(base | {"data.train": str(few), "loss.duplicates": "negative"})) == ["false_negatives"]


def test_validation_images_among_those_trained_on(plain: Path, shapes: Path, tmp_path: Path) -> None:
    from PIL import Image

    train = read_pairs(str(plain))
    (found,) = leaks(train, read_pairs(str(shapes / "captions.csv")))
    assert found.message.startswith("16 of the 16 validation images are trained on too")
    rows = []
    for number in range(4):
        Image.new("RGB", (32, 32), (number, 9, 9)).save(tmp_path / f"{number}.png")
        rows.append([f"{number}.png", "new"])
    assert leaks(train, read_pairs(str(write_csv(tmp_path / "new.csv", ["image", "caption"], rows)))) == []


def test_another_tokenizer_than_the_pretrained_towers(plain: Path, tmp_path: Path) -> None:
    import timm
    import transformers

    from tests.models.families import bert_tokenizer

    tokenizer = bert_tokenizer()
    config = transformers.BertConfig(**SMALL | {"vocab_size": 50_000, "max_position_embeddings": 80})
    transformers.BertModel(config).save_pretrained(tmp_path / "text")
    tokenizer.save_pretrained(tmp_path / "text")
    native = timm.create_model("test_vit", num_classes=0)
    timm.models.save_for_hf(native, str(tmp_path / "image"))
    recipe = {
        "model": {"image": {"name": str(tmp_path / "image")}, "text": {"name": str(tmp_path / "text")}},
        "data": {"train": str(plain)}, "optim": {"lr": 5e-5}, "output": "unused",
    }  # fmt: skip
    assert "other_tokenizer" not in names(Recipe.from_dict(recipe))
    recipe["model"]["text"]["tokenizer"] = "open_clip:ViT-B-32"  # type: ignore[index]
    recipe["model"]["text"]["context_length"] = 77  # type: ignore[index]
    assert "other_tokenizer" in names(Recipe.from_dict(recipe))


def test_the_public_way(recipe: Build, plain: Path) -> None:
    result: Any = clipkit.train(recipe({"data.train": str(plain), "data.validation": str(plain), "train.epochs": 1}))
    assert {"high_learning_rate", "validation_leaks"} <= {own["name"] for own in result["findings"]}
    assert {own["level"] for own in result["findings"]} == {"warning"}
