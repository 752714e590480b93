import pytest
import torch

from clipkit.losses.positives import _ranks, _sums


@pytest.mark.parametrize("ids", [[5], [3, 3], [2, -7, 2, 9, -7, 2], [2**62, -(2**62), 0, 2**62]])
def test_ranks_are_those_of_the_distinct_ids(ids: list[int]) -> None:
    given = torch.tensor(ids)
    assert torch.equal(_ranks(given), given.unique(return_inverse=True)[1])
    assert _ranks(given[:0]).numel() == 0


@pytest.mark.gpu
def test_sums_on_a_gpu_have_the_same_bits_twice_and_those_of_the_definition() -> None:
    values, group = torch.randn(5000, 64, device="cuda"), torch.randint(0, 40, (5000,), device="cuda")
    assert torch.equal(_sums(values, group), _sums(values, group))
    expected = torch.zeros(5000, 64, dtype=torch.float64).index_add(0, group.cpu(), values.double().cpu())
    torch.testing.assert_close(_sums(values, group).double().cpu(), expected, rtol=1e-4, atol=1e-4)
