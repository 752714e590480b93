"""Doubtful labels against a plain loop; wrong labels that are planted come first."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from clipkit.errors import DataError
from clipkit.search import Index
from clipkit.search.curation import neighbors_of
from clipkit.search.labels import DoubtfulLabel, doubtful_labels, label_columns

COUNT = 60


def labeled(index_folder: Path, labels: Sequence[str | None], contents: Sequence[str] | None = None) -> Index:
    """Return an index of 60 images in three groups of similar images."""
    generator = np.random.default_rng(0)
    features = generator.normal(size=(3, 24))[np.arange(COUNT) % 3] + 0.5 * generator.normal(size=(COUNT, 24))
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    index = Index(index_folder)
    index.features = features.astype(np.float16)
    index.manifest = {**index.manifest, "rows": COUNT, "width": 24, "files": {}}
    index.rows = pa.table(
        {
            "image": [f"{row}.png" for row in range(COUNT)],
            "content": list(contents or map(str, range(COUNT))),
            "position": list(range(COUNT)),
            "captions": [[] for _ in range(COUNT)],
            "label": pa.array(labels, pa.string()),
            "area": [0.5] * COUNT,
        }
    )
    return index


def naive(index: Index, row: int) -> tuple[str, float, float] | None:
    """Label with the most votes, share of the image's label, share of this label; None if the label is not doubtful."""
    features = index.features.astype(np.float64)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    labels, contents = index.rows["label"].to_pylist(), index.rows["content"].to_pylist()
    if not labels[row]:
        return None
    ordered = sorted((-features[row] @ features[other], other) for other in range(COUNT))[:11]
    votes: dict[str, float] = {}
    for score, other in ordered:
        if contents[other] != contents[row] and labels[other]:
            votes[labels[other]] = votes.get(labels[other], 0) + math.exp(-score / 0.07)
    others = {label: vote for label, vote in votes.items() if label != labels[row]}
    if not others:
        return None
    best = max(others, key=lambda label: others[label])
    own, share = (votes.get(label, 0) / sum(votes.values()) for label in (labels[row], best))
    return (best, own, share) if share > own else None


def found_in(index: Index) -> dict[int, DoubtfulLabel]:
    return {entry.row: entry for entry in doubtful_labels(index, "label", neighbors_of(index))}


def test_votes_are_those_of_a_loop(index_folder: Path) -> None:
    generator = np.random.default_rng(3)
    labels = [[None, "", "a", "b", "c", "d"][n] for n in generator.integers(0, 6, COUNT)]
    contents = [str(n) for n in generator.integers(0, 40, COUNT)]
    index = labeled(index_folder, labels, contents)
    found = found_in(index)
    assert len(found) > 10
    for row in range(COUNT):
        expected = naive(index, row)
        assert (row in found) == (expected is not None)
        if expected is not None:
            entry = found[row]
            assert (entry.suggested, entry.label) == (expected[0], labels[row])
            assert (entry.share, entry.suggested_share) == pytest.approx(expected[1:], abs=1e-5)
            assert labels[entry.similar_row] == entry.suggested
    doubts = [entry.doubt for entry in found.values()]
    assert doubts == sorted(doubts, reverse=True)


def test_planted_wrong_labels_come_first(index_folder: Path) -> None:
    labels = [["cat", "dog", "bird"][row % 3] for row in range(COUNT)]
    wrong = {7: "cat", 30: "bird", 44: "dog"}
    planted = [wrong.get(row, label) for row, label in enumerate(labels)]
    found = found_in(labeled(index_folder, planted))
    assert set(found) == {row for row, label in wrong.items() if labels[row] != label}
    assert all(entry.suggested == labels[row] for row, entry in found.items())


def test_copies_do_not_vote_for_each_other(index_folder: Path) -> None:
    labels = [["cat", "dog", "bird"][row % 3] for row in range(COUNT)]
    labels[6] = labels[9] = "dog"
    contents = [str(row) for row in range(COUNT)]
    contents[9] = contents[6]
    found = found_in(labeled(index_folder, labels, contents))
    assert (found[6].suggested, found[6].share, found[9].share) == ("cat", 0, 0)


def test_columns_that_may_hold_labels(index_folder: Path) -> None:
    index = labeled(index_folder, ["a", "b"] * 30)
    assert label_columns(index.rows) == ["label"]
    assert label_columns(Index(index_folder).rows) == ["year", "color"]
    neighbors = neighbors_of(index)
    with pytest.raises(DataError, match="area"):
        doubtful_labels(index, "area", neighbors)
    with pytest.raises(DataError, match="1 different"):
        doubtful_labels(labeled(index_folder, ["a"] * COUNT), "label", neighbors)
