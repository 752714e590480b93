"""A few training images as the image tower may see them, for the report."""

import base64
import io

from clipkit.data import Pairs, StreamPairs
from clipkit.data.preview import preview
from clipkit.errors import DataError
from clipkit.images import DATA_URI
from clipkit.recipe import Recipe, steps_of

_IMAGES, _VIEWS, _SIDE = 4, 5, 96


def augmented_sheet(recipe: Recipe, pairs: Pairs) -> str | None:
    """Return a JPEG as a data URI; None if nothing is augmented or an image is missing or unreadable."""
    if isinstance(pairs, StreamPairs) or not pairs.has_images:
        return None
    views = recipe.image_views
    steps = recipe.data.augmentation if "captions" in recipe.objective else ()
    if not steps and views is not None:
        steps = steps_of(views.policies[0])
    if not steps:
        return None
    safe = recipe.data.safe or (views is not None and views.safe)
    try:
        sheet = preview(pairs, steps, count=_IMAGES, views=_VIEWS, size=_SIDE, safe=safe, seed=recipe.train.seed)
    except DataError:  # an unreadable image, which bad_samples.jsonl lists
        return None
    content = io.BytesIO()
    sheet.save(content, "JPEG", quality=85)
    return DATA_URI + base64.b64encode(content.getvalue()).decode()
