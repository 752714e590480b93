"""Normalization by a table: bit by bit the pixels of each library's preprocessing."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from clipkit.models import from_transformers, open_clip_towers
from clipkit.models.exact_pixels import looked_up, pixel_table
from clipkit.models.image_processors import processor_class
from clipkit.models.preprocess import Preprocess, TransformCall

SIZES = [(300, 200), (31, 97), (224, 224), (500, 375), (17, 16), (640, 33)]


def of_open_clip(**config: Any) -> Preprocess:
    return open_clip_towers._preprocess(SimpleNamespace(preprocess_cfg=config), "tiny")


def of_timm(**config: Any) -> Preprocess:
    from timm.data import create_transform

    transform = TransformCall(create_transform(**config, is_training=False))
    return Preprocess(transform, config["input_size"][1], (0, 0, 0), (1, 1, 1), pixels=transform.pixels)


def of_transformers(family: str, **config: Any) -> Preprocess:
    return from_transformers._preprocess(processor_class(family)(**config), None, "tiny")


SQUARE = {"height": 33, "width": 33}
MADE = {
    "open_clip": lambda: of_open_clip(),
    "open_clip, odd": lambda: of_open_clip(size=37, interpolation="bilinear", mean=(0.5,) * 3, std=(0.5,) * 3),
    "open_clip, squash": lambda: of_open_clip(size=64, resize_mode="squash"),
    "open_clip, longest": lambda: of_open_clip(size=64, resize_mode="longest", fill_color=7),
    "timm": lambda: of_timm(input_size=(3, 40, 40), crop_pct=0.875),
    "timm, bicubic": lambda: of_timm(input_size=(3, 33, 33), interpolation="bicubic", crop_pct=1.0),
    "timm, squash": lambda: of_timm(input_size=(3, 33, 33), crop_mode="squash", mean=(0.5,) * 3, std=(0.5,) * 3),
    "CLIP": lambda: of_transformers("CLIP", size={"shortest_edge": 40}, crop_size=SQUARE),
    "ViT": lambda: of_transformers("ViT", size=SQUARE),
    "Siglip": lambda: of_transformers("Siglip", size=SQUARE),
    "ChineseCLIP": lambda: of_transformers("ChineseCLIP", size=SQUARE, crop_size=SQUARE),
}


def images() -> list[Image.Image]:
    draw = np.random.default_rng(1)
    return [Image.fromarray(draw.integers(0, 256, (h, w, 3), dtype=np.uint8)) for w, h in SIZES]


@pytest.mark.parametrize("name", list(MADE))
def test_pixels_equal_the_library_bit_by_bit(name: str) -> None:
    preprocess = MADE[name]()
    table = pixel_table(preprocess)
    assert table is not None
    assert preprocess.pixels is not None
    for image in images():
        found = looked_up(table, torch.from_numpy(preprocess.pixels(image))[None])[0]
        assert torch.equal(found, preprocess(image)["pixel_values"])


@pytest.mark.parametrize("name", ["Siglip2", "EfficientNet"])
def test_inputs_other_than_scaled_pixels_have_no_table(name: str) -> None:
    options = {"size": SQUARE} if name == "EfficientNet" else {}
    assert pixel_table(of_transformers(name, **options)) is None


def test_normalization_that_depends_on_the_image_has_no_table() -> None:
    clip = MADE["CLIP"]()

    def by_brightness(image: Image.Image) -> dict[str, torch.Tensor]:
        values = clip.evaluate(image)["pixel_values"]
        return {"pixel_values": values - values.mean()}

    assert pixel_table(Preprocess(by_brightness, 33, clip.mean, clip.std, pixels=clip.pixels)) is None


def test_table_in_half_precision_rounds_like_the_library() -> None:
    preprocess = MADE["CLIP"]()
    table = pixel_table(preprocess)
    assert table is not None
    assert preprocess.pixels is not None
    image = images()[0]
    found = looked_up(table.bfloat16(), torch.from_numpy(preprocess.pixels(image))[None])[0]
    assert torch.equal(found, preprocess(image)["pixel_values"].bfloat16())
