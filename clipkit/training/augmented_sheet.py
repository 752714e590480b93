"""Sheet of augmented training images, for the report."""

import base64
import io

from clipkit.data import Pairs
from clipkit.data.preview import preview
from clipkit.errors import DataError
from clipkit.images import DATA_URI
from clipkit.recipe import Recipe

_IMAGES, _VIEWS, _SIDE = 4, 5, 96


def augmented_sheet(recipe: Recipe, pairs: Pairs) -> str | None:
    """Return a JPEG image (a data URI) that shows training images next to their augmented views.

    The result is None if nothing is augmented or an image cannot be read.
    """
    if not len(pairs.images) or not pairs.has_images:
        return None
    steps = next((term.augmentation for term in recipe.terms if term.augmentation), None)
    if steps is None:
        return None
    safe = any(term.safe for term in recipe.terms)
    try:
        sheet = preview(pairs, steps, count=_IMAGES, views=_VIEWS, size=_SIDE, safe=safe, seed=recipe.train.seed)
    except DataError:  # an unreadable image, which bad_samples.jsonl lists
        return None
    content = io.BytesIO()
    sheet.save(content, "JPEG", quality=85)
    return DATA_URI + base64.b64encode(content.getvalue()).decode()
