"""A few training images as the image tower may see them, for the report."""

import base64
import io

from clipkit.data import Pairs, StreamPairs
from clipkit.data.preview import preview
from clipkit.errors import DataError
from clipkit.images import DATA_URI
from clipkit.recipe import Recipe

_IMAGES, _VIEWS, _SIDE = 4, 5, 96


def augmented_sheet(recipe: Recipe, pairs: Pairs) -> str | None:
    """A JPEG as a data URI; None where nothing is augmented, or an image of it cannot be had."""
    if isinstance(pairs, StreamPairs) or not pairs.has_images:
        return None
    steps = next((term.augmentation for term in recipe.terms if term.augmentation), None)
    if steps is None:
        return None
    safe = any(term.safe for term in recipe.terms)
    try:
        sheet = preview(pairs, steps, count=_IMAGES, views=_VIEWS, size=_SIDE, safe=safe, seed=recipe.train.seed)
    except DataError:  # a broken image, of which others say what they have to
        return None
    content = io.BytesIO()
    sheet.save(content, "JPEG", quality=85)
    return DATA_URI + base64.b64encode(content.getvalue()).decode()
