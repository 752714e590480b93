from collections import Counter
from itertools import chain, pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipkit.data import EpochSampler, Pairs
from clipkit.errors import DataError


def pairs_of(counts: list[int]) -> Pairs:
    image_of_caption = np.repeat(np.arange(len(counts)), counts)
    images = [Path(f"{number}.png") for number in range(len(counts))]
    return Pairs("made", images, [f"c{row}" for row in range(len(image_of_caption))], image_of_caption)


@given(counts=st.lists(st.integers(1, 6), min_size=4, max_size=30), seed=st.integers(0, 50))
@settings(max_examples=40, deadline=None)
def test_captions_one_uses_each_caption_of_an_image_in_turn(counts: list[int], seed: int) -> None:
    pairs = pairs_of(counts)
    sampler = EpochSampler(pairs, "one", 1, seed)
    seen: Counter[int] = Counter()
    for epoch in range(60):  # every caption count from 1 to 6 divides 60
        samples = [sample for batch in sampler.epoch(epoch) for sample in batch]
        assert sorted(sample.image for sample in samples) == list(range(len(counts)))
        assert all(pairs.image_of_caption[sample.caption] == sample.image for sample in samples)
        seen.update(sample.caption for sample in samples)
    assert all(seen[row] == 60 // counts[image] for row, image in enumerate(pairs.image_of_caption))


@given(counts=st.lists(st.integers(1, 5), min_size=4, max_size=30), seed=st.integers(0, 50))
@settings(max_examples=300, deadline=None)
def test_captions_all_uses_each_caption_once_and_keeps_images_apart(counts: list[int], seed: int) -> None:
    pairs = pairs_of(counts)
    batch_size = 4
    sampler = EpochSampler(pairs, "all", batch_size, seed)
    batches = list(sampler.epoch(0))
    rows = [sample.caption for batch in batches for sample in batch]
    assert len(rows) == len(set(rows)) == sum(counts) // batch_size * batch_size
    # It can be avoided when no image has more captions than there are batches, and the last batch is full.
    if sum(counts) % batch_size == 0 and max(counts) <= len(batches):
        assert all(len({sample.image for sample in batch}) == batch_size for batch in batches)


@pytest.mark.parametrize("counts", [[5] * 40, [10] + [1] * 190, [2] * 3 + [7] * 42])
def test_captions_of_one_image_are_in_different_batches_if_possible(counts: list[int]) -> None:
    for epoch in range(5):
        for batch in EpochSampler(pairs_of(counts), "all", 20, 0).epoch(epoch):
            assert len({sample.image for sample in batch}) == 20


def test_epochs_differ_and_the_seed_decides() -> None:
    pairs = pairs_of([2] * 20)

    def order(seed: int, epoch: int) -> list[int]:
        return [sample.image for batch in EpochSampler(pairs, "one", 5, seed).epoch(epoch) for sample in batch]

    assert order(0, 0) == order(0, 0)
    assert len({tuple(order(seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}) == 4


@given(processes=st.integers(1, 4), start=st.integers(0, 9), batch_size=st.integers(4, 9))
@settings(max_examples=30, deadline=None)
def test_slices_of_processes_form_the_global_batches_from_any_step(processes: int, start: int, batch_size: int) -> None:
    sampler = EpochSampler(pairs_of([2] * 20), "one", batch_size, 3)
    whole = list(sampler.slices(0, 12, slice(0, batch_size)))
    edges = [process * batch_size // processes for process in range(processes + 1)]
    parts = [list(sampler.slices(start, 12, slice(low, high))) for low, high in pairwise(edges)]
    joined = [list(chain(*step)) for step in zip(*parts, strict=True)]
    assert joined == whole[start:]
    assert len(whole) == 12


def test_a_batch_larger_than_the_data_is_refused() -> None:
    with pytest.raises(DataError, match=r"batch_size is 9, but made .* 8 images .* at most 8"):
        EpochSampler(pairs_of([2] * 8), "one", 9, 0)
    EpochSampler(pairs_of([2] * 8), "all", 9, 0)
