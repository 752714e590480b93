"""Findings before the first step."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import clipkit
from clipkit.data import read_pairs
from clipkit.findings import Finding
from clipkit.models import DualEncoder
from clipkit.recipe import Recipe
from clipkit.training.guards.before import before_first_step, data_findings
from clipkit.training.model import model_of
from tests.conftest import write_csv
from tests.models.families import SMALL

Build = Callable[..., Recipe]
GOOD = {"optim.lr": 1e-5, "data.validation": None}
HIGH = ["high_learning_rate"]


def names(recipe: Recipe, steps: int = 100, warmup: int = 10, model: DualEncoder | None = None) -> list[str]:
    train = read_pairs(str(recipe.data.train))
    return [
        finding.name for finding in before_first_step(recipe, model or model_of(recipe), train, None, steps, warmup)
    ]


def test_good_recipe_has_no_finding(recipe: Build, plain: Path) -> None:
    assert names(recipe(GOOD | {"data.train": str(plain)})) == []


PLANTED: dict[str, tuple[dict[str, Any], str]] = {
    "learning rate of new weights": ({"optim.lr": 1e-3}, "high_learning_rate"),
    "learning rate that changes nothing": ({"optim.lr": 1e-9}, "low_learning_rate"),
    "frozen towers": ({"model.image.tune": "frozen", "model.text.tune": "frozen"}, "nothing_to_train"),
}


@pytest.mark.parametrize("mistake", PLANTED)
def test_mistake_in_recipe_is_found(mistake: str, recipe: Build, plain: Path) -> None:
    changes, name = PLANTED[mistake]
    assert names(recipe(GOOD | {"data.train": str(plain)} | changes)) == [name]


def test_warmup_of_more_than_half_the_run_is_found(recipe: Build, plain: Path) -> None:
    good = recipe(GOOD | {"data.train": str(plain)})
    assert names(good, steps=100, warmup=60) == ["long_warmup"]
    assert names(good, steps=100, warmup=50) == []


def test_new_towers_have_their_range_of_learning_rates(recipe: Build, plain: Path) -> None:
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


def test_small_batch_with_large_scale_is_found(recipe: Build, plain: Path) -> None:
    small = recipe(GOOD | {"data.train": str(plain), "train.batch_size": 16})
    model = model_of(small)
    assert names(small, model=model) == []
    with torch.no_grad():
        model.logit_scale.fill_(4.6052)
    assert names(small, model=model) == ["small_batch"]
    assert names(recipe(GOOD | {"data.train": str(plain), "train.batch_size": 64}), model=model) == []


@pytest.mark.parametrize(("size", "negatives"), [(2, "1 other caption,"), (4, "3 other captions"), (7, "6 other")])
def test_batch_with_few_negatives_is_found(recipe: Build, plain: Path, size: int, negatives: str) -> None:
    tiny = recipe(GOOD | {"data.train": str(plain), "train.batch_size": size})
    found = before_first_step(tiny, model_of(tiny), read_pairs(str(plain)), None, 100, 10)
    assert [finding.name for finding in found] == ["small_batch"]
    assert f"a batch of {size} pairs" in found[0].message
    assert negatives in found[0].message


@pytest.mark.parametrize("side", ["image", "text"])
def test_augmentation_of_a_frozen_image_trunk_is_reported_with_both_times(
    recipe: Build, plain: Path, side: str
) -> None:
    frozen = recipe(GOOD | {"data.train": str(plain), f"model.{side}.tune": "frozen", "data.augment": "crop"})
    found = before_first_step(frozen, model_of(frozen), read_pairs(str(plain)), None, steps=100, warmup_steps=10)
    if side == "text":  # its captions are not augmented, so that its features are stored
        assert found == []
        return
    assert [finding.name for finding in found] == ["augmented_frozen_trunk"]
    assert "800 augmented images" in found[0].message
    assert f"once on {len(read_pairs(str(plain)).images)} images" in found[0].message
    assert names(frozen.override({"data.augment": "auto"})) == []
    assert names(frozen, steps=1, warmup=0) == []  # every image is seen once at most


def test_one_rate_for_old_and_new_weights_is_found(recipe: Build, plain: Path) -> None:
    with_views = GOOD | {"data.train": str(plain), "objective": {"captions": 1, "views": 1}, "views": {"image": {}}}
    assert names(recipe(with_views | {"optim.lr": 1e-5})) == ["low_learning_rate"]
    assert names(recipe(with_views | {"optim.lr": 1e-3})) == ["high_learning_rate"]
    assert names(recipe(with_views | {"optim.lr": {"pretrained": 1e-5, "new": 1e-3}})) == []


def test_separate_pretrained_towers_may_learn_faster(recipe: Build, plain: Path) -> None:
    text = {
        "name": "hf:bert", "pretrained": False, "tokenizer": "open_clip:ViT-B-32", "context_length": 16,
        "config": SMALL | {"num_hidden_layers": 2}, "tune": "last:1",
    }  # fmt: skip
    image = {"name": "timm:test_convnext", "pretrained": False, "image_size": 32, "tune": "last:1"}
    towers = GOOD | {"data.train": str(plain), "model": {"image": image, "text": text, "embed_dim": 16}}
    model = model_of(recipe(towers))
    pretrained = recipe(towers | {"model.image.pretrained": True, "model.text.pretrained": True})
    for start, lr, expected in (("cca", 3e-4, []), ("cca", 2e-3, HIGH), ("random", 3e-4, HIGH)):
        rates = {"model.start": start, "optim.lr": {"pretrained": lr, "new": 1e-3}}
        assert names(pretrained.override(rates), model=model) == expected


def test_pretrained_projection_alone_has_a_wide_range_of_rates(recipe: Build, plain: Path) -> None:
    heads = GOOD | {"data.train": str(plain), "model.image.tune": "head", "model.text.tune": "head"}
    for lr, expected in ((1e-5, []), (1e-3, []), (1e-9, ["low_learning_rate"]), (0.5, ["high_learning_rate"])):
        assert names(recipe(heads | {"optim.lr": lr})) == expected


def test_cut_captions_are_found(recipe: Build, plain: Path, tmp_path: Path) -> None:
    lines = plain.read_text().splitlines()
    long = [lines[0], *(f"{plain.parent}/{line} {'and so on ' * 40}" if n % 8 == 0 else f"{plain.parent}/{line}"
                        for n, line in enumerate(lines[1:]))]  # fmt: skip
    (tmp_path / "long.csv").write_text("\n".join(long) + "\n")
    assert names(recipe(GOOD | {"data.train": str(tmp_path / "long.csv")})) == ["cut_captions"]


def test_small_images_are_found(recipe: Build, plain: Path, tmp_path: Path) -> None:
    from PIL import Image

    folder = tmp_path / "small"
    shutil.copytree(plain.parent, folder)
    for file in sorted(folder.glob("*.png"))[:30]:
        Image.open(file).resize((20, 40)).save(file)
    assert names(recipe(GOOD | {"data.train": str(folder / "pairs.csv")})) == ["small_images"]


def test_repeated_captions_of_a_batch_are_false_negatives(recipe: Build, plain: Path, tmp_path: Path) -> None:
    rows = [[str(plain.parent / f"{number}.png"), f"a thing of kind {number % 3}"] for number in range(64)]
    classes = write_csv(tmp_path / "classes.csv", ["image", "caption"], rows)
    base = GOOD | {"data.train": str(classes)}
    assert names(recipe(base)) == ["false_negatives"]
    rows = [[image, caption if number % 16 else "the same"] for number, (image, caption) in enumerate(rows)]
    rows = [[image, f"{caption} {number if number % 16 else ''}"] for number, (image, caption) in enumerate(rows)]
    few = write_csv(tmp_path / "few.csv", ["image", "caption"], rows)
    assert names(recipe(base | {"data.train": str(few)})) == []  # the loss counts them as positives
    assert names(recipe(base | {"data.train": str(few), "loss.duplicates": "negative"})) == ["false_negatives"]


def test_validation_images_in_the_training_data_are_found(recipe: Build, plain: Path, tmp_path: Path) -> None:
    from PIL import Image

    given = recipe(GOOD | {"data.train": str(plain)})
    model, train = model_of(given), read_pairs(str(plain))
    rows = [[str(plain.parent / f"{number}.png"), "old"] for number in range(4)]
    for number in range(4):
        Image.new("RGB", (32, 32), (number, 9, 9)).save(tmp_path / f"{number}.png")
        rows.append([f"{number}.png", "new"])
    leaked, new = (
        read_pairs(str(write_csv(tmp_path / f"{name}.csv", ["image", "caption"], some)))
        for name, some in (("leaked", rows), ("new", rows[4:]))
    )
    (finding,) = data_findings(given, model, train, leaked)
    assert (finding.name, finding.severity, finding.count) == (
        "leaked_images",
        "error",
        16,
    )  # each image is there 4 times
    assert finding.examples[0] == f"0.png = {plain.parent / '0.png'}"
    assert data_findings(given, model, train, new) == []


def test_tokenizer_with_another_vocabulary_is_found(plain: Path, tmp_path: Path) -> None:
    import timm
    import transformers

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"word{number}" for number in range(49_500))]
    tokenizer = transformers.BertTokenizer(vocab={word: number for number, word in enumerate(words)})
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


def test_findings_are_in_the_results(recipe: Build, plain: Path) -> None:
    result: Any = clipkit.train(recipe({"data.train": str(plain), "data.validation": str(plain), "train.epochs": 1}))
    assert {"high_learning_rate", "leaked_images"} <= {finding["name"] for finding in result["findings"]}
    assert {finding["severity"] for finding in result["findings"]} == {"error", "warning"}


def test_findings_of_reading_are_reported_once(recipe: Build, plain: Path) -> None:
    train = read_pairs(str(plain))
    left_out = Finding("left_out", "note", "3 left out", "rename them")
    train, other = replace(train, findings=[left_out]), replace(train, findings=[left_out])
    good = recipe(GOOD | {"data.train": str(plain)})
    found = before_first_step(good, model_of(good), train, other, 100, 10)
    assert [finding for finding in found if finding.name == "left_out"] == [left_out]
