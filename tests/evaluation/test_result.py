import json
from pathlib import Path
from typing import Any

import pytest

from clipkit.errors import DataError
from clipkit.evaluation import build_result, read_result, to_json

FIGURE = {"value": 0.5, "low": 0.4, "high": 0.6, "chance": 0.1}


def test_parts_that_are_none_are_left_out_and_queries_come_last() -> None:
    result = build_result("zeroshot", "m", {"name": "d"}, {"acc1": FIGURE}, classes=[], queries={"label": [1]})
    assert list(result) == [
        "task", "model", "data", "metrics", "classes", "settings", "versions", "seconds", "examples", "queries"
    ]  # fmt: skip
    assert result["settings"]["bootstrap_draws"] == 1000


def test_written_result_is_read_back(tmp_path: Path) -> None:
    result = build_result("zeroshot", "m", {"name": "d"}, {"acc1": FIGURE})
    (tmp_path / "r.json").write_text(to_json(result))
    assert read_result(tmp_path / "r.json") == result


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": None}, "model"),
        ({"settings": None}, "settings"),
        ({"metrics": {"acc1": 0.5}}, "acc1"),
        ({"data": "d"}, "data"),
    ],
)
def test_other_json_is_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    file = tmp_path / "r.json"
    file.write_text(json.dumps({**build_result("zeroshot", "m", {"name": "d"}, {"acc1": FIGURE}), **changes}))
    with pytest.raises(DataError, match=message) as error:
        read_result(file)
    assert str(file) in str(error.value)


def test_missing_and_broken_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "list.json").write_text("[]")
    for name in ("missing.json", "broken.json", "list.json"):
        with pytest.raises(DataError, match=name):
            read_result(tmp_path / name)
