"""Two indexes of the same images: matching rows, and agreement of their searches against plain loops."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from clipkit.errors import DataError
from clipkit.search import Index
from clipkit.search.agreement import Pair, rank_biased_overlap


def taken(index: Index, order: Sequence[int]) -> Index:
    """Return an index with some of the rows, in another order."""
    other = Index(index.path)
    other.rows = index.rows.take(pa.array(order))
    other.features = index.features[list(order)]
    other.manifest = {**index.manifest, "rows": len(order)}
    return other


def with_column(index: Index, column: str, values: Sequence[str]) -> Index:
    index.rows = index.rows.set_column(index.rows.column_names.index(column), column, pa.array(values))
    return index


@pytest.fixture
def index(index_folder: Path) -> Index:
    return Index(index_folder)


def naive_overlap(one: list[int], other: list[int], p: float = 0.9) -> float:
    """Equation 32 of Webber et al. 2010 for two lists of length k: the sum to depth k, and the last share beyond it."""
    k, total = len(one), 0.0
    for depth in range(1, k + 1):
        share = sum(entry in other[:depth] for entry in one[:depth]) / depth
        total += (1 - p) * p ** (depth - 1) * share
    return total + p**k * sum(entry in other for entry in one) / k


def test_rank_biased_overlap_is_its_definition() -> None:
    generator = np.random.default_rng(0)
    for _ in range(20):
        one, other = (generator.permutation(15)[:10].tolist() for _ in range(2))
        assert rank_biased_overlap(one, other) == pytest.approx(naive_overlap(one, other), abs=1e-11)
    assert rank_biased_overlap([1, 2, 3, 4], [1, 2, 4, 3]) > rank_biased_overlap([1, 2, 3, 4], [2, 1, 3, 4])
    assert (rank_biased_overlap([], []), rank_biased_overlap([], [1])) == (1.0, 0.0)


def test_an_index_agrees_with_itself_in_any_order(index: Index) -> None:
    order = np.random.default_rng(0).permutation(16).tolist()
    pair = Pair(index, taken(index, order))
    assert pair.common == 16
    assert [pair.row_in_other(row) for row in range(16)] == [order.index(row) for row in range(16)]
    found = pair.differences()
    assert len(found) == len(index.texts)
    assert all(entry.common == 10 and entry.overlap == 1 for entry in found)
    assert all(entry.ranks[0] == entry.ranks[1] is not None for entry in found)


def test_differences_are_those_of_the_searches(index: Index) -> None:
    other = taken(index, range(16))
    generator = np.random.default_rng(1)
    other.features = generator.normal(size=index.features.shape).astype(np.float16)
    found = Pair(index, other).differences()
    assert [entry.overlap for entry in found] == sorted(entry.overlap for entry in found)
    assert found[0].overlap < 0.9
    for entry in found:
        feature = index.text_features[index.texts.index(entry.text)].astype(np.float64)
        ranked = [
            np.argsort(-(one.features.astype(np.float64) @ feature), kind="stable").tolist() for one in (index, other)
        ]
        assert entry.overlap == pytest.approx(naive_overlap(ranked[0][:10], ranked[1][:10]), abs=1e-11)
        assert entry.common == len(set(ranked[0][:10]) & set(ranked[1][:10]))
        assert entry.text in index.rows["captions"][entry.row].as_py()
        assert entry.ranks == tuple(rows.index(entry.row) + 1 for rows in ranked)


def test_rows_match_by_content_and_else_by_location(index: Index) -> None:
    names, contents = index.rows["image"].to_pylist(), index.rows["content"].to_pylist()
    moved = with_column(taken(index, range(16)), "image", [f"elsewhere/{name}" for name in names])
    assert Pair(index, moved).common == 16
    edited = with_column(taken(index, range(16)), "content", ["0" * 64, *contents[1:]])
    assert Pair(index, edited).row_in_other(0) == 0
    swapped = with_column(taken(index, range(16)), "image", [names[1], names[0], *names[2:]])
    assert Pair(index, swapped).row_in_other(0) == 0  # content decides
    part = Pair(index, taken(index, [3, 5]))
    assert (part.common, part.row_in_other(5), part.row_in_other(4)) == (2, 1, None)


def test_copies_of_an_image_are_one_image(index: Index) -> None:
    contents = index.rows["content"].to_pylist()
    copied = with_column(taken(index, range(16)), "content", [contents[0], contents[0], *contents[2:]])
    pair = Pair(copied, index)
    assert (pair.row_in_other(0), pair.row_in_other(1)) == (0, 0)
    assert pair.agreement([0, 1, 2], [0, 2, 3]) == (pytest.approx(naive_overlap([0, 2], [0, 2])), 2)


def test_indexes_without_a_common_image_or_caption_are_one_line(index: Index) -> None:
    other = with_column(taken(index, range(16)), "image", [f"{n}.png" for n in range(16)])
    with_column(other, "content", [f"{n:064}" for n in range(16)])
    with pytest.raises(DataError, match="no image in common") as raised:
        Pair(index, other)
    assert "\n" not in str(raised.value)
    other = taken(index, range(16))
    other.texts = [f"other {text}" for text in index.texts]
    with pytest.raises(DataError, match="--queries"):
        Pair(index, other).differences()
