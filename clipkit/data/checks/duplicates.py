"""Detection of duplicate images: images that have the same bytes or look nearly the same."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from clipkit.data.checks.scan import ImageScan

# Largest number of differing bits between the hashes of near duplicates. Measured on 7,000 photos of Flickr8k: no pair
# of different photos (24.5 million pairs) has a distance of 7 or less. All copies saved with JPEG quality 20, as WebP
# or at a quarter of the size have such a distance, as have 399 of 400 copies cropped by 2 %, 90 % of those cropped by
# 5 %, and 20 % of those cropped by 10 %. Distances are even, because half of the bits of every hash are set.
_DISTANCE = 7
# If two hashes differ in at most 7 bits, at least one of their four bands of 16 bits differs in at most one bit.
_BANDS = 4
_BAND_BITS = 16
# Largest allowed difference at any of the 64 pixels of two thumbnails, relative to the variation of the image.
# Thumbnails are compared because drawings that differ in one detail (flags, one figure with other hair) often have the
# same hash. With this limit, 123 of 3,548 emoji have an earlier near duplicate; half of the 123 are drawn identically.
# It finds all copies that were saved again, 24 of 25 copies cropped by 2 %, and 2 of 5 copies cropped by 5 %.
_DIFFERENCE = 0.4
# Largest allowed difference of the mean colors, in the same unit; it allows copies that are somewhat brighter.
_SHIFT = 0.5
# Variation (out of 255) below which an image contains only noise.
_NOISE = 8.0
# Range of pixel values (out of 255) below which an image has nearly one value: noise, or values that were read wrongly.
NEARLY_ONE_VALUE = 16
# Images that share one hash are compared only with this many neighbors, sorted by brightness: a million blank images
# would otherwise make 10^12 pairs.
_NEIGHBORS = 64
_CHUNK = 1 << 15


@dataclass(frozen=True)
class Duplicates:
    """Duplicates among N images. Exact duplicates have the same bytes; near duplicates only look the same."""

    first: NDArray[np.int64]
    """(N,) position of the first image with the same bytes, which can be the image itself."""
    near_pairs: NDArray[np.int64]
    """(K, 2) pairs of images that look the same, lower position first. Only the first of equal files is listed."""

    @cached_property
    def copies(self) -> NDArray[np.int64]:
        """(N,) number of images with the same bytes, given at the first of them; 0 at the others."""
        return np.bincount(self.first, minlength=len(self.first))

    @property
    def pairs(self) -> int:
        """Number of pairs of images that are exact or near duplicates."""
        copies = self.copies
        exact = int((copies * (copies - 1) // 2).sum())
        return exact + int((copies[self.near_pairs[:, 0]] * copies[self.near_pairs[:, 1]]).sum())

    @property
    def degrees(self) -> NDArray[np.int64]:
        """(N,) number of exact and near duplicates of each image."""
        copies, (one, other) = self.copies, self.near_pairs.reshape(-1, 2).T
        near = np.bincount(one, copies[other], len(copies)) + np.bincount(other, copies[one], len(copies))
        return (copies - 1 + near.astype(np.int64))[self.first]

    def representatives(self, rank: NDArray[np.int64]) -> NDArray[np.int64]:
        """Choose which images to keep, so that no two of the kept images are duplicates.

        Args:
            rank: (N,) rank of each image. Among near duplicates, the image with the lowest rank is kept.

        Returns:
            (N,) position of the image that is kept in place of each image. A kept image represents itself.
        """
        representative = self.first.copy()
        neighbors: dict[int, list[int]] = {}
        for one, other in self.near_pairs.tolist():
            neighbors.setdefault(one, []).append(other)
            neighbors.setdefault(other, []).append(one)
        decided: set[int] = set()
        for image in sorted(neighbors, key=lambda position: (int(rank[position]), position)):
            if image in decided:
                continue
            decided.add(image)
            for other in neighbors[image]:
                if other not in decided:
                    decided.add(other)
                    representative[other] = image
        return representative[self.first]


def find_duplicates(scan: ImageScan) -> Duplicates:
    """Find exact and near duplicates among the readable images of a scan."""
    count = len(scan)
    readable = np.ones(count, bool)
    readable[list(scan.broken)] = False
    positions = np.flatnonzero(readable)
    first = np.arange(count)
    _, starts, group = np.unique(scan.contents[positions], return_index=True, return_inverse=True)
    first[positions] = positions[starts[group]]
    # Of equal files, only the first is compared, so that many copies of one image do not slow down the search.
    return Duplicates(first, _near_pairs(scan, np.unique(first[positions])))


def _near_pairs(scan: ImageScan, positions: NDArray[np.int64]) -> NDArray[np.int64]:
    brightness = scan.thumbnails[positions].mean(axis=(1, 2, 3), dtype=np.float32)
    positions = positions[np.lexsort((brightness, scan.hashes[positions]))]
    hashes, starts, sizes = np.unique(scan.hashes[positions], return_index=True, return_counts=True)
    found = [np.empty((0, 2), np.int64)]
    for step in range(1, min(_NEIGHBORS, int(sizes.max(initial=1)) - 1) + 1):
        same = np.flatnonzero(scan.hashes[positions[:-step]] == scan.hashes[positions[step:]])
        found += _similar(scan, positions[same], positions[same + step])
    for one, other in _close_hashes(hashes):
        # Similar images with equal hashes were found above, so the first images of large groups are enough.
        left, right = np.minimum(sizes[one], _NEIGHBORS), np.minimum(sizes[other], _NEIGHBORS)
        offset, pair = _ranges(left * right)
        row, column = np.divmod(offset, right[pair])
        found += _similar(scan, positions[starts[one[pair]] + row], positions[starts[other[pair]] + column])
    return np.unique(np.sort(np.concatenate(found), axis=1), axis=0)


def _close_hashes(hashes: NDArray[np.uint64]) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Yield pairs of hashes that differ in at most 7 bits, as two arrays of positions.

    A pair may be yielded several times. The given hashes must be distinct.
    """
    for band in range(_BANDS):
        keys = ((hashes >> np.uint64(band * _BAND_BITS)) & np.uint64((1 << _BAND_BITS) - 1)).astype(np.int64)
        order = np.argsort(keys, kind="stable")
        sorted_keys = keys[order]
        for flip in [0, *(1 << bit for bit in range(_BAND_BITS))]:
            starts = np.searchsorted(sorted_keys, keys ^ flip, side="left")
            counts = np.searchsorted(sorted_keys, keys ^ flip, side="right") - starts
            # The candidates are processed in parts, so that the memory does not grow with their number.
            part_of = np.cumsum(counts) // (1 << 22)
            for part in np.unique(part_of[counts > 0]).tolist():
                rows = np.flatnonzero((part_of == part) & (counts > 0))
                offset, pair = _ranges(counts[rows])
                one, other = rows[pair], order[starts[rows][pair] + offset]
                close = (one < other) & (np.bitwise_count(hashes[one] ^ hashes[other]) <= _DISTANCE)
                yield one[close], other[close]


