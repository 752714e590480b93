"""Functions that join data sources or split off validation data."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clipkit.data.pairs import Pairs, Part
from clipkit.data.sequences import Chosen, Files, Joined, Strings, first_positions
from clipkit.errors import DataError
from clipkit.images import Stored, read_image


def join(sources: Sequence[Pairs], weights: Sequence[float]) -> Pairs:
    """Join several sources. An image that occurs in several sources becomes one image with all its captions.

    Args:
        sources: data to join.
        weights: for each source, how often each image occurs per epoch. With 0.5, an image occurs in every other epoch.

    Raises:
        DataError: only some of the sources have captions, or only some have images.

    Example:
        >>> one, two = (Pairs(name, [Path(name)], [name], np.array([0])) for name in "ab")
        >>> both = join([one, two], [1, 0.5])
        >>> list(both.captions), both.image_of_caption.tolist(), [part.weight for part in both.parts]
        (['a', 'b'], [0, 1], [1, 0.5])
    """
    if len(sources) == 1 and weights[0] == 1:
        return sources[0]
    first = sources[0]
    for other in sources[1:]:
        for what in ("images", "captions"):
            if getattr(other, f"has_{what}") != getattr(first, f"has_{what}"):
                with_, without = (first, other) if getattr(first, f"has_{what}") else (other, first)
                raise DataError(
                    f"{with_.name} has {what}, but {without.name} has none; use only sources with {what}, or "
                    f"only sources without {what}"
                )
    whole: Joined[Path | Stored] = Joined([source.images for source in sources])
    # Without images, each caption is a separate sample.
    paths = (
        [path for source in sources for path in _locations(source.images)]
        if first.has_images
        else map(str, range(len(whole)))
    )
    new_positions, chosen = first_positions(pa.array(paths, pa.large_string()))
    image_of_caption: list[NDArray[np.int64]] = []
    parts = []
    images_before = captions_before = 0
    for source, weight in zip(sources, weights, strict=True):
        positions = new_positions[images_before : images_before + len(source.images)]
        image_of_caption.append(positions[source.image_of_caption])
        rows = np.arange(captions_before, captions_before + len(source.captions), dtype=np.int64)
        parts.append(Part(positions, rows, weight))
        images_before += len(source.images)
        captions_before += len(source.captions)
    return Pairs(
        " + ".join(source.name for source in sources),
        whole if len(chosen) == len(whole) else Chosen(whole, chosen),
        _joined([source.captions for source in sources]),
        np.concatenate(image_of_caption),
        _joined_if_any([source.negatives for source in sources], sources),
        _joined_if_any([source.paraphrases for source in sources], sources),
        _joined_classes(sources),
        has_images=first.has_images,
        has_captions=first.has_captions,
        found={role: column for source in sources for role, column in source.found.items()},
        parts=parts,
        findings=[finding for source in sources for finding in source.findings],
    )


def _joined(texts: Sequence[Sequence[str]]) -> Strings:
    return Strings(pa.concat_arrays([Strings.of(part).column for part in texts]))


def _joined_if_any(texts: Sequence[Sequence[str] | None], sources: Sequence[Pairs]) -> Strings | None:
    """Concatenate one text column of several sources; None if no source has the column.

    A source without the column contributes empty strings.
    """
    if all(part is None for part in texts):
        return None
    return _joined(
        [part if part is not None else [""] * len(of.captions) for part, of in zip(texts, sources, strict=True)]
    )


def _joined_classes(sources: Sequence[Pairs]) -> Strings | None:
    """Concatenate the classes of several sources; None if no source has classes.

    A source without classes contributes its captions.
    """
    if all(source.classes is None for source in sources):
        return None
    return _joined([source.captions if source.classes is None else source.classes for source in sources])


def _locations(images: Sequence[Path | Stored]) -> list[str]:
    if isinstance(images, Files):
        folder = str(images.folder.resolve())
        return [name if name.startswith("/") or "://" in name else f"{folder}/{name}" for name in images.names]
    return [str(image.resolve()) if isinstance(image, Path) else str(image) for image in images]


def split(pairs: Pairs, share: float) -> tuple[Pairs, Pairs]:
    """Split off a share of the images with all their captions. Return (remaining pairs, pairs split off).

    The split depends only on hashes of the image names, so it is the same for any order of the rows.

    Args:
        pairs: the data to split.
        share: share of the images to split off, between 0 and 1. Each part gets at least one image.

    Raises:
        DataError: there is only one image.

    Example:
        >>> pairs = Pairs("made", [Path(name) for name in "abcd"], list("wxyz"), np.arange(4))
        >>> [len(part.images) for part in split(pairs, 0.25)]
        [3, 1]
    """
    count = len(pairs.images)
    if count < 2:
        raise DataError(
            f"{pairs.name}: has only one image, so no validation data can be split off; use more "
            "images, or set data.validation to another source"
        )
    hashes = np.array([hashlib.sha256(name.encode()).hexdigest() for name in _given_names(pairs)])
    taken = np.sort(np.argsort(hashes, kind="stable")[: min(count - 1, max(1, round(share * count)))])
    left = np.setdiff1d(np.arange(count), taken)
    return pairs.take(left), pairs.take(taken)


def _given_names(pairs: Pairs) -> list[str]:
    """Return the names whose hashes `split` uses: image names, or captions if there are no images.

    If several images in tables or archives have the same name, a hash of the content is added to their names.
    """
    if not pairs.has_images:
        return [pairs.captions[int(rows[0])] for rows in pairs.captions_of_image]
    names = _names_of(pairs.images)
    counts = Counter(names)
    if len(counts) < len(names):  # such names have no folder, so that different images may have equal names
        repeated = ((row, pairs.images[row]) for row, name in enumerate(names) if counts[name] > 1)
        digests = {
            row: hashlib.sha256(read_image(image)).hexdigest() for row, image in repeated if isinstance(image, Stored)
        }
        names = [f"{name} {digests[row]}" if row in digests else name for row, name in enumerate(names)]
    return names


def _names_of(images: Sequence[Path | Stored]) -> list[str]:
    match images:
        case Files():
            return list(images.names)
        case Joined():
            return [name for part in images.parts for name in _names_of(part)]
        case Chosen():
            names = _names_of(images.whole)
            return [names[position] for position in images.positions.tolist()]
    return [_name_of(image) for image in images]


def _name_of(image: Path | Stored) -> str:
    if isinstance(image, Stored) and not Path(image.name).suffix:
        return hashlib.sha256(read_image(image)).hexdigest()
    return image.name
