"""Conversion of decoded pixels to upright 8-bit RGB: rotation, transparency, and values of more than 8 bits.

Values of more than 8 bits are scaled by the value range that the file declares; otherwise, by a range estimated from
the values (docs/data.md).
"""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFile, ImageOps

from clipkit.image_formats import open_by_pillow
from clipkit.opening import open_file

# Images with more pixels are converted in strips of rows, to save memory.
_WHOLE = 1 << 24
# TIFF tags.
_BITS, _PHOTOMETRIC, _MAX_USED, _FORMAT, _LOWEST, _HIGHEST = 258, 262, 281, 339, 340, 341
# Bit depths of cameras and scanners. An image of integers has the smallest of these depths in which its largest value
# fits.
_DEPTHS = (8, 10, 12, 14, 16)
# For these layouts, Pillow keeps the upper byte of each value; for the opposite byte order it reads the lower byte.
_OTHER_ORDER = {"16L": "16B", "16B": "16L", "16N": "16B" if sys.byteorder == "little" else "16L"}
_SEVERAL = ("RGB;", "RGBA;", "RGBX;", "LA;")

Box = tuple[int, int, int, int]
Values = NDArray[Any]


@dataclass(frozen=True)
class _File:
    """Information about an image file that Pillow discards when it decodes the image."""

    layout: str
    """Layout of the stored values in Pillow's notation, e.g. RGB;16B; "" for an image without a file."""
    source: Any
    """The open file, or its name."""
    tags: Mapping[int, Any]
    """Tags of a TIFF file."""

    @classmethod
    def of(cls, image: Image.Image) -> "_File":
        tile = getattr(image, "tile", None)
        arguments = tile[0][3] if tile else ""
        layout = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
        source = getattr(image, "filename", "") or getattr(image, "fp", None)
        layout = layout if isinstance(layout, str) else ""
        return cls(layout, source, getattr(image, "tag_v2", None) or {})

    @property
    def has_lower_bytes(self) -> bool:
        """True if the file has several channels of 16 bits, whose lower bytes Pillow discards."""
        return self.layout.startswith(_SEVERAL) and self.layout.partition(";")[2] in _OTHER_ORDER

    def lower_bytes(self) -> Image.Image | None:
        """Decode the file again, and return the lower bytes of the 16-bit values; None if the decoder fails."""
        mode, _, order = self.layout.partition(";")
        layout = f"{mode};{_OTHER_ORDER[order]}"
        with open_file(self.source) if isinstance(self.source, str) else nullcontext(self.source) as file:
            image: Any = open_by_pillow(file)
            if mode == "LA":  # Pillow decodes LA with 16 bits only to RGBA
                layout = "RGBA"
            for number, tile in enumerate(image.tile):
                arguments = (layout, *tile[3][1:]) if isinstance(tile[3], tuple) else layout
                image.tile[number] = getattr(type(tile), "_make", tuple)((*tile[:3], arguments))
            try:
                decoded = _upright(image)
            except (OSError, ValueError, SyntaxError):
                return None
        if mode == "LA":
            _, gray, _, alpha = decoded.split()
            return Image.merge("RGBA", (gray, gray, gray, alpha))
        return decoded

    def tag(self, number: int) -> float | None:
        """Return the number in a TIFF tag for the first channel; None if there is no number."""
        value = self.tags.get(number)
        value = value[0] if isinstance(value, tuple) and value else value
        return value if isinstance(value, int | float) and np.isfinite(value) else None


def has_lower_bytes(image: Image.Image) -> bool:
    """Return whether an undecoded image has several channels of 16 bits, whose lower bytes Pillow discards."""
    return _File.of(image).has_lower_bytes


