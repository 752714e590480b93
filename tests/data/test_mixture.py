"""Joining sources, and splitting off a share."""

import hashlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipkit.data import EpochSampler, Pairs, join, read_pairs, split
from clipkit.errors import DataError
from tests.conftest import draw, write_csv


def made(name: str, count: int, captions: int = 1, folder: str = "") -> Pairs:
    return Pairs(
        name,
        [Path(f"{folder or name}/{row}") for row in range(count)],
        [f"{name} {row} {other}" for row in range(count) for other in range(captions)],
        np.repeat(np.arange(count), captions),
    )


def test_an_image_in_two_sources_is_one_image() -> None:
    one, two = made("a", 3, 2, folder="x"), made("b", 5, 1, folder="x")
    both = join([one, two], [1, 1])
    assert [str(image) for image in both.images] == [f"x/{row}" for row in range(5)]
    assert both.image_of_caption.tolist() == [0, 0, 1, 1, 2, 2, 0, 1, 2, 3, 4]
    assert both.captions_of_image[0].tolist() == [0, 1, 6]


def test_sources_of_different_kinds_are_refused() -> None:
    alone = Pairs("alone", [Path("p")], [""], np.arange(1), has_captions=False)
    with pytest.raises(DataError, match="a has captions, but alone has none"):
        join([made("a", 2), alone], [1, 1])


@given(
    counts=st.lists(st.integers(1, 30), min_size=1, max_size=3),
    weights=st.lists(st.sampled_from([0.1, 0.25, 0.3, 0.5, 1.0, 1.5, 2.0, 3.7]), min_size=3, max_size=3),
    captions=st.sampled_from(["one", "all"]),
    batch=st.integers(1, 8),
)
def test_an_image_occurs_as_often_as_its_weight(
    counts: list[int], weights: list[float], captions: str, batch: int
) -> None:
    sources = [made(name, count, 2) for name, count in zip("abc", counts, strict=False)]
    pairs = join(sources, weights[: len(sources)])
    try:
        sampler = EpochSampler(pairs, captions, batch, seed=1)
    except DataError:
        each = 1 if captions == "one" else 2
        assert sum(int(own * each * weight + 1e-9) for own, weight in zip(counts, weights, strict=False)) < batch
        return
    times = [Counter[int]() for _ in range(4)]
    for epoch, own in enumerate(times):
        batches = list(sampler.epoch(epoch))
        assert [len(batch_) for batch_ in batches] == [batch] * sampler.steps_per_epoch
        own.update(sample.image if captions == "one" else sample.caption for one in batches for sample in one)
    # Whole epochs, without what the last batch drops: each comes ⌊w⌋ or ⌈w⌉ times, in all w times an epoch.
    start = 0
    for part in range(len(sources)):
        for epoch in range(4):
            items, nth = sampler._items_of_epoch(part, epoch)
            count = Counter(items.tolist())
            weight = weights[part]
            size = len(sampler._items[part])
            assert all(np.floor(weight) <= count[item] <= np.ceil(weight) for item in sampler._items[part].tolist())
            assert abs(len(items) - weight * size) < 1 + 1e-6
            assert epoch or sorted(nth[items == items[0]].tolist() if len(items) else []) == list(
                range(count[int(items[0])] if len(items) else 0)
            )
        start += size


def test_weight_one_equals_no_weight() -> None:
    plain = EpochSampler(made("a", 20, 3), "one", 4, seed=2)
    mixed = EpochSampler(join([made("a", 20, 3)], [1]), "one", 4, seed=2)
    assert [list(plain.epoch(epoch)) for epoch in range(3)] == [list(mixed.epoch(epoch)) for epoch in range(3)]


def test_repeated_images_are_in_different_batches_with_other_captions() -> None:
    pairs = join([made("a", 12, 3), made("b", 6)], [2, 1])
    sampler = EpochSampler(pairs, "one", 6, seed=0)
    said: dict[int, list[int]] = {}
    for epoch in range(3):
        for batch in sampler.epoch(epoch):
            assert len({sample.image for sample in batch}) == 6
            for sample in batch:
                said.setdefault(sample.image, []).append(sample.caption)
    for image in range(12):
        assert len(said[image]) == 6
        assert Counter(said[image]) == dict.fromkeys(range(3 * image, 3 * image + 3), 2)


def test_a_split_depends_only_on_image_names(tmp_path: Path) -> None:
    names = [f"{row}.png" for row in range(40)]
    for name in names:
        draw("red", "circle").save(tmp_path / name)
    rows = [[name, f"{name} {other}"] for name in names for other in range(3)]
    shuffled = [rows[place] for place in np.random.default_rng(0).permutation(len(rows))]
    found = []
    for order in (rows, shuffled):
        train, kept = split(read_pairs(str(write_csv(tmp_path / "p.csv", ["image", "caption"], order))), 0.1)
        assert len(kept.images) == 4
        taken = {image.name for image in kept.images}
        assert taken.isdisjoint(image.name for image in train.images)
        for part in (train, kept):
            captions = [part.captions[row] for rows_ in part.captions_of_image for row in rows_]
            assert len(captions) == 3 * len(part.images)
            assert all(
                part.captions[row].startswith(f"{part.images[image].name} ")
                for row, image in enumerate(part.image_of_caption.tolist())
            )
        found.append(taken)
    by_hash = sorted(names, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    assert found == [set(by_hash[:4])] * 2


def test_a_split_of_a_mixture_keeps_its_weights() -> None:
    pairs = join([made("a", 10), made("b", 10)], [1, 2])
    train, _ = split(pairs, 0.3)
    assert [part.weight for part in train.parts] == [1, 2]
    sources = [{str(train.images[image])[0] for image in part.images.tolist()} for part in train.parts]
    assert sources == [{"a"}, {"b"}]
    assert sum(len(part.images) for part in train.parts) == 14
    assert [train.captions[row][0] for part in train.parts for row in part.captions.tolist()] == [
        str(train.images[image])[0] for part in train.parts for image in part.images.tolist()
    ]
    with pytest.raises(DataError, match="only one image"):
        split(made("a", 1), 0.5)
