"""What is wrong with images: files, sizes, shapes, copies, leaks."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clipkit.data.checks.duplicates import Alike
from clipkit.data.checks.findings import Finding, finding_of
from clipkit.data.checks.look import GONE, Looked
from clipkit.data.pairs import Pairs
from clipkit.data.sequences import Files
from clipkit.images import size_of

# Nothing can be seen in fewer pixels than an icon has.
_TINY = 32
# A centre crop keeps a third of an image of this shape.
_EXTREME = 3.0

Names = Callable[[int], str]


def names_of(pairs: Pairs) -> Names:
    """Position of an image -> as the source names it: its path there, or where it lies."""
    if isinstance(pairs.images, Files):
        return pairs.images.names.__getitem__
    return lambda place: str(pairs.images[place])


def file_findings(pairs: Pairs) -> list[Finding | None]:
    """Missing and empty files, without opening any."""
    sizes = _sizes(pairs)
    absent = sizes < 0
    if not isinstance(pairs.images, Files):
        # Of what lies in something larger, or at an address, -1 says only that the size is not known.
        absent[[place for place in np.flatnonzero(absent).tolist() if not isinstance(pairs.images[place], Path)]] = (
            False
        )
    elif absent.any():
        absent[[place for place in np.flatnonzero(absent).tolist() if "://" in pairs.images.names[place]]] = False
    return [
        _missing(np.flatnonzero(absent), len(sizes), names_of(pairs)),
        finding_of(
            "broken_images", "error", np.flatnonzero(sizes == 0), len(sizes), "images whose file is empty",
            names_of(pairs), "fetch them again or drop their rows; --fix drops them",
        ),
    ]  # fmt: skip


def image_findings(pairs: Pairs, looked: Looked, image_size: int | None) -> list[Finding | None]:
    """Missing, broken, small and narrow ones.

    Args:
        pairs: N images.
        looked: what is known of them.
        image_size: side of a model's input in pixels.
    """
    names, total = names_of(pairs), len(looked)
    missing = [place for place, error in sorted(looked.broken.items()) if error == GONE]
    broken = [place for place, error in sorted(looked.broken.items()) if error != GONE]
    short, long = looked.sizes.min(axis=1, initial=1 << 30), looked.sizes.max(axis=1, initial=0)
    whole = short > 0
    tiny = whole & (short < _TINY)
    narrow = whole & (long > _EXTREME * short)

    def sized(place: int) -> str:
        return f"{names(place)} ({looked.sizes[place][0]} × {looked.sizes[place][1]})"

    found = [
        _missing(np.array(missing, np.int64), total, names),
        finding_of(
            "broken_images", "error", np.array(broken, np.int64), total, "images that cannot be opened",
            lambda place: f"{names(place)} ({looked.broken[place]})",
            "fetch them again or drop their rows; --fix drops them",
        ),
        finding_of(
            "tiny_images", None, np.flatnonzero(tiny), total, f"images with a side under {_TINY} pixels", sized,
            "nothing can be seen in them: find larger ones or drop them",
        ),
        finding_of(
            "extreme_shapes", None, np.flatnonzero(narrow), total,
            f"images more than {_EXTREME:.0f} times as long as wide, or as wide as long", sized,
            "a centre crop shows a third of them or less: crop them to what the caption says, or drop them",
        ),
    ]  # fmt: skip
    if image_size is not None:
        small = whole & (short < image_size) & ~tiny
        share = float(small.sum()) / max(1, total)
        found.append(
            finding_of(
                "small_images", "warning" if share > 0.5 else "note", np.flatnonzero(small), total,
                f"images smaller than the model's input of {image_size} pixels", sized,
                "they are enlarged and stay blurred: find larger ones, or take a model of smaller input",
            )
        )  # fmt: skip
    return found


def duplicate_findings(pairs: Pairs, same: Alike) -> list[Finding | None]:
    """Images that are there twice, and images that look like another. `same`: of these images alone."""
    names, total = names_of(pairs), len(same.first)
    again = np.flatnonzero(same.first != np.arange(total))
    other: dict[int, int] = {}
    for one, second in same.near.tolist():
        other.setdefault(second, one)
    near = np.array(sorted(other), np.int64)
    return [
        finding_of(
            "duplicate_images", None, again, total, "images that have the bytes of an earlier one",
            lambda place: f"{names(place)} = {names(int(same.first[place]))}",
            "in one batch they are false negatives, and they weigh double: merge them; --fix does",
        ),
        finding_of(
            "near_duplicate_images", None, near, total, "images that look like an earlier one",
            lambda place: f"{names(place)} ~ {names(other[place])}",
            "look at them: copies saved anew are false negatives, which no loss can know of; --fix merges them",
        ),
    ]  # fmt: skip


def leak_findings(pairs: Pairs, leaked: dict[int, str], against: str) -> list[Finding | None]:
    """Images that are in the other set. `leaked`: by position what they are there, with `=` or `~` before it."""
    names, total = names_of(pairs), len(pairs.images)

    def of_kind(name: str, sign: str, what: str) -> Finding | None:
        places = np.array(sorted(place for place, other in leaked.items() if other.startswith(sign)), np.int64)
        return finding_of(
            name, "error", places, total, f"images that {what} {against}",
            lambda place: f"{names(place)} {leaked[place]}",
            f"figures measured on {against} would be too good: drop them here; --fix does",
        )  # fmt: skip

    return [
        of_kind("leaked_images", "=", "have the bytes of one of"),
        of_kind("leaked_near_images", "~", "look like one of"),
    ]


def _missing(places: NDArray[np.int64], total: int, names: Names) -> Finding | None:
    return finding_of(
        "missing_images", "error", places, total, "images that are not there", names,
        "check the paths, which are relative to the data file, or drop their rows; --fix drops them",
    )  # fmt: skip


def _sizes(pairs: Pairs) -> NDArray[np.int64]:
    """Bytes of each file; -1 where that is not known."""
    if not isinstance(pairs.images, Files):
        return np.array([size_of(image) for image in pairs.images], dtype=np.int64)
    folder = str(pairs.images.folder)
    # Strings, not Paths: a million of them take seconds, not half a minute.
    return np.fromiter((_size(folder, name) for name in pairs.images.names), np.int64, len(pairs.images))


def _size(folder: str, name: str) -> int:
    if "://" in name:
        return -1
    try:
        found = os.stat(os.path.join(folder, name))  # noqa: PTH116, PTH118
    except (OSError, ValueError):
        return -1
    return found.st_size
