import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from clipkit.metrics import first_columns, retrieval_ranks, similarity, top_answers
from clipkit.metrics import ranks as module
from clipkit.metrics.order import of_keys, order_keys


def ranks_by_sorting(image: Tensor, text: Tensor, pairs: list[tuple[int, int]]) -> tuple[list[int], list[int]]:
    """Ranks by a stable sort of all scores, in both directions."""
    among_images, among_texts = [], []
    for i, t in pairs:
        scores = (text[t] @ image.T).tolist()
        among_images.append(1 + sorted(range(len(image)), key=lambda c: (-scores[c], c)).index(i))
        scores = (image[i] @ text.T).tolist()
        among_texts.append(1 + sorted(range(len(text)), key=lambda c: (-scores[c], c)).index(t))
    return among_images, among_texts


def integer_features(rows: int, generator: torch.Generator) -> Tensor:
    """Features whose scores have many ties."""
    return torch.randint(-1, 2, (rows, 3), generator=generator).float()


@given(
    images=st.integers(1, 9), texts=st.integers(1, 15), side=st.sampled_from([1, 2, 4, 1024]), seed=st.integers(0, 999)
)
@settings(max_examples=120, deadline=None)
def test_ranks_equal_a_stable_sort_for_any_tile_size(images: int, texts: int, side: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    image, text = integer_features(images, generator), integer_features(texts, generator)
    image_of_text = torch.randint(0, images, (texts,), generator=generator)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_SIDE", side)
        ranks = retrieval_ranks(image, text, image_of_text)
    pairs = list(zip(image_of_text.tolist(), range(texts), strict=True))
    assert (ranks.among_images.tolist(), ranks.among_texts.tolist()) == ranks_by_sorting(image, text, pairs)
    assert ranks.of_texts.tolist() == ranks.among_images.tolist()
    for i in range(images):
        ranks_of_query = [
            rank for rank, (image_row, _) in zip(ranks.among_texts.tolist(), pairs, strict=True) if image_row == i
        ]
        assert ranks.of_images[i] == min(ranks_of_query, default=0)


@given(
    side=st.sampled_from([1, 3, 1024]),
    layers=st.sampled_from([0, 2, 32]),
    share=st.floats(0.05, 0.9),
    seed=st.integers(0, 999),
)
@settings(max_examples=90, deadline=None)
def test_ranks_of_texts_with_several_images_or_none(side: int, layers: int, share: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    image, text = integer_features(7, generator), integer_features(10, generator)
    pairs = (torch.rand(7, 10, generator=generator) < share).nonzero()
    if not len(pairs):
        return
    shuffled = pairs[torch.randperm(len(pairs), generator=generator)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_SIDE", side)
        patch.setattr(module, "_LAYERS", layers)
        ranks = retrieval_ranks(image, text, torch.cat([shuffled, shuffled[:1]]))  # one pair given twice
    expected = ranks_by_sorting(image, text, [(int(i), int(t)) for i, t in ranks.pairs])
    assert (ranks.among_images.tolist(), ranks.among_texts.tolist()) == expected
    for t in range(10):
        ranks_of_query = ranks.among_images[ranks.pairs[:, 1] == t].tolist()
        assert ranks.of_texts[t] == min(ranks_of_query, default=0)


@pytest.mark.parametrize(("rows", "width"), [(1500, 64), (1025, 512), (2055, 512)])
def test_identical_features_tie_exactly_across_tiles(rows: int, width: int) -> None:
    """All scores come from products of one shape, so equal features have bitwise equal scores."""
    image = torch.nn.functional.normalize(torch.randn(rows, width), dim=-1)
    image[rows - 20] = image[rows - 1] = image[3]
    text = torch.nn.functional.normalize(image + 0.01 * torch.randn(rows, width), dim=-1)
    text[rows - 20] = text[rows - 1] = text[3]
    ranks = retrieval_ranks(image, text, torch.arange(rows))
    assert ranks.of_texts[[3, rows - 20, rows - 1]].tolist() == [1, 2, 3]
    assert ranks.of_images[[3, rows - 20, rows - 1]].tolist() == [1, 2, 3]
    scores = similarity(image, text)
    assert torch.equal(scores[:, 3], scores[:, rows - 20])
    assert torch.equal(scores[:, 3], scores[:, rows - 1])
    torch.testing.assert_close(scores, image @ text.T)


@given(seed=st.integers(0, 999), count=st.integers(1, 8), side=st.sampled_from([2, 3, 1024]))
@settings(max_examples=60, deadline=None)
def test_top_answers_equal_a_stable_sort(seed: int, count: int, side: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    image, text = integer_features(7, generator), integer_features(5, generator)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_SIDE", side)
        (text_scores, images), (image_scores, texts) = top_answers(image, text, count)
    scores = text @ image.T
    assert images.tolist() == scores.argsort(dim=1, descending=True, stable=True)[:, :count].tolist()
    assert texts.tolist() == scores.T.argsort(dim=1, descending=True, stable=True)[:, :count].tolist()
    assert text_scores.tolist() == scores.gather(1, images).tolist()
    assert image_scores.tolist() == scores.T.gather(1, texts).tolist()


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=9), st.integers(0, 10**9))
@settings(max_examples=80, deadline=None)
def test_keys_preserve_order_and_scores(values: list[float], first: int) -> None:
    scores = torch.tensor([values])
    keys = order_keys(scores, first)
    restored, index = of_keys(keys)
    assert restored.tolist() == (scores + 0.0).tolist()
    assert index.tolist() == [list(range(first, first + len(values)))]
    expected = sorted(range(len(values)), key=lambda index: (-values[index], index))
    assert keys[0].argsort(descending=True).tolist() == expected
    assert first_columns(scores, 3)[1][0].tolist() == expected[:3]


def test_counts_of_all_parts_add_up_to_the_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SIDE", 4)
    image, text, image_of_text = torch.randn(13, 6), torch.randn(29, 6), torch.arange(29) % 13
    whole = retrieval_ranks(image, text, image_of_text)
    counted: list[list[Tensor]] = [[], [], []]
    for index in range(3):
        retrieval_ranks(
            image, text, image_of_text, part=(index, 3), summed=lambda c, i=index: counted[i].append(c) or c
        )
    for direction, ranks in enumerate((whole.among_images, whole.among_texts)):
        assert torch.equal(1 + sum(counts[direction] for counts in counted), ranks)


def test_half_precision_is_scored_in_float32_and_float64_in_float64() -> None:
    image, text = torch.randn(40, 8), torch.randn(40, 8)
    halves = retrieval_ranks(image.bfloat16(), text.bfloat16(), torch.arange(40))
    whole = retrieval_ranks(image.bfloat16().float(), text.bfloat16().float(), torch.arange(40))
    assert halves.of_texts.tolist() == whole.of_texts.tolist()
    # The scores differ by less than float32 can represent.
    close = torch.tensor([[1.0], [1.0 + 1e-12]], dtype=torch.float64)
    assert retrieval_ranks(close, torch.ones(1, 1, dtype=torch.float64), torch.tensor([0])).of_texts.tolist() == [2]


def test_progress_counts_every_score_once() -> None:
    counted: list[int] = []
    retrieval_ranks(torch.randn(1030, 4), torch.randn(2050, 4), torch.arange(2050) % 1030, on_scores=counted.append)
    assert sum(counted) == 1030 * 2050
