"""Rules about images. Each rule returns a finding, or None if it finds no problem."""

import numpy as np

from clipkit.data.checks.checked_data import CheckedData, DataRule
from clipkit.data.checks.duplicates import NEARLY_ONE_VALUE
from clipkit.data.checks.scan import MISSING
from clipkit.findings import Finding, finding_about

# Side in pixels below which the content is not recognizable.
_TINY = 32
# Ratio of sides at which a center crop keeps only a third of the image.
_EXTREME = 3.0
# Share of small images at which the finding becomes a warning.
_MANY_SMALL = 0.2


def missing_images(data: CheckedData) -> Finding | None:
    """Report images whose file does not exist."""
    return finding_about(
        sorted(image for image, reason in data.broken.items() if reason == MISSING), len(data.pairs.images),
        name="missing_images", severity="error", what="missing images", describe=data.image_name,
        advice="check the paths, which are relative to the data file, or drop the rows (--fix)",
    )  # fmt: skip


def broken_images(data: CheckedData) -> Finding | None:
    """Report images that exist but cannot be opened."""
    return finding_about(
        sorted(image for image, reason in data.broken.items() if reason != MISSING), len(data.pairs.images),
        name="broken_images", severity="error", what="images that cannot be opened",
        describe=lambda image: f"{data.image_name(image)} ({data.broken[image]})",
        advice="replace these files, or drop the rows (--fix)",
    )  # fmt: skip


def tiny_images(data: CheckedData) -> Finding | None:
    """Report images that are too small to recognize their content."""
    short = data.short_sides
    return finding_about(
        np.flatnonzero((short > 0) & (short < _TINY)).tolist(), len(short),
        name="tiny_images", what=f"images with a side of less than {_TINY} pixels", describe=data.sized_name,
        advice="replace these images with larger images, or drop the rows",
    )  # fmt: skip


def extreme_shapes(data: CheckedData) -> Finding | None:
    """Report images with an extreme aspect ratio."""
    short, long = data.short_sides, data.sizes.max(axis=1, initial=0)
    return finding_about(
        np.flatnonzero((short > 0) & (long > _EXTREME * short)).tolist(), len(short),
        name="extreme_shapes", what=f"images whose long side is more than {_EXTREME:.0f} times the short side",
        describe=data.sized_name,
        advice="a center crop keeps at most a third of such an image: crop it to the part that the caption describes, "
        "or drop the rows",
    )  # fmt: skip


def flat_images(data: CheckedData) -> Finding | None:
    """Report images in which nearly all pixels have almost the same value."""
    spreads, readable = data.spreads, data.short_sides > 0
    if spreads is None:
        return None
    return finding_about(
        np.flatnonzero(readable & (spreads < NEARLY_ONE_VALUE)).tolist(), int(readable.sum()),
        name="flat_images", what="images whose pixels have almost the same value, such as black or blank images",
        describe=lambda number: f"{data.sized_name(number)}, pixel values in a range of {spreads[number]} of 255",
        advice="look at these images: drop the rows of blank ones, and convert the others to 8 bits per channel "
        "(docs/data.md describes how clipkit reads images with more bits)",
    )  # fmt: skip


def small_images(data: CheckedData) -> Finding | None:
    """Report images that are smaller than the model's input."""
    short, readable = data.short_sides, int((data.short_sides > 0).sum())
    if data.image_size is None or not readable:
        return None
    small = np.flatnonzero((short > 0) & (short < data.image_size)).tolist()
    return finding_about(
        small, readable,
        name="small_images", severity="warning" if len(small) >= _MANY_SMALL * readable else "note",
        what=f"images smaller than the model's input of {data.image_size} pixels", describe=data.sized_name,
        advice="smaller images are enlarged, which blurs them: use larger images, or a model with a smaller input",
    )  # fmt: skip


def duplicate_images(data: CheckedData) -> Finding | None:
    """Report images with the same bytes as an earlier image."""
    if data.duplicates is None:
        return None
    first = data.duplicates.first
    return finding_about(
        np.flatnonzero(first != np.arange(len(first))).tolist(), len(first),
        name="duplicate_images", what="images with the same bytes as an earlier image",
        describe=lambda image: f"{data.image_name(image)} = {data.image_name(int(first[image]))}",
        advice="equal images in one batch are false negatives, and training uses them more often: merge them (--fix)",
    )  # fmt: skip


def near_duplicate_images(data: CheckedData) -> Finding | None:
    """Report images that look nearly the same as an earlier image."""
    if data.duplicates is None:
        return None
    earlier: dict[int, int] = {}
    for one, other in data.duplicates.near_pairs.tolist():
        earlier.setdefault(other, one)
    return finding_about(
        sorted(earlier), len(data.duplicates.first),
        name="near_duplicate_images", what="images that look like an earlier image",
        describe=lambda image: f"{data.image_name(image)} ~ {data.image_name(earlier[image])}",
        advice="look at these images: copies of one image are false negatives that no loss can detect; use --fix to "
        "merge copies that differ only in size and encoding",
    )  # fmt: skip


def leaked_images(data: CheckedData) -> Finding | None:
    """Report images with the same bytes as an image of the data `against`, usually the validation data."""
    return _leaked(data, exact=True, name="leaked_images", what="images with the same bytes as an image of")


def leaked_near_images(data: CheckedData) -> Finding | None:
    """Report images that look nearly the same as an image of the data `against`."""
    return _leaked(data, exact=False, name="leaked_near_images", what="images that look like an image of")


def _leaked(data: CheckedData, *, exact: bool, name: str, what: str) -> Finding | None:
    against = data.against
    if against is None:
        return None
    return finding_about(
        sorted(image for image, leak in data.leaked.items() if leak.exact == exact), len(data.pairs.images),
        name=name, severity="error", what=f"{what} {against.name}",
        describe=lambda image: f"{data.image_name(image)} {data.leaked[image].describe(against)}",
        advice=f"results on {against.name} would be too high: remove these images from the checked data (clipkit "
        "data check D --against D2 --fix OUT)",
    )  # fmt: skip


IMAGE_RULES = (
    DataRule("missing_images", missing_images, "an image file does not exist", "images", "quick"),
    DataRule("broken_images", broken_images, "an image cannot be opened (quick: the file is empty)", "images", "quick"),
    DataRule("tiny_images", tiny_images, "a side is under 32 pixels", "images", "full"),
    DataRule("extreme_shapes", extreme_shapes, "one side is more than three times the other", "images", "full"),
    DataRule("flat_images", flat_images,
         "nearly all pixels (99.8 %) have values in a range of less than 16 of 255", "images", "full"),
    DataRule("small_images", small_images,
         "an image is smaller than the model's input; a warning if 20 % of the images or more are affected",
         "images", "sampled"),
    DataRule("leaked_images", leaked_images,
         "an image has the same bytes as an image in the validation data", "images", "sampled"),
    DataRule("leaked_near_images", leaked_near_images,
         "an image looks like an image in the validation data", "images", "full"),
    DataRule("duplicate_images", duplicate_images,
         "an image has the same bytes as an earlier image", "images", "full"),
    DataRule("near_duplicate_images", near_duplicate_images,
         "an image looks like an earlier image", "images", "full"),
)  # fmt: skip
