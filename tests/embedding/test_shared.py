"""Work shared over processes; several processes are simulated by threads that exchange rows."""

import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from clipkit.embedding.shared import encode_shared, evaluating, scan_shared
from clipkit.errors import DataError, UserError
from clipkit.processes import Processes


class Threads(Processes):
    """One process of a group, as a thread; collectives exchange Python objects."""

    def __init__(self, index: int, count: int, exchange: Callable[[int, Any], list[Any]]) -> None:
        super().__init__(None)
        self.index, self.count, self.exchange = index, count, exchange

    def gather(self, rows: torch.Tensor, total: int) -> torch.Tensor:
        assert len(rows) == len(range(total)[self.share(total)])
        return torch.cat(self.exchange(self.index, rows))

    def smallest(self, value: int) -> int:
        return min(self.exchange(self.index, value))

    def gather_objects(self, value: Any) -> list[Any]:
        return self.exchange(self.index, value)

    def raise_together(self, failure: UserError | None) -> None:
        failures = [one for one in self.exchange(self.index, failure) if one is not None]
        if failures:
            raise failures[0]


def on_threads(count: int, work: Callable[[Processes], Any]) -> list[Any]:
    """Return what each process of a group returns or raises."""
    values: list[Any] = [None] * count
    outcomes: list[Any] = [None] * count
    barrier = threading.Barrier(count, timeout=10)

    def exchange(index: int, value: Any) -> list[Any]:
        values[index] = value
        barrier.wait()
        everything = list(values)
        barrier.wait()
        return everything

    def run(index: int) -> None:
        try:
            outcomes[index] = work(Threads(index, count, exchange))
        except UserError as error:
            outcomes[index] = error

    threads = [threading.Thread(target=run, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes


def encode(items: Sequence[int]) -> torch.Tensor:
    return torch.tensor([[item, 2 * item] for item in items], dtype=torch.float32)


@pytest.mark.parametrize(("items", "count"), [(5, 2), (7, 3), (1, 3)])
def test_every_process_gets_all_rows_in_order(items: int, count: int) -> None:
    expected = encode(range(items))
    assert torch.equal(encode_shared(range(items), encode, Processes.alone()), expected)
    for rows in on_threads(count, lambda processes: encode_shared(range(items), encode, processes)):
        assert torch.equal(rows, expected)


def test_scan_results_keep_their_positions_among_all_items() -> None:
    def odd(items: Sequence[int]) -> dict[int, str]:
        return {position: str(item) for position, item in enumerate(items) if item % 2}

    expected = {position: str(position) for position in range(10) if position % 2}
    assert scan_shared(range(10), odd, Processes.alone()) == expected
    assert on_threads(3, lambda processes: scan_shared(range(10), odd, processes)) == [expected] * 3


def test_an_error_on_one_process_is_raised_on_all() -> None:
    def fail(items: Sequence[int]) -> torch.Tensor:
        if 4 in items:
            raise DataError("item 4 is broken")
        return encode(items)

    outcomes = on_threads(2, lambda processes: encode_shared(range(5), fail, processes))
    assert [str(error) for error in outcomes] == ["item 4 is broken"] * 2


def test_modules_return_to_their_mode_after_evaluation() -> None:
    model = torch.nn.Sequential(torch.nn.Dropout(), torch.nn.Dropout())
    model[1].eval()
    with evaluating(model):
        assert not any(module.training for module in model.modules())
    assert [module.training for module in model.modules()] == [True, True, False]
