"""Decoding of plain JPEG files to tensors, with the bytes that Pillow gives, in less time: without its copies."""

import torch
from jaxtyping import UInt8
from torch import Tensor

from clipkit.image_formats import RefusedImageError, check_size

_START_OF_SCAN = 0xDA
_FRAMES = (0xC0, 0xC1, 0xC2)  # baseline, extended and progressive, with Huffman coding
_PROFILE = 0xE2  # also used for files with several images
# JFIF, comments, and the tables of quantization, Huffman codes and restarts.
_WITHOUT_EFFECT = (0xE0, 0xFE, 0xDB, 0xC4, 0xDD)


def decode_plain(content: bytes, draft: int | None = None) -> UInt8[Tensor, "3 H W"] | None:
    """Decode a JPEG file with three components of 8 bits and without EXIF data.

    Args:
        content: the file.
        draft: see `open_image`; files that it would decode at a lower resolution are left to it.

    Returns:
        The bytes of `open_image`, with channels last in memory; None for all other files, for damaged ones, and for
        images that are refused.
    """
    size = _size_if_plain(content)
    if size is None or (draft is not None and min(size) >= 2 * draft):
        return None
    from torchvision.io import decode_jpeg

    try:
        check_size(size, len(content))
        return decode_jpeg(torch.frombuffer(bytearray(content), dtype=torch.uint8))
    except (RefusedImageError, RuntimeError):
        return None


def _size_if_plain(content: bytes) -> tuple[int, int] | None:
    """Return width and height of a JPEG file whose pixels depend on nothing but its frame; None for all other files."""
    if not content.startswith(b"\xff\xd8"):
        return None
    size = None
    start = 2
    while start + 10 <= len(content) and content[start] == 0xFF:
        marker = content[start + 1]
        if marker == _START_OF_SCAN:
            return size if size is not None and min(size) else None
        if marker in _FRAMES:
            if size is not None or content[start + 4] != 8 or content[start + 9] != 3:
                return None
            size = (int.from_bytes(content[start + 7 : start + 9]), int.from_bytes(content[start + 5 : start + 7]))
        elif marker == _PROFILE and content.startswith(b"ICC_PROFILE\0", start + 4):
            pass
        elif marker not in _WITHOUT_EFFECT:
            return None
        start += 2 + int.from_bytes(content[start + 2 : start + 4])
    return None
