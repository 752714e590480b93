"""Plain JPEG files are decoded without Pillow, to the same bytes; all other files are left to it."""

import io
import random
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from clipkit.data import Policy
from clipkit.data.plain_jpeg import decode_plain
from clipkit.errors import DataError
from clipkit.image_formats import pixel_limit
from clipkit.images import InMemory, open_image
from clipkit.recipe.policies import Crop, Flip

NOISE = Image.effect_noise((67, 41), 60)
COLORS = Image.merge("RGB", [NOISE, NOISE.rotate(180), NOISE.transpose(Image.Transpose.FLIP_LEFT_RIGHT)])


def saved(image: Image.Image = COLORS, format: str = "JPEG", **settings: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **settings)
    return file.getvalue()


def by_pillow(content: bytes) -> torch.Tensor:
    return torch.from_numpy(np.array(open_image(InMemory("x.jpg", content)))).permute(2, 0, 1)


@pytest.mark.parametrize(
    ("subsampling", "quality", "progressive", "size"),
    [*product([0, 1, 2], [20, 90, 100], [False, True], [(67, 41)]), (2, 90, False, (1, 1)), (2, 75, True, (8, 3))],
)
def test_bytes_are_those_of_pillow(subsampling: int, quality: int, progressive: bool, size: tuple[int, int]) -> None:
    content = saved(COLORS.resize(size), subsampling=subsampling, quality=quality, progressive=progressive)
    found = decode_plain(content)
    assert found is not None
    assert torch.equal(found, by_pillow(content))
    assert found.permute(1, 2, 0).is_contiguous()


@pytest.mark.parametrize("settings", [
    {"icc_profile": b"profile" * 9000}, {"comment": b"words"}, {"restart_marker_blocks": 2}, {"optimize": True},
    {"dpi": (300, 300)},
])  # fmt: skip
def test_other_segments_do_not_matter(settings: dict[str, Any]) -> None:
    content = saved(**settings)
    found = decode_plain(content)
    assert found is not None
    assert torch.equal(found, by_pillow(content))


def oriented() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return saved(exif=exif.tobytes())


SOUND = saved()
OTHERS = {
    "EXIF": oriented(), "gray": saved(NOISE), "CMYK": saved(COLORS.convert("CMYK")), "PNG": saved(format="PNG"),
    "RGB": saved(keep_rgb=True), "MPO": saved(format="MPO", save_all=True, append_images=[COLORS]), "empty": b"",
    "start": SOUND[:2], "header": SOUND[:300], "cut": SOUND[: len(SOUND) // 2], "no end": SOUND[:-2],
    "HTML": b"<html>",
}  # fmt: skip


@pytest.mark.parametrize("kind", OTHERS)
def test_other_files_are_left_to_pillow(kind: str) -> None:
    assert decode_plain(OTHERS[kind]) is None


def test_limits_and_drafts_are_left_to_pillow() -> None:
    with pixel_limit(67 * 41 - 1):
        assert decode_plain(SOUND) is None
    assert decode_plain(saved(COLORS.resize((900, 3)))) is None  # a strip
    assert decode_plain(SOUND, draft=20) is None
    assert decode_plain(SOUND, draft=21) is not None


def test_damaged_files_have_the_same_bytes_or_are_left_to_pillow() -> None:
    generator, decoded = random.Random(0), 0
    for _ in range(400):
        content = bytearray(saved(quality=generator.choice([30, 95]), progressive=generator.random() < 0.5))
        for _ in range(generator.choice([1, 1, 3])):
            content[generator.randrange(len(content))] = generator.randrange(256)
        found = decode_plain(bytes(content))
        if found is not None:
            decoded += 1
            assert torch.equal(found, by_pillow(bytes(content)))
    assert decoded > 100


def test_a_policy_gives_the_same_inputs_for_an_image_and_its_bytes() -> None:
    def inputs(crop: Any) -> dict[str, torch.Tensor]:
        return {"x": crop}

    policy = Policy([Crop(scale=(0.3, 1.0))], 16, inputs, inputs, 0)
    assert policy.takes_bytes
    for number in range(5):
        pixels = decode_plain(SOUND)
        assert torch.equal(policy(pixels, 0, number)["x"], policy(open_image(InMemory("x", SOUND)), 0, number)["x"])
    assert not Policy([Crop(), Flip()], 16, inputs, inputs, 0).takes_bytes
    assert not Policy([Crop()], None, inputs, inputs, 0).takes_bytes
    assert not Policy([], 16, inputs, inputs, 0).takes_bytes


def test_an_unreadable_file_is_reported_as_before() -> None:
    with pytest.raises(DataError, match="x.jpg: "):
        by_pillow(OTHERS["cut"])
