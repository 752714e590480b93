"""A sheet of images with their augmented views, to look at before training."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch import Tensor

from clipkit.data.augment import Inputs, Policy, TextSafe
from clipkit.data.pairs import Pairs
from clipkit.images import open_image
from clipkit.recipe import Step

_GAP = 6  # pixels
_LINE = 16


def preview(
    pairs: Pairs, policy: Sequence[Step], *, count: int = 8, views: int = 5, size: int = 160, safe: bool, seed: int = 0
) -> Image.Image:
    """Evenly spaced images, a row each: as it is, then `views` views of its first epoch.

    Args:
        pairs: the images.
        policy: steps of the augmentation.
        count: images.
        views: of each.
        size: side of a view in pixels.
        safe: heed what captions say of sides and colours; the caption that decides stands below.
        seed: the run's.
    """
    guard = TextSafe(pairs) if safe else None
    rows = np.linspace(0, len(pairs.images) - 1, min(count, len(pairs.images))).round().astype(int).tolist()
    line = _LINE if pairs.has_captions else 0
    high = size + _GAP + line
    sheet = Image.new("RGB", ((views + 1) * (size + _GAP) + 3 * _GAP, len(rows) * high + _GAP), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    made = [Policy(policy, size, _nothing, _nothing, seed, view, guard) for view in range(1, views + 1)]
    for place, row in enumerate(rows):
        image, top = open_image(pairs.images[row]), _GAP + place * high
        shown = [image, *(own.augmented(image, 0, row) for own in made)]
        for column, view in enumerate(shown):
            left = _GAP + column * (size + _GAP) + (2 * _GAP if column else 0)
            sheet.paste(ImageOps.pad(view, (size, size), color=(235, 235, 235)), (left, top))
        if pairs.has_captions:
            draw.text((_GAP, top + size), _said(pairs, row, guard), fill=(70, 70, 70), font=font)
    return sheet


def _said(pairs: Pairs, row: int, guard: TextSafe | None) -> str:
    caption = pairs.captions[pairs.captions_of_image[row][0]]
    if guard is None:
        return caption
    may_flip, may_colour = guard.of(row)
    kept = [what for may, what in ((may_flip, "sides kept"), (may_colour, "colours kept")) if not may]
    return f"{caption} [{', '.join(kept)}]" if kept else caption


def _nothing(image: Image.Image | Tensor) -> Inputs:
    return {}