def _ranges(counts: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Concatenate the ranges 0 … count − 1 of all counts. Also return the index of each element's count.

    For the counts 2 and 3, the results are 0 1 0 1 2 and 0 0 1 1 1.
    """
    index = np.repeat(np.arange(len(counts)), counts)
    return np.arange(len(index)) - np.repeat(np.cumsum(counts) - counts, counts), index


def _similar(scan: ImageScan, one: NDArray[np.int64], other: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """Yield the pairs (one, other) of images whose thumbnails are similar, as arrays (P, 2) of positions.

    Pairs with an image of very low contrast are dropped, because thumbnails of such images always look similar. Images
    of a single color are not dropped.
    """
    tells = (scan.spreads == 0) | (scan.spreads >= NEARLY_ONE_VALUE)
    both = tells[one] & tells[other]
    one, other = one[both], other[both]
    for start in range(0, len(one), _CHUNK):
        left, right = one[start : start + _CHUNK], other[start : start + _CHUNK]
        a, b = (scan.thumbnails[side].reshape(len(side), -1, 3).astype(np.float32) for side in (left, right))
        shift = _rms((a.mean(axis=1) - b.mean(axis=1))[:, None])
        a -= a.mean(axis=1, keepdims=True)
        b -= b.mean(axis=1, keepdims=True)
        variation = np.maximum(np.minimum(_rms(a), _rms(b)), _NOISE)
        difference = np.sqrt(np.square(a - b).mean(axis=2)).max(axis=1)
        same = (difference <= _DIFFERENCE * variation) & (shift <= _SHIFT * variation)
        yield np.stack([left[same], right[same]], axis=1)


def _rms(values: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.sqrt(np.square(values).mean(axis=(1, 2)))
