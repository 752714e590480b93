"""Opening pictures: whatever a user holds becomes an upright RGB picture."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from clipkit.errors import DataError

Picture = str | Path | Image.Image | np.ndarray[Any, Any]


def open_picture(picture: Picture) -> Image.Image:
    """An RGB PIL image from a path, a PIL image, or a uint8 array (H, W), (H, W, 3) or (H, W, 4).

    EXIF rotation is applied; transparency is laid on white.

    Raises:
        DataError: the file is missing or cannot be decoded, or the array is not a picture.
    """
    if isinstance(picture, Image.Image):
        return _rgb(picture)
    if isinstance(picture, np.ndarray):
        if picture.dtype != np.uint8 or picture.ndim not in (2, 3) or picture.shape[2:] not in ((), (3,), (4,)):
            raise DataError(
                f"an array of shape {picture.shape} and type {picture.dtype} is not a picture: "
                "give uint8 values in (H, W), (H, W, 3) or (H, W, 4)"
            )
        return _rgb(Image.fromarray(picture))
    try:
        with Image.open(picture) as opened:
            return _rgb(opened)
    except FileNotFoundError:
        raise DataError(f"{picture}: there is no such picture; check the path") from None
    except UnidentifiedImageError:
        raise DataError(f"{picture}: is not a picture that Pillow can read; replace it or drop its rows") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{picture}: cannot be decoded ({error}); replace the file or drop its rows") from None


def _rgb(picture: Image.Image) -> Image.Image:
    upright = ImageOps.exif_transpose(picture)
    if upright.mode == "RGB":
        upright.load()
        return upright
    if "A" in upright.mode or "transparency" in upright.info:
        rgba = upright.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return upright.convert("RGB")
