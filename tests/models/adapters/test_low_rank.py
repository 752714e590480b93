"""The weights that adapters give, against loops in float64."""

import math

import pytest
import torch
from torch import Tensor

from clipkit.models.adapters.low_rank import Adapter, LowRank, adapted_weight
from clipkit.recipe import LoraRecipe

ROWS, COLUMNS, RANK = 6, 5, 2


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


WEIGHT, MAGNITUDE = drawn(ROWS, COLUMNS), drawn(ROWS, seed=3)
A, B = drawn(RANK, COLUMNS, seed=1), drawn(ROWS, RANK, seed=2)


def lora_by_loops(scaling: float) -> Tensor:
    found = torch.empty_like(WEIGHT)
    for i in range(ROWS):
        for j in range(COLUMNS):
            found[i, j] = WEIGHT[i, j] + scaling * sum(float(B[i, r] * A[r, j]) for r in range(RANK))
    return found


def dora_by_loops(scaling: float, magnitude: Tensor) -> Tensor:
    changed = lora_by_loops(scaling)
    found = torch.empty_like(WEIGHT)
    for i in range(ROWS):
        norm = math.sqrt(sum(float(changed[i, j]) ** 2 for j in range(COLUMNS)))
        for j in range(COLUMNS):
            found[i, j] = float(magnitude[i]) * float(changed[i, j]) / norm
    return found


def low_rank(with_magnitude: bool) -> LowRank:
    adapter = LowRank(WEIGHT, LoraRecipe(rank=RANK, alpha=3), with_magnitude)
    with torch.no_grad():
        adapter.lora_A.copy_(A)
        adapter.lora_B.copy_(B)
        if adapter.magnitude is not None:
            adapter.magnitude.copy_(MAGNITUDE)
    return adapter


def test_lora_equals_loops() -> None:
    torch.testing.assert_close(adapted_weight(WEIGHT, A, B, 1.5), lora_by_loops(1.5), rtol=0, atol=1e-12)
    torch.testing.assert_close(low_rank(False)(WEIGHT).detach(), lora_by_loops(3 / RANK), rtol=0, atol=1e-12)


def test_dora_equals_loops() -> None:
    expected = dora_by_loops(1.5, MAGNITUDE)
    torch.testing.assert_close(adapted_weight(WEIGHT, A, B, 1.5, MAGNITUDE), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(low_rank(True)(WEIGHT).detach(), expected, rtol=0, atol=1e-12)


def test_the_norm_of_dora_has_no_gradient() -> None:
    """Section 4.3 of the paper: the gradient of V is that of the result times m / ‖V‖."""
    adapter, outer = low_rank(True), drawn(ROWS, COLUMNS, seed=4)
    (adapter(WEIGHT) * outer).sum().backward()
    changed = lora_by_loops(1.5)
    scaled = outer * (MAGNITUDE / changed.norm(dim=1))[:, None]
    torch.testing.assert_close(adapter.lora_B.grad, 1.5 * scaled @ A.T, rtol=0, atol=1e-12)
    assert adapter.magnitude is not None
    unit = changed / changed.norm(dim=1, keepdim=True)
    torch.testing.assert_close(adapter.magnitude.grad, (outer * unit).sum(1), rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("with_magnitude", [False, True])
def test_nothing_changes_at_the_start(with_magnitude: bool, dtype: torch.dtype) -> None:
    weight = WEIGHT.to(dtype).clone()
    weight[2] = 0  # a row without a direction
    assert torch.equal(LowRank(weight, LoraRecipe(), with_magnitude)(weight), weight)


def test_slices_are_adapted_separately() -> None:
    weight = drawn(12, COLUMNS)
    adapter = Adapter(weight, ("q", "k", "v"), ("q", "v"), LoraRecipe(rank=RANK), True)
    with torch.no_grad():
        for number, part in enumerate(adapter.low_ranks):
            part.lora_B.copy_(drawn(4, RANK, seed=5 + number))
    found = adapter(weight).detach()
    assert torch.equal(found[4:8], weight[4:8])
    for part, rows in zip(adapter.low_ranks, (slice(0, 4), slice(8, 12)), strict=True):
        torch.testing.assert_close(found[rows], part(weight[rows]).detach(), rtol=0, atol=0)
        assert not torch.equal(found[rows], weight[rows])


@pytest.mark.parametrize("alpha", [0.0, 0.25, 0.7, 1.0])
@pytest.mark.parametrize("with_magnitude", [False, True])
def test_interpolation_is_that_of_the_merged_weights(with_magnitude: bool, alpha: float) -> None:
    adapter = low_rank(with_magnitude)
    expected = (1 - alpha) * WEIGHT + alpha * adapter(WEIGHT).detach()
    adapter.interpolate(WEIGHT, alpha)
    torch.testing.assert_close(adapter(WEIGHT).detach(), expected, rtol=0, atol=1e-12)


def test_dropout_drops_input_features_in_training_only() -> None:
    adapter = low_rank(False)
    adapter.dropout = 0.5
    torch.manual_seed(0)
    delta = adapter.train()(WEIGHT).detach() - WEIGHT
    full = lora_by_loops(1.5) - WEIGHT
    kept = ~(delta == 0).all(dim=0)
    assert 0 < kept.sum() < COLUMNS
    torch.testing.assert_close(delta[:, kept], 2 * full[:, kept])
    torch.testing.assert_close(adapter.eval()(WEIGHT).detach(), lora_by_loops(1.5), rtol=0, atol=1e-12)
