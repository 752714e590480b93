"""Agreements between processes use a CPU group."""

import json
from pathlib import Path

from tests import agreements
from tests.forked import together


def test_agreements_use_the_cpu_group(tmp_path: Path) -> None:
    together(2, agreements.__file__, str(tmp_path))
    for index in range(2):
        found = json.loads((tmp_path / f"{index}.json").read_text())
        assert found["smallest"] == 3
        assert found["any"] == [False, True]
        assert found["of_main"] == 7
        assert found["objects"] == [0, 1]
        assert len(found["used"]) >= 4
        assert all(found["used"])
        assert found["group"]  # one group, whatever the number of objects
