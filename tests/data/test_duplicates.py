"""Duplicates: copies are found, other images are not."""

import itertools
from pathlib import Path

import numpy as np
from PIL import Image

from clipkit.data.checks.duplicates import Duplicates, find_duplicates
from clipkit.data.checks.scan import ImageScan, scan_images
from tests.data.scenes import scanned, scene


def test_near_copies_are_found_and_other_images_are_not() -> None:
    scenes = [scene(seed) for seed in range(300)]
    copies = [
        copy
        for image in scenes[:50]
        for copy in (
            image.resize((48, 36)),
            image.crop((1, 1, 95, 71)),
            image.point(lambda value: min(255, int(value * 1.05))),
        )
    ]
    scan = scanned(scenes + copies)
    found = {tuple(pair) for pair in find_duplicates(scan).near_pairs.tolist()}
    wanted = {(image, 300 + 3 * image + change) for image in range(50) for change in range(3)}
    family = {image: image if image < 300 else (image - 300) // 3 for image in range(len(scan))}
    assert all(family[one] == family[second] for one, second in found)
    assert len(wanted & found) >= 0.8 * len(wanted)  # these scenes are harder to recognize than photos


def test_equal_hashes_are_not_enough_for_a_near_copy() -> None:
    """A figure with other hair: the same brightness, another color."""
    images = [scene(7), scene(7)]
    for image, color in zip(images, [(200, 40, 40), (0, 131, 60)], strict=True):
        image.paste(color, (30, 20, 60, 50))
    scan = scanned(images)
    assert int(np.bitwise_count(scan.hashes[0] ^ scan.hashes[1])) <= 7
    assert not len(find_duplicates(scan).near_pairs)


def test_blank_images_are_the_same_if_their_colors_are() -> None:
    colors = [(9, 9, 9)] * 200 + [(200, 9, 9)] * 3 + [(90, 90, 90)]
    blanks = [Image.new("RGB", (40 + number, 40), color) for number, color in enumerate(colors)]
    same = find_duplicates(scanned(blanks))
    assert len(same.near_pairs) < 200 * 65  # not every pair of a million blank images
    groups = same.representatives(np.arange(len(blanks)))
    assert len(set(groups[:200].tolist())) < 10
    assert not set(groups[:200].tolist()) & set(groups[200:].tolist())
    assert len(set(groups[200:203].tolist())) == 1
    assert groups[203] == 203
    grays = find_duplicates(scanned([Image.new("L", (32, 32), 100 + number % 3) for number in range(3)]))
    assert len(grays.near_pairs) == 3
    # Nearly one value: neither a hash nor a thumbnail shows more than noise.
    rng = np.random.default_rng(0)
    frames = [Image.fromarray(rng.integers(8, 14, (64, 64), dtype=np.uint8)) for _ in range(3)]
    assert not len(find_duplicates(scanned(frames)).near_pairs)


def test_near_pairs_equal_those_of_all_comparisons() -> None:
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 1 << 63, 200, dtype=np.uint64)
    hashes = np.concatenate([hashes, hashes[:100]])
    for position in range(200, 300):
        for bit in rng.choice(64, position % 11, replace=False):
            hashes[position] ^= np.uint64(1) << np.uint64(bit)
    count = len(hashes)
    contents = np.frombuffer(rng.bytes(16 * count), "V16")
    thumbnails = np.broadcast_to(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8), (count, 8, 8, 3))
    sizes, spreads = np.ones((count, 2), np.int32), np.full(count, 255, np.uint8)
    scan = ImageScan({}, contents, hashes, thumbnails, sizes, np.ones(count, np.int64), spreads)
    slow = [
        [one, second]
        for one, second in itertools.combinations(range(count), 2)
        if bin(int(hashes[one]) ^ int(hashes[second])).count("1") <= 7
    ]
    assert find_duplicates(scan).near_pairs.tolist() == slow


def test_representatives_do_not_look_the_same() -> None:
    chain = Duplicates(np.array([0, 1, 2, 3, 0]), np.array([[0, 1], [1, 2], [2, 3]]))
    assert chain.representatives(np.array([0, 1, 2, 3, 4])).tolist() == [0, 0, 2, 2, 0]
    assert chain.representatives(np.array([9, 0, 2, 3, 9])).tolist() == [1, 1, 1, 3, 1]
    assert chain.pairs == 1 + 2 + 1 + 1


def test_sizes_are_those_after_rotation(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    scene(0).save(tmp_path / "turned.jpg", exif=exif)
    assert scan_images([tmp_path / "turned.jpg"]).sizes.tolist() == [[72, 96]]
