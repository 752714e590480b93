from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clipkit.errors import DataError
from clipkit.images import open_image
from tests.conftest import draw


def test_transparency_is_put_on_white() -> None:
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    assert np.asarray(open_image(clear)).min() == 255
    palette = clear.convert("P")
    palette.info["transparency"] = 0
    assert open_image(palette).mode == "RGB"
    assert np.asarray(open_image(Image.new("LA", (2, 2), (0, 128))))[0, 0].tolist() == [127, 127, 127]


def test_exif_rotation_is_applied(tmp_path: Path) -> None:
    image = draw("red", "stripe", 40).crop((0, 0, 40, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    image.save(tmp_path / "turned.jpg", exif=exif)
    assert open_image(tmp_path / "turned.jpg").size == (20, 40)


@pytest.mark.parametrize("mode", ["L", "P", "1", "CMYK", "RGB", "I;16"])
def test_every_mode_becomes_rgb(mode: str, tmp_path: Path) -> None:
    suffix = "tiff" if mode == "CMYK" else "png"
    Image.new(mode, (5, 3)).save(tmp_path / f"x.{suffix}")
    opened = open_image(tmp_path / f"x.{suffix}")
    assert (opened.mode, opened.size) == ("RGB", (5, 3))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.png", None, "file not found"),
        ("empty.png", b"", "not an image"),
        ("page.jpg", b"<html>404</html>", "not an image"),
        ("cut.png", "half", "cannot be decoded"),
        ("cut.jpg", "half", "cannot be decoded"),
    ],
)
def test_a_broken_file_is_an_error_of_one_line(
    tmp_path: Path, name: str, content: bytes | str | None, message: str
) -> None:
    file = tmp_path / name
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content == "half":
        noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(noise).save(file)
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(DataError, match=message) as caught:
        open_image(file)
    assert "\n" not in str(caught.value)
    assert name in str(caught.value)


def test_an_array_of_another_type_is_refused() -> None:
    with pytest.raises(DataError, match=r"shape \(3, 4, 4\) and type float32"):
        open_image(np.zeros((3, 4, 4), dtype=np.float32))
