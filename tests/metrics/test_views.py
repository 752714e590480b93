"""Alignment and uniformity against naive loops."""

import math

import pytest
import torch
import torch.nn.functional as F

from clipkit.metrics import alignment, uniformity, views


def test_equals_naive_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(views, "_ROWS", 5)
    x, y = (F.normalize(torch.randn(13, 6, dtype=torch.float64), dim=-1) for _ in range(2))
    aligned = [
        sum((a - b) ** 2 for a, b in zip(p, q, strict=True)) for p, q in zip(x.tolist(), y.tolist(), strict=True)
    ]
    torch.testing.assert_close(alignment(x, y).double(), torch.tensor(aligned, dtype=torch.float64), rtol=1e-5, atol=0)
    total = sum(
        math.exp(-2 * sum((a - b) ** 2 for a, b in zip(p, q, strict=True)))
        for i, p in enumerate(x.tolist())
        for j, q in enumerate(x.tolist())
        if i != j
    )
    assert uniformity(x) == pytest.approx(math.log(total / (13 * 12)), rel=1e-5)


def test_equal_features_have_the_largest_uniformity_and_no_misalignment() -> None:
    x = F.normalize(torch.randn(1, 6), dim=-1).expand(9, 6)
    assert uniformity(x) == pytest.approx(0, abs=1e-5)
    assert alignment(x, x).abs().max() < 1e-6
