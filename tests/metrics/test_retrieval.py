from importlib import import_module

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from clipkit import metrics
from clipkit.metrics import retrieval_ranks


def ranks_by_sorting(image: Tensor, text: Tensor, image_of_text: Tensor) -> tuple[list[int], list[int]]:
    """Sort all scores stably, then look the targets up."""
    image_ranks, text_ranks = [], []
    for t in range(len(text)):
        scores = (text[t] @ image.T).tolist()
        order = sorted(range(len(image)), key=lambda i: (-scores[i], i))
        image_ranks.append(1 + order.index(int(image_of_text[t])))
    for i in range(len(image)):
        scores = (image[i] @ text.T).tolist()
        order = sorted(range(len(text)), key=lambda t: (-scores[t], t))
        own = [rank for rank, t in enumerate(order, 1) if image_of_text[t] == i]
        text_ranks.append(min(own, default=0))
    return image_ranks, text_ranks


@given(images=st.integers(1, 8), texts=st.integers(1, 15), seed=st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_ranks_equal_a_sort_also_with_ties_and_uneven_captions(images: int, texts: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    # Whole numbers: many ties.
    image = torch.randint(-1, 2, (images, 3), generator=generator).float()
    text = torch.randint(-1, 2, (texts, 3), generator=generator).float()
    image_of_text = torch.randint(0, images, (texts,), generator=generator)
    image_rank, text_rank = retrieval_ranks(image, text, image_of_text)
    assert (image_rank.tolist(), text_rank.tolist()) == ranks_by_sorting(image, text, image_of_text)


def test_tiles_do_not_change_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    image, text = torch.randn(13, 6), torch.randn(29, 6)
    image_of_text = torch.arange(29) % 13
    whole = retrieval_ranks(image, text, image_of_text)
    # By its name: the package has a function that is called like this module.
    monkeypatch.setattr(import_module("clipkit.metrics.retrieval"), "_TILE", 40)
    torch.testing.assert_close(retrieval_ranks(image, text, image_of_text), whole)


def test_recalls_equal_clip_benchmark() -> None:
    zeroshot_retrieval = pytest.importorskip("clip_benchmark.metrics.zeroshot_retrieval")
    image = torch.nn.functional.normalize(torch.randn(20, 8), dim=-1)
    counts = torch.randint(1, 6, (20,))
    image_of_text = torch.arange(20).repeat_interleave(counts)
    text = torch.nn.functional.normalize(torch.randn(len(image_of_text), 8), dim=-1)
    scores = text @ image.T
    positive = torch.zeros_like(scores, dtype=torch.bool)
    positive[torch.arange(len(text)), image_of_text] = True
    ours = metrics.retrieval(image, text, image_of_text)
    for k in (1, 5, 10):
        theirs = zeroshot_retrieval.recall_at_k(scores, positive, k)
        assert ours[f"image_retrieval_recall@{k}"] == pytest.approx((theirs > 0).float().mean().item(), abs=1e-6)
        theirs = zeroshot_retrieval.recall_at_k(scores.T, positive.T, k)
        assert ours[f"text_retrieval_recall@{k}"] == pytest.approx((theirs > 0).float().mean().item(), abs=1e-6)


def test_chance_is_what_random_scores_give() -> None:
    generator = torch.Generator().manual_seed(0)
    image_of_text = torch.tensor([0, 0, 0, 1, 2, 2, 3, 4, 5, 5])
    chance = metrics.retrieval_chance(6, image_of_text, ks=(1, 3))
    found = dict.fromkeys(chance, 0.0)
    repetitions = 1500
    for _ in range(repetitions):
        image, text = torch.randn(6, 20, generator=generator), torch.randn(10, 20, generator=generator)
        for name, value in metrics.retrieval(image, text, image_of_text, ks=(1, 3)).items():
            found[name] += value / repetitions
    assert found == pytest.approx(chance, abs=0.02)


def test_mean_recall_is_the_mean_of_all_six() -> None:
    figures = metrics.retrieval(torch.randn(30, 4), torch.randn(30, 4), torch.arange(30))
    six = [value for name, value in figures.items() if name != "mean_recall"]
    assert len(six) == 6
    assert figures["mean_recall"] == pytest.approx(sum(six) / 6)
