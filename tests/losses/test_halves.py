"""Sums over tiles by Triton's kernels: in its interpreter on a CPU, and on a GPU."""

import pytest

from tests.forked import ENVIRONMENT, python


@pytest.mark.parametrize("cases", [1, pytest.param(9, marks=pytest.mark.slow)])
def test_every_loss_by_the_kernels_equals_itself_in_float64(cases: int) -> None:
    pytest.importorskip("triton")
    environment = ENVIRONMENT | {"TRITON_INTERPRET": "1"}
    done = python("-m", "tests.losses.interpreted", str(cases), environment=environment)
    assert done.returncode == 0, done.stderr