def rgb(image: Image.Image) -> Image.Image:
    """Decode an image and convert it to upright RGB, with transparency on white and values scaled to 8 bits."""
    file = _File.of(image)
    upright = _upright(image)
    if upright.mode[0] in "IF":
        return _of_gray(upright, file)
    key = _transparent_color(upright, file)
    if file.has_lower_bytes and (key is not None or _is_dark(upright)):
        lower = file.lower_bytes()
        if lower is not None and lower.size == upright.size:
            return _of_16_bits(upright, lower, key)
    if upright.mode == "RGB" and key is None:
        return upright
    if upright.has_transparency_data:
        if key is not None:
            upright.info["transparency"] = key if upright.mode == "RGB" else key[0]
        return in_strips(upright.size, lambda box: _on_white(_part(upright, box)))
    return upright.convert("RGB")


def _upright(image: Image.Image) -> Image.Image:
    """Decode an image and apply its EXIF rotation."""
    try:
        image.load()
        # Without a rotation, skip the copy: it would only use memory.
        is_plain = isinstance(image, ImageFile.ImageFile) and image.width * image.height > _WHOLE
        is_plain = is_plain and image.getexif().get(ExifTags.Base.Orientation, 1) not in range(2, 9)
        return image if is_plain else ImageOps.exif_transpose(image)
    except MemoryError:
        raise
    except Exception:  # broken EXIF data in an otherwise sound image
        image.load()
        return image


def _transparent_color(image: Image.Image, file: _File) -> tuple[int, ...] | None:
    """Return the color that a PNG declares as transparent; None if there is no valid color."""
    key = image.info.get("transparency")
    channels = 3 if image.mode == "RGB" else 1
    values = key if isinstance(key, tuple) else (key,)
    if image.mode not in ("RGB", "L", "1", "I", "I;16") or len(values) != channels:
        return None
    if not all(isinstance(value, int) for value in values):
        return None
    # Pillow scales gray values of 2 and 4 bits to 8 bits, but not their transparent value.
    scale = {"L;2": 85, "L;4": 17}.get(file.layout, 1)
    return tuple(value * scale for value in values)


def in_strips(size: tuple[int, int], convert: Callable[[Box], Image.Image]) -> Image.Image:
    """Build an RGB image, from strips of rows if the image is large, to save memory.

    Args:
        size: width and height in pixels.
        convert: function that returns the pixels in a box (left, top, right, bottom).
    """
    boxes = list(_strips(size))
    if len(boxes) == 1:
        return convert(boxes[0])
    whole = Image.new("RGB", size)
    for box in boxes:
        whole.paste(convert(box), box)
    return whole


