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
from clipkit.pictures import Stored


def join(sources: Sequence[Pairs], weights: Sequence[float]) -> Pairs:
    """Several sources as one; a picture that is in two of them is one picture with the captions of both.

    Args:
        sources: the pairs of each.
        weights: how often the pictures of each come in an epoch.

    Raises:
        DataError: one has captions or pictures and another one has not.

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
        for what in ("pictures", "captions"):
            if getattr(other, f"has_{what}") != getattr(first, f"has_{what}"):
                with_, without = (first, other) if getattr(first, f"has_{what}") else (other, first)
                raise DataError(f"{with_.name} has {what} and {without.name} has none; they cannot be mixed")
    whole: Joined[Path | Stored] = Joined([own.pictures for own in sources])
    # Captions alone stand each by itself, whatever they are called.
    paths = (
        [path for own in sources for path in _paths(own.pictures)]
        if first.has_pictures
        else map(str, range(len(whole)))
    )
    which, chosen = first_places(pa.array(paths, pa.large_string()))
    image_of_caption: list[NDArray[np.int64]] = []
    parts = []
    images_before = captions_before = 0
    for own, weight in zip(sources, weights, strict=True):
        places = which[images_before : images_before + len(own.pictures)]
        image_of_caption.append(places[own.image_of_caption])
        rows = np.arange(captions_before, captions_before + len(own.captions), dtype=np.int64)
        parts.append(Part(places, rows, weight))
        images_before += len(own.pictures)
        captions_before += len(own.captions)
    return Pairs(
        " + ".join(own.name for own in sources),
        whole if len(chosen) == len(whole) else Chosen(whole, chosen),
        _joined([own.captions for own in sources]),
        np.concatenate(image_of_caption),
        _of_all([own.negatives for own in sources], sources),
        _of_all([own.paraphrases for own in sources], sources),
        has_pictures=first.has_pictures,
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


def _paths(pictures: Sequence[Path | Stored]) -> list[str]:
    """Where each lies."""
    if isinstance(pictures, Files):
        folder = str(pictures.folder.resolve())
        return [name if name.startswith("/") or "://" in name else f"{folder}/{name}" for name in pictures.names]
    return [str(picture.resolve()) if isinstance(picture, Path) else str(picture) for picture in pictures]


def split(pairs: Pairs, share: float) -> tuple[Pairs, Pairs]:
    """What is left, and a share of the pictures with all their captions.

    Those whose names have the lowest hashes are taken: the same ones in whatever order they come, on every machine.

    Args:
        pairs: the whole.
        share: of the pictures, more than 0 and less than 1; at least one is taken, and one left.

    Raises:
        DataError: there is only one picture.

    Example:
        >>> pairs = Pairs("made", [Path(name) for name in "abcd"], list("wxyz"), np.arange(4))
        >>> [len(part.pictures) for part in split(pairs, 0.25)]
        [3, 1]
    """
    count = len(pairs.pictures)
    if count < 2:
        raise DataError(f"{pairs.name}: has one picture, of which no share can be kept for validation")
    hashes = np.array([hashlib.sha256(name.encode()).hexdigest() for name in _given_names(pairs)])
    taken = np.sort(np.argsort(hashes, kind="stable")[: min(count - 1, max(1, round(share * count)))])
    left = np.setdiff1d(np.arange(count), taken)
    return pairs.take(left), pairs.take(taken)


def _given_names(pairs: Pairs) -> list[str]:
    """What the source calls each picture; what has no name goes by its content."""
    if not pairs.has_pictures:
        return [pairs.captions[int(rows[0])] for rows in pairs.captions_of_image]
    return _names_of(pairs.pictures)


def _names_of(pictures: Sequence[Path | Stored]) -> list[str]:
    match pictures:
        case Files():
            return list(pictures.names)
        case Joined():
            return [name for part in pictures.parts for name in _names_of(part)]
        case Chosen():
            names = _names_of(pictures.whole)
            return [names[place] for place in pictures.places.tolist()]
    return [_name_of(picture) for picture in pictures]


def _name_of(picture: Path | Stored) -> str:
    if isinstance(picture, Stored) and not Path(picture.name).suffix:
        return hashlib.sha256(picture.read_bytes()).hexdigest()
    return picture.name
