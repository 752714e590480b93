"""Images, texts, templates and classes of unusual form: features, or one line about what is wrong."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import clipkit
from clipkit import evaluate
from clipkit.errors import DataError, RecipeError, UserError
from clipkit.models import DualEncoder
from clipkit.recipe import Recipe

MODES = (
    "1",
    "L",
    "P",
    "RGB",
    "RGBA",
    "CMYK",
    "YCbCr",
    "LAB",
    "HSV",
    "I",
    "F",
    "LA",
    "PA",
    "RGBX",
    "RGBa",
    "I;16",
    "I;16B",
)
HALVES = ("\ud83d", "a dog \udcff", "\udfff\udfff")


@pytest.fixture(scope="module")
def model(tiny_clip: Path) -> DualEncoder:
    return clipkit.load(tiny_clip, device="cpu")


def refused(function: Callable[[], Any], message: str, kind: type[UserError] = DataError) -> None:
    with pytest.raises(kind, match=message) as raised:
        function()
    text = str(raised.value)
    assert "\n" not in text
    assert text.encode()  # it can be printed


@pytest.mark.parametrize("mode", MODES)
def test_modes_of_pillow_are_read(mode: str, model: DualEncoder) -> None:
    assert model.encode_image(Image.new(mode, (8, 8))).isfinite().all()


def test_closed_images_are_refused(model: DualEncoder) -> None:
    closed = Image.new("RGB", (8, 8))
    closed.close()
    refused(lambda: model.encode_image([Image.new("RGB", (8, 8)), closed]), "closed")


def test_closed_files_are_refused(model: DualEncoder, shapes: Path) -> None:
    opened = Image.open(shapes / "images" / "00.png")
    assert len(model.encode_image(opened)) == 1
    opened.close()
    refused(lambda: model.encode_image(opened), "closed")


@pytest.mark.parametrize("shape", [(0, 0), (0, 0, 3), (5, 0, 3), (0, 5), (0, 5, 4)])
def test_images_without_pixels_are_refused(shape: tuple[int, ...], model: DualEncoder) -> None:
    size = f"{shape[1]} × {shape[0]}"
    refused(lambda: model.encode_image(np.zeros(shape, np.uint8)), f"{size} pixels")
    refused(lambda: model.encode_image([Image.new("RGB", (shape[1], shape[0]))]), f"{size} pixels")


@pytest.mark.parametrize("half", HALVES)
def test_half_characters_are_refused(half: str, model: DualEncoder, shapes: Path) -> None:
    image, labels = str(shapes / "images" / "00.png"), str(shapes / "classes.csv")
    message = "half of a (character|surrogate pair)|surrogates not allowed"
    refused(lambda: model.encode_text(half), message)
    refused(lambda: model.encode_text(["fine", half]), message)
    refused(lambda: model.classify(image, ["fine", half]), message)
    refused(lambda: model.encode_image(f"{half}.png"), f"{message}|file not found")
    refused(lambda: evaluate.zeroshot(model, labels, templates=["{c}", f"{half} {{c}}"], cache=False), message)
    refused(lambda: evaluate.zeroshot(model, labels, classes=["red", half], cache=False), message)
    refused(lambda: evaluate.zeroshot_classifier(model, {"red": [half]}), message)
    refused(lambda: evaluate.retrieval(model, [(image, half)], cache=False), message)
    recipe = {"model": {"name": half}, "data": {"train": "a.csv"}, "output": "run"}
    refused(lambda: Recipe.from_dict(recipe), f"model.name .*{message}", RecipeError)


def test_folder_names_that_are_not_utf8_are_left_out_and_reported(
    model: DualEncoder, shapes: Path, tmp_path: Path
) -> None:
    odd = tmp_path / "data" / os.fsdecode(b"\xff\xfe")
    try:
        odd.mkdir(parents=True)
    except OSError:
        pytest.skip("the file system takes UTF-8 only")
    for folder in (odd, tmp_path / "data" / "red"):
        folder.mkdir(exist_ok=True)
        shutil.copy(shapes / "images" / "00.png", folder / "1.png")
    result = evaluate.zeroshot(model, str(tmp_path / "data"), cache=False)
    assert (result["data"]["images"], result["data"]["classes"]) == (1, 1)
    assert any("not UTF-8" in str(finding) for finding in result["data"]["findings"])


@pytest.mark.parametrize("templates", [[], (), "", {}, 5, [5], ["no place"], [None], {"red": []}, {"red": [5]}])
def test_templates_of_another_form_are_refused(templates: Any, model: DualEncoder, shapes: Path) -> None:
    refused(
        lambda: evaluate.zeroshot(model, str(shapes / "classes.csv"), templates=templates, cache=False),
        "template|\\{c\\}",
    )
    refused(lambda: evaluate.zeroshot_classifier(model, ["red", "blue"], templates), "template|\\{c\\}")


@pytest.mark.parametrize("classes", [[], (), "red", {}, 5, [5], [None, "red"], {"red": []}, {"red": 5}, {"red": [5]}])
def test_classes_of_another_form_are_refused(classes: Any, model: DualEncoder, shapes: Path) -> None:
    refused(lambda: evaluate.zeroshot(model, str(shapes / "classes.csv"), classes=classes, cache=False), "classes")
    refused(lambda: evaluate.zeroshot_classifier(model, classes), "classes")


def test_templates_and_classes_may_be_a_string_or_any_iterable(model: DualEncoder, shapes: Path) -> None:
    names, data = ["red", "green", "blue", "yellow"], str(shapes / "classes.csv")
    expected = evaluate.zeroshot(model, data, classes=names, templates=["a {c}."], cache=False)
    for classes, templates in (
        (tuple(names), "a {c}."),
        (np.array(names), iter(["a {c}."])),
        (iter(names), ("a {c}.",)),
    ):
        result = evaluate.zeroshot(model, data, classes=classes, templates=templates, cache=False)  # type: ignore[arg-type]
        assert (result["metrics"], result["settings"]["templates"]) == (expected["metrics"], ["a {c}."])
