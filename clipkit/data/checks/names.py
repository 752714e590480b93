"""Names of images in messages and tables."""

from clipkit.data.pairs import Pairs
from clipkit.data.sequences import Files


def image_name(pairs: Pairs, position: int) -> str:
    """Return the image's path as the source names it, or a description of where it is stored."""
    return pairs.images.names[position] if isinstance(pairs.images, Files) else str(pairs.images[position])
