"""Built-in images and captions for verifying an export, e.g. a CMYK image or a caption with emoji."""

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

CAPTIONS: Mapping[str, str] = {
    "short": "a photo of a cat",
    "sentence": "A black dog and a spotted dog are fighting.",
    "one letter": "x",
    "empty": "",
    "uppercase": "TWO DOGS OF DIFFERENT BREEDS",
    "runs of spaces": "  the  two \t  spaces\nand a line ",
    "punctuation": "3 of 7 people (aged 20–35) wear T-shirts & jeans: it's 50% off, isn't it?! #1 @home a_b",
    "curly quotes": "the girl’s “red” dress and the ‘old’ house",
    "HTML entities": "black &amp; white, &quot;old&quot; &lt;b&gt; caf&eacute; &#39;n&#39; bar",
    "accents": "Ein Mädchen läuft über die Brücke; «où est-il ?», A\u030angstro\u0308m",
    "emoji": "a dog 🐕 and a family 👨‍👩‍👧 🇩🇪 ❤️",
    "full-width": "ＡＢＣ １２３ ！ ｶﾞ",
    "ligatures": "the ﬁrst ﬂower",
    "wrong encoding": "the cafÃ© is open â€” weâ€™re here",
    "other scripts": "犬が走る собака бежит كلب يجري कुत्ता दौड़ता है",
    "longer than the context": "a street at night with many people and cars and lights and shops and signs " * 60,
}
"""Captions by kind."""


def image_files(side: int) -> dict[str, bytes]:
    """Return the contents of the built-in image files; the keys describe the images, e.g. "gray".

    Args:
        side: side of the model's input in pixels. Two images have sizes for which `has_odd_margins` is true.
    """
    square, wide = _photograph(96, 96), _photograph(150, 50)
    alpha = square.convert("RGBA")
    alpha.putalpha(Image.linear_gradient("L").resize(square.size))
    palette = square.quantize(32)
    gray = np.asarray(square.convert("L"))
    rotated = Image.Exif()
    rotated[0x0112] = 6
    files: dict[str, tuple[Image.Image, str, dict[str, Any]]] = {
        "PNG": (square, "PNG", {}),
        "JPEG": (_photograph(480, 480), "JPEG", {"quality": 90}),
        "wide": (wide, "PNG", {}),
        "tall": (wide.rotate(90, expand=True), "PNG", {}),
        "tiny": (_photograph(7, 7), "PNG", {}),
        "gray": (square.convert("L"), "PNG", {}),
        "gray with transparency": (alpha.convert("LA"), "PNG", {}),
        "transparency": (alpha, "PNG", {}),
        "palette": (palette, "PNG", {}),
        "palette with transparency": (palette, "PNG", {"transparency": 3}),
        "black and white": (square.convert("1"), "PNG", {}),
        "transparent color": (square.quantize(4).convert("RGB"), "PNG", {"transparency": _color(square.quantize(4))}),
        "16 bits": (Image.fromarray(gray.astype(np.uint16) * 257), "PNG", {}),
        "12 bits": (Image.fromarray(gray.astype(np.uint16) * 16), "PNG", {}),
        "floats": (Image.fromarray(gray.astype(np.float32) / 255), "TIFF", {}),
        "CMYK": (square.convert("CMYK"), "JPEG", {"quality": 90}),
        "EXIF rotation": (wide, "JPEG", {"quality": 90, "exif": rotated}),
        "odd margins": (_photograph(side + 3, side), "PNG", {}),
        "odd margins, tall": (_photograph(side, side + 7), "PNG", {}),
    }
    return {kind: _encoded(*file) for kind, file in files.items()}


def _color(image: Image.Image) -> Any:
    """Return the color of the first pixel."""
    return image.convert("RGB").getpixel((0, 0))


def _encoded(image: Image.Image, name: str, options: dict[str, Any]) -> bytes:
    file = io.BytesIO()
    image.save(file, name, **options)
    return file.getvalue()


def _photograph(width: int, height: int) -> Image.Image:
    """Draw an image with gradients, edges and noise, so that any change of the preprocessing changes the result."""
    y, x = np.mgrid[:height, :width]
    noise = np.random.default_rng(width).integers(0, 40, (height, width, 3))
    colors = np.stack([200 * x / width, 200 * y / height, 8 * (x + y) % 200], axis=2)
    image = Image.fromarray((colors + noise).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    draw.ellipse((width // 5, height // 4, width // 2, height * 3 // 4), fill=(220, 30, 30))
    draw.rectangle((width * 3 // 5, height // 6, width * 9 // 10, height // 2), fill=(250, 250, 250), outline="black")
    return image


def has_odd_margins(size: tuple[int, int], resized: int, side: int) -> bool:
    """Return whether a center crop cuts off an odd number of pixels in height or width.

    Libraries round the position of such a crop differently.

    Args:
        size: width and height of the image.
        resized: length of the shorter side after resizing, before the crop.
        side: side of the square crop.
    """
    longer = max(size) * resized // min(size)
    return (longer - side) % 2 == 1 or (resized - side) % 2 == 1
