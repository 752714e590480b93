"""Sums of gradients in buckets: their order is the same on all processes, also if one of them fails."""

from pathlib import Path

import pytest
import torch
from torch import nn

from clipkit.processes import Processes
from clipkit.training import gradient_sum
from clipkit.training.gradient_sum import GradientSum
from tests.forked import together
from tests.training import gradient_faults
from tests.training.test_exactness import assert_agree, in_one_graph


class Doubling(Processes):
    """A group of two processes, of which the other has the same gradients; it records the sums that were started."""

    def __init__(self) -> None:
        super().__init__(None)
        self.count = 2
        self.started: list[list[float]] = []

    def start_sum(self, value: torch.Tensor):  # type: ignore[no-untyped-def]
        self.started.append(value.tolist())
        return lambda: value.mul_(2)


def four(monkeypatch: pytest.MonkeyPatch) -> list[nn.Parameter]:
    """Return four parameters of two values; two of them fill a bucket."""
    monkeypatch.setattr(gradient_sum, "_BUCKET", 4)
    return [nn.Parameter(torch.full((2,), float(index))) for index in range(4)]


def test_a_bucket_starts_when_it_and_those_before_it_are_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b, c, d = four(monkeypatch)
    group = Doubling()
    sums = GradientSum([[a, b], [c, d]], group)
    sums.completes(1)
    (c.sum() * 3 + d.sum() * 4).backward()
    assert group.started == []  # the first bucket is not complete
    sums.completes(0)
    (a.sum() * 1).backward()
    assert group.started == []
    (b.sum() * 2).backward()
    assert group.started == [[1, 1, 2, 2], [3, 3, 4, 4]]
    sums.finish(sums.flush())
    assert [p.grad.tolist() for p in (a, b, c, d) if p.grad is not None] == [[2, 2], [4, 4], [6, 6], [8, 8]]


def test_only_the_last_backward_pass_completes_a_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b, *_ = four(monkeypatch)
    group = Doubling()
    sums = GradientSum([[a, b]], group)
    (a.sum() + b.sum()).backward()
    assert group.started == []
    sums.completes(0)
    (a.sum() + b.sum()).backward()
    assert group.started == [[2, 2, 2, 2]]
    sums.finish(sums.flush())


def test_missing_gradients_are_summed_as_zeros_and_stay_missing_if_no_process_has_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    a, b, c, d = four(monkeypatch)
    d.requires_grad_(False)
    group = Doubling()
    sums = GradientSum([[a, b, c, d]], group)
    a.sum().backward()
    present = sums.flush()
    assert present == [True, False, False]
    assert group.started == [[1, 1, 0, 0], [0, 0]]
    sums.finish([True, False, True])  # the other process has a gradient of c
    assert b.grad is None
    assert c.grad is not None
    assert c.grad.tolist() == [0, 0]


@pytest.mark.parametrize("processes", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_a_fault_changes_neither_order_nor_gradients(processes: int, tmp_path: Path) -> None:
    together(processes, gradient_faults.__file__, str(tmp_path))
    every = [torch.load(tmp_path / f"{index}.pt", weights_only=False) for index in range(processes)]
    assert [count for count, _ in every] == [processes] * processes
    expected = in_one_graph("infonce", gradient_faults.PAIRS, torch.float64)
    for fault in gradient_faults.FAULTS:
        for micro in (3, 100):
            found = [each[(fault, micro)] for _, each in every]
            for gradients, calls, abandoned in found:
                assert_agree(gradients, expected, 1e-10)
                assert calls == found[0][1], fault
                assert abandoned == (fault == "stop"), fault
            undisturbed = len(every[0][1][("none", micro)][1])
            assert (len(found[0][1]) > undisturbed) == (fault != "none")
            assert sum(call.startswith("all_reduce") for call in found[0][1]) > 6
