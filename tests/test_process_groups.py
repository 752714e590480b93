"""Groups of processes: agreements use a CPU group, and threads of gloo free no tensor."""

import json
from pathlib import Path

import pytest

from tests import agreements, freed_tensors
from tests.forked import together


@pytest.mark.parametrize("processes", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_agreements_use_the_cpu_group(tmp_path: Path, processes: int) -> None:
    together(processes, agreements.__file__, str(tmp_path))
    for index in range(processes):
        found = json.loads((tmp_path / f"{index}.json").read_text())
        assert found["smallest"] == 3
        assert found["any"] == [False, True]
        assert found["of_main"] == 7
        assert found["objects"] == [*range(processes)]
        assert len(found["used"]) >= 4
        assert all(found["used"])
        assert found["group"]  # one group, whatever the number of objects


def test_threads_of_gloo_free_no_tensor_and_own_none_during_a_fork(tmp_path: Path) -> None:
    """A thread of gloo that enters Python to drop a tensor blocks a loader worker that is forked at this moment."""
    together(2, freed_tensors.__file__, str(tmp_path))
    for index in range(2):
        by_main, by_others, during_forks = map(int, (tmp_path / f"{index}.txt").read_text().split())
        assert by_main > 800
        assert by_others == 0
        assert during_forks == 0
