"""Images with more than 8 bits, transparency or unusual modes: each against its right value."""

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageCms, TiffImagePlugin

from clipkit.errors import DataError
from clipkit.images import InMemory, open_image

RAMP = np.linspace(0, 1, 6, dtype=np.float32).reshape(2, 3)
GRAYS = [0, 51, 102, 153, 204, 255]
COLORS = Image.fromarray(np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255]]], np.uint8))


def file_of(image: Image.Image, format: str = "TIFF", **options: Any) -> InMemory:
    content = io.BytesIO()
    image.save(content, format, **options)
    return InMemory(f"x.{format.lower()}", content.getvalue())


def tiff(values: NDArray[Any], **tags: float) -> InMemory:
    """Return a TIFF of gray values, with tags by their names."""
    directory = TiffImagePlugin.ImageFileDirectory_v2()
    for name, value in tags.items():
        number = {"SMinSampleValue": 340, "SMaxSampleValue": 341, "MaxSampleValue": 281, "Photometric": 262}[name]
        directory[number] = value
        if number >= 340:
            directory.tagtype[number] = 12  # double
    return file_of(Image.fromarray(values), tiffinfo=directory)


def png(values: NDArray[Any], bits: int, kind: int, transparent: tuple[int, ...] = ()) -> InMemory:
    """Return a PNG with any number of bits per value; kind: 0 gray, 2 RGB, 4 gray and alpha, 6 RGBA."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    height, width = values.shape[:2]
    bytes_of = [np.unpackbits(row.reshape(-1, 1).astype(">u2").view(np.uint8), axis=1)[:, -bits:] for row in values]
    rows = b"".join(b"\0" + np.packbits(row.reshape(-1)).tobytes() for row in bytes_of)
    chunks = [
        chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0)),
        chunk(b"tRNS", struct.pack(f">{len(transparent)}H", *transparent)) if transparent else b"",
        chunk(b"IDAT", zlib.compress(rows)),
        chunk(b"IEND", b""),
    ]
    return InMemory("x.png", b"\x89PNG\r\n\x1a\n" + b"".join(chunks))


def grays(image: Any) -> list[int]:
    pixels = np.asarray(open_image(image))
    assert pixels.shape[2] == 3
    assert (pixels == pixels[:, :, :1]).all()
    return list(pixels[:, :, 0].ravel().tolist())


def ramp(highest: float, dtype: str = "uint16") -> NDArray[Any]:
    values: NDArray[Any] = RAMP.astype(np.float64) * highest
    return (values if dtype.startswith("f") else values.round()).astype(dtype)


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (tiff(RAMP), GRAYS),
        (Image.fromarray(RAMP), GRAYS),
        (tiff(RAMP * 0.5), [0, 26, 51, 76, 102, 128]),  # a dark image stays dark
        (tiff(RAMP * 255), GRAYS),
        (tiff(RAMP * 1.04 - 0.02), [0, 48, 101, 154, 207, 255]),  # a resized image overshoots
        (tiff(RAMP * 4 - 2), GRAYS),
        (tiff(RAMP * 65535), GRAYS),
        (tiff(RAMP * 7), GRAYS),
        (tiff(RAMP * 50, SMinSampleValue=0, SMaxSampleValue=100), [0, 26, 51, 76, 102, 128]),
        (tiff(RAMP, SMinSampleValue=-1, SMaxSampleValue=1), [128, 153, 178, 204, 230, 255]),
        (tiff(np.where(RAMP > 0.9, np.nan, RAMP)), [0, 51, 102, 153, 204, 0]),
        (tiff(np.where(RAMP > 0.9, np.inf, RAMP)), GRAYS),
        (tiff(np.full((2, 3), np.nan, np.float32)), [0] * 6),
        (tiff(RAMP, Photometric=0), GRAYS[::-1]),
    ],
)  # fmt: skip
def test_float_images_are_scaled_by_their_range(image: Any, expected: list[int]) -> None:
    assert np.abs(np.array(grays(image)) - expected).max() <= 1


@pytest.mark.parametrize("format", ["TIFF", "PNG"])
@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_whole_numbers_keep_the_upper_8_of_their_bits(bits: int, format: str) -> None:
    values = ramp((1 << bits) - 1)
    assert grays(file_of(Image.fromarray(values), format)) == (values >> (bits - 8)).ravel().tolist()


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (tiff(ramp(2000), MaxSampleValue=4095), [0, 25, 50, 75, 100, 125]),
        (tiff(ramp(2000), SMinSampleValue=0, SMaxSampleValue=4000), [0, 26, 51, 76, 102, 128]),
        (tiff(ramp(65535), Photometric=0), GRAYS[::-1]),
        (tiff(ramp(100, "int32")), [0, 20, 40, 60, 80, 100]),
        (tiff(ramp(4095, "int32")), GRAYS),
        (tiff(ramp(200_000, "int32")), GRAYS),
        (tiff(ramp(2000, "int32") - 1000), GRAYS),
        (Image.fromarray(ramp(65535, "int32")), GRAYS),
        (Image.frombytes("I;16B", (3, 2), ramp(65535).astype(">u2").tobytes()), GRAYS),
        (Image.frombytes("I;16L", (3, 2), ramp(4095).astype("<u2").tobytes()), GRAYS),
        (InMemory("x.pgm", b"P5 3 2 4095\n" + ramp(4095).astype(">u2").tobytes()), GRAYS),
        (InMemory("x.pgm", b"P5 3 2 1000\n" + ramp(1000).astype(">u2").tobytes()), GRAYS),
        (png(ramp(65535), 16, 0, transparent=(0,)), [255, *GRAYS[1:]]),
    ],
)  # fmt: skip
def test_gray_images_have_their_right_values(image: Any, expected: list[int]) -> None:
    assert grays(image) == expected


def test_a_tiff_of_unsigned_32_bits() -> None:
    file = tiff(ramp(4294967295, "uint32").view(np.int32))
    content = bytearray(file.content)
    position = content.index(struct.pack("<HHI", 339, 3, 1))  # SampleFormat: signed
    content[position + 8] = 1
    assert grays(InMemory("x.tif", bytes(content))) == GRAYS


def test_packed_12_bits_are_read_as_12_bits() -> None:
    values = ramp(1000).ravel().tolist()
    packed = b"".join(
        ((one << 12) | other).to_bytes(3, "big") for one, other in zip(values[::2], values[1::2], strict=True)
    )
    tags = [(256, 3, 6), (257, 3, 1), (258, 3, 12), (259, 3, 1), (262, 3, 1), (273, 4, 8), (277, 3, 1), (278, 3, 1)]
    tags += [(279, 4, len(packed))]
    directory = b"".join(struct.pack("<HHII", number, kind, 1, value) for number, kind, value in tags)
    start = 8 + len(packed)
    content = b"II*\0" + struct.pack("<I", start) + packed + struct.pack("<H", len(tags)) + directory + b"\0" * 4
    assert grays(InMemory("x.tif", content)) == [value >> 4 for value in values]


def colored(bits: int, channels: int = 3) -> NDArray[np.uint16]:
    values = np.random.default_rng(bits).integers(0, 1 << bits, (5, 7, channels)).astype(np.uint16)
    values[0, 0, :3] = (1 << bits) - 1
    return values


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_color_images_of_16_bits_keep_the_upper_8_bits_that_they_use(bits: int) -> None:
    values = colored(bits)
    assert (np.asarray(open_image(png(values, 16, 2))) == values >> (bits - 8)).all()
    gray = np.dstack([values[:, :, 0], np.full(values.shape[:2], 65535)])
    assert grays(png(gray, 16, 4)) == (values[:, :, 0] >> (bits - 8)).ravel().tolist()
    opaque = np.dstack([values, np.full(values.shape[:2], 65535)])
    assert (np.asarray(open_image(png(opaque, 16, 6))) == values >> (bits - 8)).all()


@pytest.mark.parametrize("compression", [None, "tiff_adobe_deflate"])
def test_color_tiffs_of_12_bits_and_unloaded_images(compression: str | None, tmp_path: Path) -> None:
    values = colored(12)
    file = tmp_path / "x.tif"
    raw = values.astype("<u2").tobytes()
    raw = raw if compression is None else zlib.compress(raw)
    tags = [(256, 3, 1, 7), (257, 3, 1, 5), (258, 3, 3, 8), (259, 3, 1, 8 if compression else 1), (262, 3, 1, 2)]
    tags += [(273, 4, 1, 14), (277, 3, 1, 3), (278, 3, 1, 5), (279, 4, 1, len(raw))]
    directory = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    start = 14 + len(raw)
    bits = struct.pack("<HHH", 16, 16, 16)
    file.write_bytes(
        b"II*\0" + struct.pack("<I", start) + bits + raw + struct.pack("<H", len(tags)) + directory + b"\0" * 4
    )
    assert (np.asarray(open_image(file)) == values >> 4).all()
    assert (np.asarray(open_image(Image.open(file))) == values >> 4).all()
    assert (np.asarray(open_image(Image.open(io.BytesIO(file.read_bytes())))) == values >> 4).all()


def test_a_rotated_color_image_of_12_bits() -> None:
    values = colored(12)
    content = png(values, 16, 2).content
    exif = Image.Exif()
    exif[0x0112] = 6
    block = exif.tobytes()[6:]
    chunk = struct.pack(">I", len(block)) + b"eXIf" + block + struct.pack(">I", zlib.crc32(b"eXIf" + block))
    turned = content[:33] + chunk + content[33:]
    assert (np.asarray(open_image(InMemory("x.png", turned))) == np.rot90(values >> 4, -1)).all()


def test_a_large_image_is_converted_in_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    noise = np.random.default_rng(0).integers(0, 4096, (40, 9, 3)).astype(np.uint16)
    inputs = [png(noise, 16, 2), tiff(noise[:, :, 0]), tiff(noise[:, :, 0].astype(np.float32) / 4096)]
    whole = [np.asarray(open_image(image)) for image in inputs]
    monkeypatch.setattr("clipkit.pixels._WHOLE", 100)
    for image, expected in zip(inputs, whole, strict=True):
        assert (np.asarray(open_image(image)) == expected).all()


def test_a_transparent_color_of_a_png_is_put_on_white() -> None:
    rgb = np.array([[[10, 20, 30], [10, 20, 31], [0, 0, 0]]])
    expected = [[255, 255, 255], [10, 20, 31], [0, 0, 0]]
    assert np.asarray(open_image(png(rgb, 8, 2, (10, 20, 30))))[0].tolist() == expected
    assert np.asarray(open_image(Image.open(io.BytesIO(png(rgb, 8, 2, (10, 20, 30)).content))))[0].tolist() == expected
    deep = np.array([[[0x1234, 1, 2], [0x1235, 1, 2], [65535, 0, 0]]])
    assert np.asarray(open_image(png(deep, 16, 2, (0x1234, 1, 2))))[0].tolist() == [
        [255] * 3,
        [0x12, 0, 0],
        [255, 0, 0],
    ]


@pytest.mark.parametrize(("bits", "scale"), [(1, 255), (2, 85), (4, 17), (8, 1)])
def test_a_transparent_gray_of_a_png_is_put_on_white(bits: int, scale: int) -> None:
    values = np.arange(min(4, 1 << bits))[None]
    for key in values[0].tolist():
        expected = [255 if value == key else value * scale for value in values[0].tolist()]
        assert grays(png(values, bits, 0, (key,))) == expected


def test_a_transparency_that_fits_no_pixel_is_ignored() -> None:
    image = COLORS.copy()
    for key in (b"\0\1", 3, (1, 2), "x"):
        image.info["transparency"] = key
        assert (np.asarray(open_image(image)) == np.asarray(COLORS)).all()


HALF = Image.fromarray(np.array([[[200, 100, 0, 0], [200, 100, 0, 255]]], np.uint8))
"""A transparent pixel and an opaque one."""


def palette_with_alpha() -> Image.Image:
    image = HALF.quantize(4)
    assert image.palette is not None
    assert image.palette.mode == "RGBA"
    return image


@pytest.mark.parametrize(
    "image",
    [
        HALF,
        HALF.convert("RGBa"),
        palette_with_alpha(),
        file_of(palette_with_alpha(), "PNG"),
        file_of(HALF, "WEBP", lossless=True),
        file_of(HALF, "TIFF"),
        file_of(HALF, "TGA"),
        file_of(HALF, "GIF"),
        file_of(HALF.convert("RGBa").convert("RGBA"), "PNG"),
    ],
)
def test_transparent_pixels_become_white_whatever_the_mode(image: Any) -> None:
    pixels = np.asarray(open_image(image))[0].astype(int)
    assert pixels[0].tolist() == [255, 255, 255]
    assert np.abs(pixels[1] - [200, 100, 0]).max() <= 1


@pytest.mark.parametrize("mode", ["LA", "La", "PA"])
def test_transparent_gray_and_palette_pixels_become_white(mode: str) -> None:
    gray = HALF.convert("LA")
    palette = HALF.convert("L").convert("P")
    palette.putalpha(HALF.getchannel("A"))
    image = {"LA": gray, "La": gray.convert("La"), "PA": palette}[mode]
    assert np.abs(np.array(grays(image)) - [255, 119]).max() <= 1


_FROM_PILLOW_11 = pytest.mark.skipif(PIL.__version__ < "11", reason="Pillow 10 does not read the YCbCr TIFF it wrote")


@pytest.mark.parametrize(
    "mode",
    [
        "RGB",
        "RGBX",
        "CMYK",
        "YCbCr",
        "HSV",
        "P",
        "LAB",
        "TIFF CMYK",
        "TIFF LAB",
        pytest.param("TIFF YCbCr", marks=_FROM_PILLOW_11),
        "JPEG CMYK",
    ],
)
def test_color_modes_keep_their_colors(mode: str) -> None:
    format, _, name = mode.rpartition(" ")
    big = COLORS.resize((24, 8), Image.Resampling.NEAREST)
    if name == "LAB":
        spaces = [ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")]
        image = ImageCms.profileToProfile(big, *spaces, outputMode="LAB")
    else:
        image = big.convert(name)
    assert image is not None
    opened = open_image(file_of(image, format, **({"quality": 100} if format == "JPEG" else {})) if format else image)
    assert np.abs(np.asarray(opened).astype(int) - np.asarray(big)).max() <= 24  # LAB has few steps for pure colors


@pytest.mark.parametrize("mode", ["1", "L"])
def test_black_and_white(mode: str) -> None:
    image = Image.fromarray(np.array([[0, 255]], np.uint8)).convert(mode)
    assert grays(image) == grays(file_of(image)) == grays(file_of(image, "PNG")) == [0, 255]


def test_a_broken_16_bit_file_is_an_error() -> None:
    content = png(colored(12), 16, 2).content
    with pytest.raises(DataError, match=r"x\.png"):
        open_image(InMemory("x.png", content[:90]))
