"""Loading of one tower: of every layout, and what a model with one tower refuses."""

import shutil
from pathlib import Path
from typing import Any

import pytest

import clipkit
from clipkit.errors import ModelError
from clipkit.models.adapters.files import save_adapters
from clipkit.models.export.exporting import export
from clipkit.recipe import ModelRecipe
from clipkit.training.plan import Given, make_plan
from tests.models.adapters.round_trip import adapt
from tests.models.one_tower import TEXTS, check_same
from tests.models.test_from_modules import PREPROCESS, Words, build, pixels, tokens
from tests.models.test_layers import model_of


def test_towers_of_clipkit_are_read_from_their_own_folder(images: list[Path], tmp_path: Path) -> None:
    model = model_of({"layers": ["output", "mean"]}, {})
    model.save(tmp_path / "model")
    for side, other in (("image", "text"), ("text", "image")):
        copy = shutil.copytree(tmp_path / "model", tmp_path / side)
        shutil.rmtree(copy / other)
        check_same(clipkit.load(copy, only=side), model, side, images)


def test_layouts_that_are_read_whole_keep_one_tower(tiny_clip: Path, images: list[Path], tmp_path: Path) -> None:
    recipe = ModelRecipe(name=str(tiny_clip))
    save_adapters(adapt(clipkit.load(tiny_clip), "lora", "lora"), tmp_path / "adapters", recipe)
    build().save(tmp_path / "modules")
    for folder in ("adapters", "modules"):
        for side in ("image", "text"):
            pair = []
            for only in (None, side):
                parts = {"image_tower": pixels(), "text_tower": Words(), "preprocess": PREPROCESS, "tokenizer": tokens}
                given: dict[str, Any] = parts if folder == "modules" else {}
                pair.append(clipkit.load(tmp_path / folder, only=only, **given))
            check_same(pair[1], pair[0], side, images)


def test_what_needs_the_other_tower_is_refused(
    tiny_clip: Path, recipe: Any, images: list[Path], tmp_path: Path
) -> None:
    text, image = (clipkit.load(tiny_clip, only=side) for side in ("text", "image"))
    refused = [
        ("only='text'", lambda: text.encode_image(images)),
        ("only='image'", lambda: image.encode_text(TEXTS)),
        (f"{tiny_clip}.*only='text'", lambda: clipkit.evaluate.retrieval(text, recipe().data.train)),
        (f"{tiny_clip}.*only='text'", lambda: text.save(tmp_path / "saved")),
        (f"{tiny_clip}.*only='image'", lambda: export(image, "onnx", tmp_path / "exported")),
        (f"{tiny_clip}.*only='text'", lambda: make_plan(recipe(), given=Given(model=text))),
        ("only='words'", lambda: clipkit.load(tiny_clip, only="words")),  # type: ignore[arg-type]
    ]
    for named, call in refused:
        with pytest.raises(ModelError, match=named):
            call()
    assert not list(tmp_path.iterdir())
