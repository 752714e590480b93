"""Preview of an augmentation: a grid of images and their augmented views."""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch import Tensor

from clipkit.data.augment import Inputs, Policy, TextSafe
from clipkit.data.pairs import Pairs
from clipkit.data.sequences import evenly_spaced
from clipkit.images import open_image
from clipkit.recipe import Step

_GAP = 6  # pixels
_LINE = 16


def preview(
    pairs: Pairs, policy: Sequence[Step], *, count: int = 8, views: int = 5, size: int = 160, safe: bool, seed: int = 0
) -> Image.Image:
    """Draw a grid with one row per image: the image, followed by its augmented views in the first epoch.

    Args:
        pairs: the data; `count` evenly spaced images are drawn.
        policy: steps of the augmentation.
        count: number of images.
        views: number of views per image.
        size: side of a view in pixels.
        safe: True: do not flip images whose captions mention left or right, and do not recolor images whose captions
            mention a color. A note below such an image says "not flipped" or "not recolored".
        seed: seed of the run.
    """
    guard = TextSafe(pairs) if safe else None
    rows = evenly_spaced(len(pairs.images), count)
    line = _LINE if pairs.has_captions else 0
    high = size + _GAP + line
    sheet = Image.new("RGB", ((views + 1) * (size + _GAP) + 3 * _GAP, len(rows) * high + _GAP), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    made = [Policy(policy, size, _nothing, _nothing, seed, view, guard) for view in range(1, views + 1)]
    for line_number, row in enumerate(rows):
        image, top = open_image(pairs.images[row]), _GAP + line_number * high
        shown = [image, *(view.augmented(image, 0, row) for view in made)]
        for column, view in enumerate(shown):
            left = _GAP + column * (size + _GAP) + (2 * _GAP if column else 0)
            sheet.paste(ImageOps.pad(view, (size, size), color=(235, 235, 235)), (left, top))
        if pairs.has_captions:
            draw.text((_GAP, top + size), _caption(pairs, row, guard), fill=(70, 70, 70), font=font)
    return sheet


def _caption(pairs: Pairs, row: int, guard: TextSafe | None) -> str:
    caption = pairs.captions[pairs.captions_of_image[row][0]]
    if guard is None:
        return caption
    may_flip, may_recolor = guard.of(row)
    kept = [note for may, note in ((may_flip, "not flipped"), (may_recolor, "not recolored")) if not may]
    return f"{caption} [{', '.join(kept)}]" if kept else caption


def _nothing(image: Image.Image | Tensor) -> Inputs:
    return {}
