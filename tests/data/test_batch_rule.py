"""Rows of a batch with the caption or image of another row."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from clipkit.data.checks.batch import expected_false_negatives, false_negatives
from clipkit.data.checks.checked_data import CheckedData
from clipkit.data.checks.duplicates import Duplicates
from clipkit.data.pairs import Pairs
from clipkit.data.sequences import Files, Strings


@pytest.mark.parametrize("batch_size", [2, 7, 16, 61, 512])
@pytest.mark.parametrize("captions", [1, 2, 61])
def test_no_more_rows_are_counted_than_a_batch_has(captions: int, batch_size: int) -> None:
    texts = [f"class {number % captions}" for number in range(61)]
    pairs = Pairs(
        "x",
        Files.of(Path(), pa.array([f"{number}.png" for number in range(61)], pa.large_string())),
        Strings.of(texts),
        np.arange(61),
    )
    same = Duplicates(np.zeros(61, np.int64), np.zeros((0, 2), np.int64))
    size, draws, rng = min(batch_size, 61), 300, np.random.default_rng(0)
    batches = [[texts[image] for image in rng.choice(61, size, replace=False)] for _ in range(draws)]
    rows = np.mean([sum(batch.count(text) > 1 for text in batch) for batch in batches])
    alone = expected_false_negatives(pairs, None, batch_size)["rows"]
    assert alone == pytest.approx(rows, rel=0.1, abs=0.05)
    assert alone <= size
    assert expected_false_negatives(pairs, same, batch_size)["rows"] == pytest.approx(size)
    data = CheckedData(pairs, batch=expected_false_negatives(pairs, same, batch_size))
    finding = false_negatives(data)
    assert finding is not None
    assert finding.count == size
    assert f"a batch of {size} rows, about {size} (100 %)" in finding.message
