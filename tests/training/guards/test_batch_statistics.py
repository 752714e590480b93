"""Figures of a batch, against the G × G matrix."""

import pytest
import torch
import torch.nn.functional as F

from clipkit.training.guards.batch_statistics import batch_statistics


@pytest.mark.parametrize("count", [2, 7, 200])
def test_against_the_whole_matrix(count: int) -> None:
    one, two = (F.normalize(torch.randn(count, 8), dim=-1) for _ in range(2))
    two = F.normalize(one + 0.8 * two, dim=-1)
    image_ids = torch.arange(count) // 2  # each image twice
    caption_ids = torch.arange(count)
    found = batch_statistics(one, two, image_ids, caption_ids)
    matrix = one @ two.T
    off = ~torch.eye(count, dtype=torch.bool)
    assert found["positive_cosine"] == pytest.approx(matrix.diagonal().mean().item(), abs=1e-5)
    assert found["negative_cosine"] == pytest.approx(matrix[off].mean().item(), abs=1e-5)
    assert found["image_cosine"] == pytest.approx((one @ one.T)[off].mean().item(), abs=1e-5)
    assert found["text_cosine"] == pytest.approx((two @ two.T)[off].mean().item(), abs=1e-5)
    asked = min(count, 128)
    for side, scores in (("image", matrix), ("text", matrix.T)):
        right = [image_ids[row] == image_ids[scores[row].argmax()] for row in range(asked)]
        assert found[f"{side}_accuracy"] == pytest.approx(sum(map(int, right)) / asked, abs=1e-6)


def test_sides_have_their_own_names() -> None:
    unit = torch.eye(3)
    found = batch_statistics(unit, unit, torch.arange(3), torch.arange(3), sides=("a", "b"))
    assert set(found) == {"a_accuracy", "b_accuracy", "positive_cosine", "negative_cosine", "a_cosine", "b_cosine"}
    assert found["a_accuracy"] == 1.0
    assert found["a_cosine"] == 0.0
