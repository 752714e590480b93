"""Resizing on a device: byte by byte Pillow's, with the sizes and crops of each library."""

import random

import numpy as np
import pytest
import torch
from PIL import Image

from clipkit.models.exact_pixels import exact_pixels
from clipkit.models.exact_resize import ExactResize, can_resize
from clipkit.models.preprocess import Resize
from tests.models.test_exact_pixels import MADE

CPU = torch.device("cpu")
RESIZING = [name for name in MADE if "longest" not in name and not name.startswith("timm")]


def noise(width: int, height: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def sizes(count: int, seed: int, most: int) -> list[tuple[int, int]]:
    draw = random.Random(seed)
    return [(draw.randrange(8, most), draw.randrange(8, most)) for _ in range(count)]


def check_equals_pillow(count: int, seed: int, most: int) -> None:
    draw = random.Random(seed)
    for width, height in sizes(count, seed, most):
        name = draw.choice(["bicubic", "bilinear"])
        side = draw.randrange(8, 60)
        steps = Resize("squash", side, name, "floor")
        if not can_resize(width, height, steps, side):
            continue
        pixels = noise(width, height, seed)
        expected = Image.fromarray(pixels).resize((side, side), Image.Resampling[name.upper()])
        found = ExactResize(steps, side, CPU)(torch.from_numpy(pixels)[None])[0]
        assert np.array_equal(found.numpy(), np.asarray(expected)), (width, height, side, name)


def test_bytes_equal_pillow_for_random_sizes() -> None:
    check_equals_pillow(200, 0, 300)


@pytest.mark.slow
def test_bytes_equal_pillow_for_many_random_sizes() -> None:
    check_equals_pillow(5000, 1, 500)


@pytest.mark.parametrize("values", [(0, 255), (255, 255), (0, 0)])
def test_overshoot_of_sharp_edges_is_clipped_like_in_pillow(values: tuple[int, int]) -> None:
    pixels = np.where(noise(90, 70) > 127, *values).astype(np.uint8)
    expected = Image.fromarray(pixels).resize((33, 33), Image.Resampling.BICUBIC)
    found = ExactResize(Resize("squash", 33, "bicubic", "floor"), 33, CPU)(torch.from_numpy(pixels)[None])[0]
    assert np.array_equal(found.numpy(), np.asarray(expected))


@pytest.mark.parametrize("name", RESIZING)
def test_pixels_equal_those_of_each_library(name: str) -> None:
    preprocess = MADE[name]()
    exact = exact_pixels(preprocess, CPU, torch.float32)
    assert exact is not None
    assert exact.resize is not None
    assert isinstance(preprocess.steps, Resize)
    assert preprocess.image_size is not None
    shapes = [*sizes(25, 3, 4 * preprocess.steps.size), (preprocess.image_size,) * 2, (40, 40), (40, 70)]
    shapes = [shape for shape in shapes if can_resize(*shape, preprocess.steps, preprocess.image_size)]
    arrays = [noise(*shape, seed) for seed, shape in enumerate(shapes)]
    content = torch.cat([torch.from_numpy(array).flatten() for array in arrays])
    expected = torch.stack([preprocess(Image.fromarray(array))["pixel_values"] for array in arrays])
    assert len(shapes) > 12
    assert torch.equal(exact(content, shapes), expected)


def test_images_of_one_size_are_resized_in_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clipkit.models.exact_pixels._GROUP", 3 * 50 * 40 * 3)
    preprocess = MADE["CLIP"]()
    exact = exact_pixels(preprocess, CPU, torch.float32)
    assert exact is not None
    assert preprocess.pixels is not None
    arrays = [noise(50, 40, seed) for seed in range(8)]
    ready = preprocess.pixels(Image.fromarray(arrays[2]))
    parts = [torch.from_numpy(array).flatten() for array in [*arrays[:5], ready, *arrays[5:]]]
    made = exact(torch.cat(parts), [*[(50, 40)] * 5, None, *[(50, 40)] * 3])
    expected = [preprocess(Image.fromarray(array))["pixel_values"] for array in [*arrays[:5], arrays[2], *arrays[5:]]]
    assert torch.equal(made, torch.stack(expected))


def test_large_reductions_and_other_filters_are_left_to_the_library() -> None:
    assert can_resize(500, 375, Resize("shortest", 224, "bicubic", "floor"), 224)
    assert not can_resize(4000, 3000, Resize("shortest", 224, "bicubic", "floor"), 224)
    assert not can_resize(500, 375, Resize("shortest", 224, "lanczos", "floor"), 224)
    assert not can_resize(500, 375, Resize("shortest", 200, "bicubic", "floor"), 224)


def test_imprecise_products_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with TF32, which rounds the factors."""
    original = ExactResize._parts
    monkeypatch.setattr(ExactResize, "_parts", lambda *a: original(*a).bfloat16())
    exact = exact_pixels(MADE["CLIP"](), CPU, torch.float32)
    assert exact is not None
    assert exact.resize is None
