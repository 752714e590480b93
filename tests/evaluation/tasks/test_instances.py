"""Instance retrieval, compared with a loop."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import clipkit
from clipkit.errors import DataError
from clipkit.evaluation.tasks.instances import instance_ranks
from tests.conftest import write_csv


def test_ranks_and_precision_are_those_of_a_loop() -> None:
    features = F.normalize(torch.randn(30, 4, dtype=torch.float64), dim=-1)
    labels = torch.randint(0, 6, (30,))
    labels[0] = 6  # no other image has it
    ranks, precision = instance_ranks(features, labels)
    for query in range(30):
        others = [k for k in range(30) if k != query]
        order = sorted(others, key=lambda k: -float(features[query] @ features[k]))
        right = [bool(labels[k] == labels[query]) for k in order]
        total = sum(right)
        if not total:
            assert (int(ranks[query]), float(precision[query])) == (0, 0)
            continue
        assert int(ranks[query]) == right.index(True) + 1
        at = [sum(right[:k]) / k for k in range(1, total + 1) if right[k - 1]]
        assert float(precision[query]) == pytest.approx(sum(at) / total, abs=1e-6)


def test_a_dataset_is_measured_and_compared(tiny_clip: Path, shapes: Path, tmp_path: Path) -> None:
    model = clipkit.load(str(tiny_clip))
    result = clipkit.evaluate.instances(model, shapes / "classes.csv", cache=False)
    metrics = result["metrics"]
    assert set(metrics) == {"instance_recall@1", "instance_recall@10", "instance_map@r"}
    # Three of 15 others are right; for ten of them, all must be among the other five.
    assert metrics["instance_recall@1"]["chance"] == pytest.approx(3 / 15)
    assert metrics["instance_recall@10"]["chance"] == pytest.approx(1 - (5 * 4 * 3) / (15 * 14 * 13))
    same = clipkit.evaluate.compare(result, result)
    assert same["metrics"]["instance_map@r"]["difference"] == 0
    alone = write_csv(tmp_path / "alone.csv", ["image", "label"], [[str(shapes / "images/00.png"), "a"]])
    with pytest.raises(DataError, match="same label"):
        clipkit.evaluate.instances(model, alone)
