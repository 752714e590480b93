"""Hard negatives and batches of them, against loops."""

from pathlib import Path

import numpy as np
import pytest
import torch

from clipkit.data import EpochSampler, HardGroups, Pairs, hard_neighbors
from clipkit.data import hard_batches as module
from clipkit.data.hard_batches import grouped


def made(images: int, captions: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    generator = torch.Generator().manual_seed(seed)
    of = np.concatenate([np.arange(images), np.random.default_rng(seed).integers(images, size=captions - images)])
    x = torch.nn.functional.normalize(torch.randn(images, 6, generator=generator, dtype=torch.float64), dim=1)
    y = torch.nn.functional.normalize(x[of] + 0.5 * torch.randn(captions, 6, generator=generator), dim=1)
    return x, y, of


def by_loops(x: torch.Tensor, y: torch.Tensor, of: np.ndarray, count: int, margin: float) -> list[list[int]]:
    """Neighbors by their definition, image by image."""
    means = [torch.stack([y[row] for row in range(len(y)) if of[row] == image]).sum(0) for image in range(len(x))]
    texts = [mean / mean.norm() for mean in means]
    found = []
    for i in range(len(x)):
        candidates = []
        for j in range(len(x)):
            one, two, own = float(x[i] @ texts[j]), float(x[j] @ texts[i]), float(x[i] @ texts[i])
            if i != j and max(one, two) <= own - margin:
                candidates.append((-(one + two) / 2, j))
        row = [j for _, j in sorted(candidates)][:count]
        found.append(row + [-1] * (count - len(row)))
    return found


@pytest.mark.parametrize("margin", [0.0, 0.1, 0.5])
def test_neighbors_are_those_of_a_loop(margin: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BAND", 7)
    x, y, of = made(20, 33)
    found = hard_neighbors(x, y, of, 5, margin).tolist()
    assert found == by_loops(x, y, of, 5, margin)
    assert hard_neighbors(x, y, of, 99, margin).shape == (20, 19)


def test_captions_of_equal_meaning_are_no_negatives() -> None:
    x, y, _ = made(8, 8)
    x[5], y[5] = x[2], y[2]
    found = hard_neighbors(x, y, np.arange(8), 7, 0.02)
    assert 5 not in found[2]
    assert 2 not in found[5]


def test_groups_are_those_of_a_loop_and_hold_each_image_once() -> None:
    generator = np.random.default_rng(1)
    order, neighbors = generator.permutation(30), generator.integers(-1, 30, size=(30, 4))
    groups: list[list[int]] = []
    for first in order.tolist():
        if any(first in group for group in groups):
            continue
        groups.append([first])
        for neighbor in neighbors[first].tolist():
            if neighbor >= 0 and len(groups[-1]) < 3 and not any(neighbor in group for group in groups):
                groups[-1].append(neighbor)
    expected = [image for index in np.random.default_rng(2).permutation(len(groups)) for image in groups[index]]
    assert grouped(order, neighbors, 3, np.random.default_rng(2)).tolist() == expected
    assert sorted(expected) == list(range(30))


def test_the_sampler_puts_hard_negatives_into_one_batch() -> None:
    pairs = Pairs("made", [Path(str(n)) for n in range(64)], [str(n) for n in range(128)], np.arange(128) // 2)
    partner = np.arange(64) ^ 1
    hard = EpochSampler(pairs, "one", 16, 3, HardGroups(partner[:, None], 2))
    plain = EpochSampler(pairs, "one", 16, 3)
    together = {}
    for name, sampler in (("hard", hard), ("plain", plain)):
        batches = [[sample.image for sample in batch] for batch in sampler.epoch(1)]
        assert sorted(image for batch in batches for image in batch) == list(range(64))
        together[name] = sum(int(partner[image]) in batch for batch in batches for image in batch)
    assert together["hard"] == 64
    assert together["plain"] < 32
    assert list(hard.epoch(0)) == list(hard.epoch(0)) != list(hard.epoch(1))
    captions = [{one.image: one.caption for batch in sampler.epoch(1) for one in batch} for sampler in (hard, plain)]
    assert captions[0] == captions[1]  # the order of the captions of an image does not change
    resumed = list(hard.slices(5, 8, slice(4, 8)))
    assert resumed == list(hard.slices(0, 8, slice(4, 8)))[5:]
