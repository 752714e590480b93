"""Which images are the same one: by their bytes, or to the eye."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from clipkit.data.checks.look import Looked

# Measured on Flickr8k, 7,000 photos: of its 24.5 million pairs of different ones none has a distance of 7 or less. Of
# copies saved with JPEG quality 20, as WebP or at a quarter of the size all have, of those cut by 2 % all but 1 in 400,
# by 5 % nine in ten, by 10 % one in five. Distances are even: half of a hash's bits are set, whatever the image.
_DISTANCE = 7
# Two hashes that differ in at most 7 bits have, of four bands of 16 bits, one that differs in at most one bit.
_BANDS = 4
_BAND_BITS = 16
# Drawings often share a hash (flags, one figure with other hair), and differ in one part by much. How far any one of
# the miniatures' 64 places may be apart, relative to what an image varies by. Of 3,548 emoji 123 are then near an
# earlier one, half of them drawn the same. Of the copies above none is lost, of those cut by 2 % one in 25, by 5 %
# three in five.
_DIFFERENCE = 0.4
# The mean colour may have moved so far, in the same unit: a brighter copy is a copy.
_SHIFT = 0.5
# Below this, of 255, what an image varies by is noise.
_VARIES = 8.0
# Of so many images of one hash each is compared with so many others only, the nearest in brightness: a million blank
# images would make 10^12 pairs.
_NEIGHBOURS = 64
_AT_ONCE = 1 << 15


@dataclass(frozen=True)
class Alike:
    """Which of N images are the same."""

    first: NDArray[np.int64]
    """(N,) the first image with the same bytes; itself where there is none before it."""
    near: NDArray[np.int64]
    """(K, 2) pairs of such firsts that look the same; the lower one stands first."""

    @cached_property
    def copies(self) -> NDArray[np.int64]:
        """(N,) for a first how many images have its bytes, itself among them; 0 for the others."""
        return np.bincount(self.first, minlength=len(self.first))

    @property
    def pairs(self) -> int:
        """How many pairs of images are the same, by bytes or to the eye."""
        copies = self.copies
        exact = int((copies * (copies - 1) // 2).sum())
        return exact + int((copies[self.near[:, 0]] * copies[self.near[:, 1]]).sum())

    def keepers(self, rank: NDArray[np.int64]) -> NDArray[np.int64]:
        """(N,) which image each one is merged into; itself where it stays. No two that stay look the same.

        Args:
            rank: (N,) which to keep rather: the lower ones.
        """
        keeper = self.first.copy()
        others: dict[int, list[int]] = {}
        for one, other in self.near.tolist():
            others.setdefault(one, []).append(other)
            others.setdefault(other, []).append(one)
        taken: set[int] = set()
        for place in sorted(others, key=lambda own: (int(rank[own]), own)):
            if place in taken:
                continue
            taken.add(place)
            for other in others[place]:
                if other not in taken:
                    taken.add(other)
                    keeper[other] = place
        return keeper[self.first]


def joined(one: Looked, other: Looked) -> Looked:
    """Images of one set, and behind them those of another."""
    return Looked(
        one.broken | {len(one) + place: error for place, error in other.broken.items()},
        np.concatenate([one.contents, other.contents]),
        np.concatenate([one.hashes, other.hashes]),
        np.concatenate([one.miniatures, other.miniatures]),
        np.concatenate([one.sizes, other.sizes]),
        np.concatenate([one.file_bytes, other.file_bytes]),
    )


def alike(looked: Looked) -> Alike:
    """Find them, in time that grows little faster than their number.

    Broken images are like no other.
    """
    count = len(looked)
    whole = np.ones(count, bool)
    whole[list(looked.broken)] = False
    places = np.flatnonzero(whole)
    first = np.arange(count)
    _, begins, which = np.unique(looked.contents[places], return_index=True, return_inverse=True)
    first[places] = places[begins[which]]
    # Each content once: a set with many copies of one image is no slower than a set without.
    return Alike(first, _near(looked, np.unique(first[places])))


def _near(looked: Looked, places: NDArray[np.int64]) -> NDArray[np.int64]:
    brightness = looked.miniatures[places].mean(axis=(1, 2, 3), dtype=np.float32)
    places = places[np.lexsort((brightness, looked.hashes[places]))]
    hashes, starts, sizes = np.unique(looked.hashes[places], return_index=True, return_counts=True)
    found = [np.empty((0, 2), np.int64)]
    for step in range(1, min(_NEIGHBOURS, int(sizes.max(initial=1)) - 1) + 1):
        same = np.flatnonzero(looked.hashes[places[:-step]] == looked.hashes[places[step:]])
        found += _verified(looked, places[same], places[same + step])
    for one, other in _close(hashes):
        # Larger groups are linked within themselves: their first members speak for them.
        left, right = np.minimum(sizes[one], _NEIGHBOURS), np.minimum(sizes[other], _NEIGHBOURS)
        within, pair = _counted_up(left * right)
        row, column = np.divmod(within, right[pair])
        found += _verified(looked, places[starts[one[pair]] + row], places[starts[other[pair]] + column])
    pairs = np.concatenate(found)
    return np.unique(np.sort(pairs, axis=1), axis=0)


def _close(hashes: NDArray[np.uint64]) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Pairs of distinct hashes at most the distance apart; some pairs more than once."""
    for band in range(_BANDS):
        keys = ((hashes >> np.uint64(band * _BAND_BITS)) & np.uint64((1 << _BAND_BITS) - 1)).astype(np.int64)
        order = np.argsort(keys, kind="stable")
        sorted_keys = keys[order]
        for flip in [0, *(1 << bit for bit in range(_BAND_BITS))]:
            begins = np.searchsorted(sorted_keys, keys ^ flip, side="left")
            counts = np.searchsorted(sorted_keys, keys ^ flip, side="right") - begins
            # In parts, so that memory does not grow with the number of candidates.
            part_of = np.cumsum(counts) // (1 << 22)
            for part in np.unique(part_of[counts > 0]).tolist():
                rows = np.flatnonzero((part_of == part) & (counts > 0))
                within, pair = _counted_up(counts[rows])
                one, other = rows[pair], order[begins[rows][pair] + within]
                close = (one < other) & (np.bitwise_count(hashes[one] ^ hashes[other]) <= _DISTANCE)
                yield one[close], other[close]


def _counted_up(counts: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """0 … count - 1 for each count, one after the other, and which count each belongs to."""
    which = np.repeat(np.arange(len(counts)), counts)
    return np.arange(len(which)) - np.repeat(np.cumsum(counts) - counts, counts), which


def _verified(looked: Looked, one: NDArray[np.int64], other: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """Of candidates those whose miniatures agree, as rows of two."""
    for start in range(0, len(one), _AT_ONCE):
        left, right = one[start : start + _AT_ONCE], other[start : start + _AT_ONCE]
        a, b = (looked.miniatures[own].reshape(len(own), -1, 3).astype(np.float32) for own in (left, right))
        shift = _rms((a.mean(axis=1) - b.mean(axis=1))[:, None])
        a -= a.mean(axis=1, keepdims=True)
        b -= b.mean(axis=1, keepdims=True)
        varies = np.maximum(np.minimum(_rms(a), _rms(b)), _VARIES)
        apart = np.sqrt(np.square(a - b).mean(axis=2)).max(axis=1)
        same = (apart <= _DIFFERENCE * varies) & (shift <= _SHIFT * varies)
        yield np.stack([left[same], right[same]], axis=1)


def _rms(values: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.sqrt(np.square(values).mean(axis=(1, 2)))
