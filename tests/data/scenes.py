"""Images for the tests of data checks."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image

from clipkit.data.checks.scan import ImageScan, scan_images
from clipkit.data.sequences import Files
from clipkit.images import Stored


def scene(seed: int, width: int = 96, height: int = 72) -> Image.Image:
    """Draw an image with the soft large shapes of a photo, a different one for each seed."""
    coarse = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


class InMemory(Stored):
    def __init__(self, content: bytes) -> None:
        self.content = content

    @property
    def name(self) -> str:
        return "image.jpg"

    @property
    def size(self) -> int:
        return len(self.content)

    def read_bytes(self) -> bytes:
        return self.content


def scanned(images: list[Image.Image]) -> ImageScan:
    files = [io.BytesIO() for _ in images]
    for image, file in zip(images, files, strict=True):
        image.save(file, format="JPEG", quality=90)
    return scan_images([InMemory(file.getvalue()) for file in files], workers=2)


def files_named(count: int) -> Files:
    return Files.of(Path(), pa.array([f"{number}.jpg" for number in range(count)], pa.large_string()))
