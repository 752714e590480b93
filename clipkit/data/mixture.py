"""Several sources as one, and one as two parts."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clipkit.data.pairs import Pairs, Part
from clipkit.data.sequences import Chosen, Files, Joined, Strings, first_places
from clipkit.errors import DataError
from clipkit.images import Stored


def join(sources: Sequence[Pairs], weights: Sequence[float]) -> Pairs:
    """Several sources as one; an image that is in two of them is one image with the captions of both.

    Args:
        sources: the pairs of each.
        weights: how often the images of each come in an epoch.

    Raises:
        DataError: one has captions or images and another one has not.

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
                raise DataError(f"{with_.name} has {what} and {without.name} has none; they cannot be mixed")
    whole: Joined[Path | Stored] = Joined([own.images for own in sources])
    # Captions alone stand each by itself, whatever they are called.
    paths = (
        [path for own in sources for path in _paths(own.images)] if first.has_images else map(str, range(len(whole)))
    )
    which, chosen = first_places(pa.array(paths, pa.large_string()))
    image_of_caption: list[NDArray[np.int64]] = []
    parts = []
    images_before = captions_before = 0
    for own, weight in zip(sources, weights, strict=True):
        places = which[images_before : images_before + len(own.images)]
        image_of_caption.append(places[own.image_of_caption])
        rows = np.arange(captions_before, captions_before + len(own.captions), dtype=np.int64)
        parts.append(Part(places, rows, weight))
        images_before += len(own.images)
        captions_before += len(own.captions)
    return Pairs(
        " + ".join(own.name for own in sources),
        whole if len(chosen) == len(whole) else Chosen(whole, chosen),
        _joined([own.captions for own in sources]),
        np.concatenate(image_of_caption),
        _of_all([own.negatives for own in sources], sources),
        _of_all([own.paraphrases for own in sources], sources),
        has_images=first.has_images,
        has_captions=first.has_captions,
        found={role: column for own in sources for role, column in own.found.items()},
        parts=parts,
    )


def _joined(texts: Sequence[Sequence[str]]) -> Strings:
    return Strings(pa.concat_arrays([Strings.of(own).column for own in texts]))


def _of_all(texts: Sequence[Sequence[str] | None], sources: Sequence[Pairs]) -> Strings | None:
    """Empty where a source has none; None where no source has any."""
    if all(own is None for own in texts):
        return None
    return _joined(
        [own if own is not None else [""] * len(of.captions) for own, of in zip(texts, sources, strict=True)]
    )


def _paths(images: Sequence[Path | Stored]) -> list[str]:
    """Where each lies."""
    if isinstance(images, Files):
        folder = str(images.folder.resolve())
        return [name if name.startswith("/") or "://" in name else f"{folder}/{name}" for name in images.names]
    return [str(image.resolve()) if isinstance(image, Path) else str(image) for image in images]


def split(pairs: Pairs, share: float) -> tuple[Pairs, Pairs]:
    """What is left, and a share of the images with all their captions.

    Those whose names have the lowest hashes are taken: the same ones in whatever order they come, on every machine.

    Args:
        pairs: the whole.
        share: of the images, more than 0 and less than 1; at least one is taken, and one left.

    Raises:
        DataError: there is only one image.

    Example:
        >>> pairs = Pairs("made", [Path(name) for name in "abcd"], list("wxyz"), np.arange(4))
        >>> [len(part.images) for part in split(pairs, 0.25)]
        [3, 1]
    """
    count = len(pairs.images)
    if count < 2:
        raise DataError(f"{pairs.name}: has one image, of which no share can be kept for validation")
    hashes = np.array([hashlib.sha256(name.encode()).hexdigest() for name in _given_names(pairs)])
    taken = np.sort(np.argsort(hashes, kind="stable")[: min(count - 1, max(1, round(share * count)))])
    left = np.setdiff1d(np.arange(count), taken)
    return pairs.take(left), pairs.take(taken)


def _given_names(pairs: Pairs) -> list[str]:
    """What the source calls each image; what has no name goes by its content."""
    if not pairs.has_images:
        return [pairs.captions[int(rows[0])] for rows in pairs.captions_of_image]
    return _names_of(pairs.images)


def _names_of(images: Sequence[Path | Stored]) -> list[str]:
    match images:
        case Files():
            return list(images.names)
        case Joined():
            return [name for part in images.parts for name in _names_of(part)]
        case Chosen():
            names = _names_of(images.whole)
            return [names[place] for place in images.places.tolist()]
    return [_name_of(image) for image in images]


def _name_of(image: Path | Stored) -> str:
    if isinstance(image, Stored) and not Path(image.name).suffix:
        return hashlib.sha256(image.read_bytes()).hexdigest()
    return image.name