def _strips(size: tuple[int, int]) -> Iterator[Box]:
    width, height = size
    rows = height if width * height <= _WHOLE else max(1, _WHOLE // 4 // width)
    for top in range(0, height, rows):
        yield 0, top, width, min(top + rows, height)


def _part(image: Image.Image, box: Box) -> Image.Image:
    return image if box == (0, 0, *image.size) else image.crop(box)


def _on_white(image: Image.Image) -> Image.Image:
    rgba = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
    white = Image.new("RGBA", rgba.size, "white")
    return Image.alpha_composite(white, rgba).convert("RGB")


def _of_gray(image: Image.Image, file: _File) -> Image.Image:
    """Convert a gray image of integers (mode I) or floats (mode F) to 8-bit RGB."""
    is_unsigned = image.mode == "I" and file.tag(_BITS) == 32 and file.tag(_FORMAT) in (None, 1)

    def values_in(box: Box) -> Values:
        values = np.asarray(_part(image, box))
        return values.view(np.uint32) if is_unsigned else values

    key = _transparent_color(image, file)
    scale = _scaling(map(values_in, _strips(image.size)), file, image.mode == "F")
    is_inverted = file.tag(_PHOTOMETRIC) == 0

    def convert(box: Box) -> Image.Image:
        values = values_in(box)
        scaled = 255 - scale(values) if is_inverted else scale(values)
        if key is not None:
            scaled = np.where(values == key[0], 255, scaled)
        return Image.fromarray(scaled.astype(np.uint8)).convert("RGB")

    return in_strips(image.size, convert)


def _scaling(parts: Iterator[Values], file: _File, is_float: bool) -> Callable[[Values], Values]:
    """Return a function that scales the values of a gray image, given as strips of rows, to 0 … 255."""
    lowest, highest = np.inf, -np.inf
    for part in parts:
        finite = part[np.isfinite(part)] if is_float else part
        if finite.size:
            lowest, highest = min(lowest, finite.min()), max(highest, finite.max())
    stated = (file.tag(_LOWEST) or 0.0, file.tag(_HIGHEST))
    if stated[1] is not None and stated[0] < stated[1]:
        return _linear(stated[0], stated[1])
    if is_float:
        return _linear(*_window(float(lowest), float(highest)))
    bits = file.tag(_BITS)
    if bits not in _DEPTHS[1:-1]:
        bits = _depth(max(highest, file.tag(_MAX_USED) or 0))
    if lowest < 0 or bits is None:
        return _linear(float(lowest), float(highest))
    shift = int(bits) - 8
    return lambda values: np.minimum(values.astype(np.int64) >> shift, 255)


def _window(lowest: float, highest: float) -> tuple[float, float]:
    """Estimate the value range of a float image: (0, 1), (0, 255), or otherwise (lowest, highest).

    Resizing can exceed a range, so values up to 10 % outside (0, 1) or (0, 255) are tolerated.

    Example:
        >>> _window(0.0, 0.7), _window(0.0, 250.0), _window(-2.0, 2.5)
        ((0.0, 1.0), (0.0, 255.0), (-2.0, 2.5))
    """
    if lowest >= -0.1 and highest <= 1.1:
        return 0.0, 1.0
    if lowest >= -25.5 and 25.5 < highest <= 280.5:
        return 0.0, 255.0
    return lowest, highest


def _linear(low: float, high: float) -> Callable[[Values], Values]:
    span = high - low if high > low else 1.0

    def scale(values: Values) -> Values:
        shares = (np.nan_to_num(values.astype(np.float64), nan=low, posinf=high, neginf=low) - low) / span
        return (shares.clip(0, 1) * 255).round()

    return scale


def _depth(highest: float) -> int | None:
    """Return the bit depth of an image from its highest value; None if the value needs more than 16 bits.

    Example:
        >>> _depth(255), _depth(4000), _depth(70_000)
        (8, 12, None)
    """
    return next((bits for bits in _DEPTHS if highest < 1 << bits), None)


def _is_dark(image: Image.Image) -> bool:
    """Return whether all values of a 16-bit image fit into 14 bits, given the image of their upper bytes."""
    extrema: Any = image.getextrema()
    return max(high for _, high in extrema[:3]) < 1 << (_DEPTHS[-2] - 8)


def _of_16_bits(upper: Image.Image, lower: Image.Image, key: tuple[int, ...] | None) -> Image.Image:
    """Convert an image of 16 bits per channel to 8-bit RGB.

    Args:
        upper: RGB or RGBA image of the upper bytes.
        lower: image of the lower bytes.
        key: transparent color, with 16 bits per channel; None: no color is transparent.
    """

    def values_in(box: Box) -> Values:
        high, low = (np.asarray(_part(image, box)).astype(np.uint16) for image in (upper, lower))
        return high << 8 | low

    highest = np.max([values_in(box).max(axis=(0, 1)) for box in _strips(upper.size)], axis=0)
    color, alpha = _depth(highest[:3].max()), _depth(highest[3:].max(initial=0))
    assert color is not None
    assert alpha is not None

    def convert(box: Box) -> Image.Image:
        values = values_in(box)
        if key is not None:
            opaque = np.where((values == key).all(axis=2), 0, 255)
            scaled = np.dstack([values >> (color - 8), opaque])
        else:
            scaled = np.dstack([values[:, :, :3] >> (color - 8), values[:, :, 3:] >> (alpha - 8)])
        pixels = Image.fromarray(scaled.astype(np.uint8))
        return pixels if pixels.mode == "RGB" else _on_white(pixels)

    return in_strips(upper.size, convert)
