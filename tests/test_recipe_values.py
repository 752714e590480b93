"""Bad values of recipes: every numeric key with every bad value, and YAML that is deep, doubled or endless."""

import copy
import json
import math
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from clipkit.errors import RecipeError
from clipkit.parsing import parse_json, parse_yaml
from clipkit.recipe import Recipe, parse_overrides
from clipkit.recipe.policies import parse_policy

STEPS: list[Any] = [
    {"name": "crop", "scale": [0.5, 1.0], "ratio": [0.75, 1.5]},
    {"name": "flip", "p": 0.5},
    {"name": "rotate", "degrees": 10.0, "p": 0.5},
    {"name": "jitter", "brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1, "p": 0.5},
    {"name": "grayscale", "p": 0.5},
    {"name": "blur", "sigma": [0.1, 2.0], "p": 0.5},
    {"name": "solarize", "threshold": 128.0, "p": 0.5},
    {"name": "cutout", "scale": [0.1, 0.2], "p": 0.5},
    {"name": "randaugment", "count": 2, "magnitude": 9},
]
# Every numeric key of every section has a value here.
WHOLE: dict[str, Any] = {
    "model": {
        "image": {"name": "timm:resnet10t", "image_size": 32},
        "text": {
            "name": "hf:bert", "context_length": 16, "dropout": 0.1, "tune": "lora",
            "lora": {"rank": 4, "alpha": 8.0, "dropout": 0.1, "last": 2},
        },
        "embed_dim": 64,
        "dropout": 0.0,
        "temperature": 0.07,
        "bias": -10.0,
    },
    "data": {
        "train": [{"source": "a.csv", "weight": 2.0}],
        "samples": 100,
        "validation": 0.1,
        "crop_scale": [0.8, 1.0],
        "max_bad": 0.01,
        "max_pixels": 1000,
        "workers": 2,
    },
    "objective": {"captions": 1.0, "views": 0.5},
    "loss": {
        "name": [
            {"name": "triplet", "margin": 0.2},
            {"name": "infonce", "label_smoothing": 0.1, "weight": 2.0},
            {"name": "sigmoid"},
        ],
        "logit_scale": 100.0,
        "logit_bias": -10.0,
    },
    "views": {
        "image": {
            "policies": [STEPS, "simclr"],
            "temperature": 0.1,
            "head": {"layers": 2, "width": 64, "dim": 32},
        },
        "text": {"policies": ["same", "crop"], "crop": [0.5, 0.9], "temperature": 0.05},
    },
    "optim": {
        "lr": {"pretrained": 1e-5, "new": 1e-3, "adapter": 1e-4},
        "weight_decay": 0.1, "betas": [0.9, 0.98], "eps": 1e-6, "warmup": 0.1, "clip": 1.0,
        "layer_decay": 0.75, "unfreeze": {"last:2": 0.1, "full": 0.3}, "pull_to_start": 0.1, "warm_moments": 10,
    },
    "train": {
        "epochs": 2, "batch_size": 8, "micro_batch_size": 4, "seed": 0, "log_every": 1, "ema": 0.9,
        "timeout_minutes": 10.0,
    },
    "checkpoint": {"every_steps": 5, "every_minutes": 15.0, "keep_last": 2, "keep_best": 1},
    "eval": {"every_epochs": 1, "patience": 2},
    "output": "run",
}  # fmt: skip
BAD: dict[str, Any] = {
    "NaN": math.nan,
    "infinity": math.inf,
    "minus infinity": -math.inf,
    "minus one": -1,
    "a tiny negative": -1e-300,
    "minus huge": -1e30,
    "zero": 0,
    "huge": 1e30,
    "huge integer": 10**30,
    "an integer with 5000 digits": 10**5000,
    "true": True,
    "false": False,
    "word": "many",
    "nan as text": "nan",
    "inf as text": ".inf",
    "empty text": "",
    "NUL": "1\0",
    "list": [1],
    "empty list": [],
    "mapping": {"a": 1},
}
ZERO = (
    "data.max_bad", "data.workers", "model.dropout", "model.text.dropout", "model.text.lora.dropout", "model.bias",
    "optim.weight_decay",
    "optim.warmup", "optim.betas.0", "optim.betas.1", "train.seed", "loss.name.1.label_smoothing", "brightness",
    "contrast", "saturation", "hue", "threshold", "magnitude", ".p", "loss.logit_bias",
)  # fmt: skip
# Accepted on purpose: the key (or its end), the value, and the reason.
ALLOWED = {
    **{(key, "zero"): "none of it" for key in ZERO},
    ("model.bias", "minus one"): "biases are negative in SigLIP",
    ("model.bias", "a tiny negative"): "rounds to zero",
    ("loss.logit_bias", "minus one"): "biases are negative in SigLIP",
    ("loss.logit_bias", "a tiny negative"): "rounds to zero",
    ("data.validation", "word"): "the path of a file",
    ("data.validation", "nan as text"): "the path of a file",
    ("data.validation", "inf as text"): "the path of a file",
}


def numbers(values: Any, prefix: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Yield the path of each number."""
    if isinstance(values, dict | list):
        for key, value in values.items() if isinstance(values, dict) else enumerate(values):
            yield from numbers(value, (*prefix, key))
    elif isinstance(values, int | float):
        yield prefix


def changed(path: tuple[str | int, ...], value: Any) -> dict[str, Any]:
    values = copy.deepcopy(WHOLE)
    if path[:2] == ("data", "crop_scale"):  # has an effect without `augment`
        values["data"]["augment"] = "crop"
    section: Any = values
    for part in path[:-1]:
        section = section[part]
    section[path[-1]] = value
    return values


PATHS = list(numbers(WHOLE))


def test_the_whole_recipe_is_valid_and_has_every_number() -> None:
    recipe = Recipe.from_dict(WHOLE)
    given = {".".join(str(part) for part in path) for path in PATHS}

    def of_schema(schema: Any, definitions: dict[str, Any], prefix: str, seen: tuple[str, ...]) -> Iterator[str]:
        if "$ref" in schema:
            name = schema["$ref"].rpartition("/")[2]
            if name not in seen:
                yield from of_schema(definitions[name], definitions, prefix, (*seen, name))
        for option in schema.get("anyOf", []) + schema.get("oneOf", []) + schema.get("allOf", []):
            yield from of_schema(option, definitions, prefix, seen)
        for key, inner in schema.get("properties", {}).items():
            yield from of_schema(inner, definitions, key, seen)
        for inner in [
            *schema.get("prefixItems", []),
            *([schema["items"]] if isinstance(schema.get("items"), dict) else []),
        ]:
            yield from of_schema(inner, definitions, prefix, seen)
        if schema.get("type") in ("number", "integer"):
            yield prefix

    schema = Recipe.model_json_schema()
    keys = set(of_schema(schema, schema["$defs"], "", ()))
    named = {part for path in given for part in path.split(".")}
    named |= {
        "interpolate",
        "max_forgetting",
        "min_score",
        "group",
        "mixup",
    }  # they need a whole model, or frozen towers: see the test of ranges below
    assert keys <= named, keys - named
    assert Recipe.from_dict(recipe.model_dump(mode="json")) == recipe


@pytest.mark.parametrize("name", BAD)
def test_every_number_refuses_bad_values_in_one_line(name: str) -> None:
    for path in PATHS:
        key = ".".join(str(part) for part in path)
        allowed = any(name == value and key.endswith(end) for end, value in ALLOWED)
        try:
            Recipe.from_dict(changed(path, copy.deepcopy(BAD[name])))
        except RecipeError as error:
            line = str(error)
            assert "\n" not in line, line
            assert len(line) < 1000, line
            assert "\0" not in line, line
            assert "; " in line, line  # advice
            last = next(part for part in reversed(path) if isinstance(part, str))
            assert last in line, (key, line)
            assert not allowed, (key, line)
        else:
            assert allowed, f"{key}: {name} is accepted"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("train.seed", 2**63), ("train.epochs", 10**10), ("train.batch_size", 1), ("train.batch_size", 2**40),
        ("data.workers", 10**6), ("optim.betas", [0.9, 1.0]), ("optim.betas", [0.9]), ("optim.betas", [0.9] * 3),
        ("optim.lr", "1e999"), ("optim.eps", 1e-320), ("model.image.image_size", 2.5), ("model.bias", 1e4),
        ("data.crop_scale", [0.9, 0.1]), ("data.crop_scale", [0.5, 1.5]), ("views.text.crop", [0.9, 0.5]),
        ("train.ema", 1.0), ("objective", {"captions": True, "views": 1}), ("objective", {"captions": -1}),
        ("data.validation", 1.0), ("data.validation", 2), ("train.timeout_minutes", 1e300), ("optim.clip", 1e-300),
        ("output", "a\0b"), ("model.name", "a\0"), ("data.train", "a\0"), ("data.train", ["a\0b"]),
        ("data.augment", [{"name": []}]), ("data.augment", [{"name": {}}]), ("data.augment", [[]]),
        ("data.augment", [{1: 2}]), ("data.augment", [None]), ("eval.metric", "x" * 10**6),
        ("eval.interpolate", 2000), ("eval.interpolate", "many"), ("eval.max_forgetting", 2),
        ("data.min_score", 2), ("data.min_score", "nan"), ("data.hard_negatives.group", 1),
        ("data.hard_negatives.margin", "nan"), ("eval.max_forgetting", -0.1), ("eval.max_forgetting", "nan"),
        ("eval.max_forgetting", 0.01), ("data.mixup", 0.0), ("data.mixup", 1e4), ("data.mixup", "nan"),
    ],
    ids=lambda value: str(value)[:40],
)  # fmt: skip
def test_values_outside_of_their_range_are_refused_in_one_line(key: str, value: Any) -> None:
    recipe = Recipe.from_dict({"model": {"name": "a"}, "data": {"train": "t"}, "output": "o"})
    with pytest.raises(RecipeError) as caught:
        recipe.override({key: value})
    assert key.rpartition(".")[2] in str(caught.value)
    assert "; " in str(caught.value)  # advice
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1500


@pytest.mark.parametrize(
    ("key", "value", "parts"),
    [
        ("train.epochs", -1, ("-1", "at least 1")),
        ("train.precision", "fp8", ("fp8", "auto, fp32, bf16 or fp16")),
        ("optim.betas", [0.9], ("1 value",)),
        ("optim.lr", float("inf"), ("inf", "finite")),
        ("data.augment", [{"name": "rotate", "degrees": -5}], ("degrees", "-5", "greater than 0")),
        ("data.augment", [{"name": "rotat"}], ("rotat", "crop, flip, rotate")),
        ("data.augment", ["crop", {"name": "rotate", "degres": 5}], ("1.rotate.degres",)),
    ],
)
def test_messages_give_the_value_and_the_values_that_are_possible(key: str, value: Any, parts: tuple[str, ...]) -> None:
    recipe = Recipe.from_dict({"model": {"name": "a"}, "data": {"train": "t"}, "output": "o"})
    with pytest.raises(RecipeError) as caught:
        recipe.override({key: value})
    assert all(part in str(caught.value) for part in (key, *parts)), caught.value
    if key == "data.augment":
        with pytest.raises(RecipeError) as caught:
            parse_policy(json.dumps(value))
        assert all(part in str(caught.value) for part in parts), caught.value


@pytest.mark.parametrize(
    "changes",
    [
        {"optim.lr": "1e-5"}, {"optim.lr": 1}, {"train.epochs": 3.0}, {"data.workers": 0}, {"train.seed": 2**63 - 1},
        {"optim.clip": None}, {"optim.betas": [0, 0.999]}, {"data.max_bad": 1000}, {"optim.warmup": 10_000},
        {"optim.weight_decay": 0}, {"train.ema": 0.9999}, {"train.batch_size": 2**20}, {"train.log_every": 10**6},
    ],
    ids=lambda value: str(value)[:40],
)  # fmt: skip
def test_ordinary_values_are_accepted(changes: dict[str, Any]) -> None:
    Recipe.from_dict({"model": {"name": "a"}, "data": {"train": "t"}, "output": "o"}).override(changes)


BOMB = "a: &a [1,1,1,1,1,1,1,1,1,1]\n" + "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 10)}]\n" for a, b in
                                                 zip("abcdefgh", "bcdefghi", strict=True))  # fmt: skip
YAML = {
    "deep list": "[" * 100_000,
    "deep mapping": "{a: " * 10_000,
    "deep block": "".join(" " * depth + "a:\n" for depth in range(500)),
    "aliases that multiply": BOMB,
    "an alias in itself": "a: &a [*a]",
    "a mapping in itself": "&a {b: *a}",
    "the same key twice": "output: a\noutput: b",
    "the same key twice, quoted": "{output: a, 'output': b}",
    "a NUL": "output: a\0",
    "a date that does not exist": "output: 2020-99-99",
    "an empty integer": "output: !!int ''",
    "an invalid boolean": "output: !!bool x",
    "an invalid float": "output: !!float x",
    "too many digits": "train: {seed: " + "9" * 5000 + "}",
    "a program": "output: !!python/object/apply:os.system [ls]",
    "an unknown tag": "output: !x y",
    "a list as a key": "? [a]\n: b",
    "two documents": "a: 1\n---\nb: 2",
    "a number as a key": "1: a",
    "null as a key": "~: a",
    "true as a key in a section": "{model: {name: a}, data: {train: a, true: 1}, output: o}",
    "a number as a section": "{model: 1, data: 2, output: 3}",
    "a set": "{model: {name: a}, data: !!set {a, b}, output: o}",
    "nothing": "",
    "10 MB": "output: " + "a" * 10_000_000,
    "an escaped NUL": '{model: {name: a}, data: {train: a}, output: "a\\0b"}',
    "an endless line of brackets": "]" * 10_000,
}


@pytest.mark.parametrize("name", YAML)
def test_yaml_that_is_no_recipe_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text(YAML[name])
    with pytest.raises(RecipeError) as caught:
        Recipe.from_yaml(file)
    assert "r.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1500
    if name != "10 MB":  # the same text in an override and a policy: a value or one line
        for read in (lambda text: parse_overrides([f"output={text}"]), parse_policy):
            with suppress(RecipeError):
                read(YAML[name])


def test_bytes_that_are_not_utf8_are_refused_and_a_byte_order_mark_is_not(tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    for content in (b"\xff\xfea\0", b"output: \xe9", bytes(100)):
        file.write_bytes(content)
        with pytest.raises(RecipeError, match=r"r\.yaml"):
            Recipe.from_yaml(file)
    file.write_text("\ufeff{model: {name: a}, data: {train: b}, output: o}")
    assert Recipe.from_yaml(file).output == "o"


def test_aliases_and_merges_are_valid_yaml() -> None:
    text = "a: &a {x: 1}\nb: &b {y: 2}\nc:\n  <<: *a\n  <<: *b\n  z: *a"
    assert parse_yaml(text)["c"] == {"x": 1, "y": 2, "z": {"x": 1}}


def test_deep_json_is_a_value_error() -> None:
    for text in ("[" * 100_000, '{"a":' * 100_000):
        with pytest.raises(ValueError, match="deep"):
            parse_json(text)
