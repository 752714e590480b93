"""The notebook of docs/notebooks runs from the first cell to the last, and is stored without output."""

import json
import shutil
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pytest

NOTEBOOK = Path(__file__).parents[1] / "docs" / "notebooks" / "fine_tune_your_images.ipynb"
CELLS = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
CODE = ["".join(cell["source"]) for cell in CELLS if cell["cell_type"] == "code"]


def test_it_is_stored_without_output() -> None:
    assert len(CODE) >= 8
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in CELLS if cell["cell_type"] == "code")
    assert len({cell["id"] for cell in CELLS}) == len(CELLS)


@pytest.mark.slow
def test_it_runs(tiny_clip: Path, shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mpl.use("Agg")
    shutil.copytree(shapes, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(CODE[0], names)
    assert set(names) >= {"MODEL", "TRAIN", "TEST", "BATCH_SIZE"}
    names |= {"MODEL": str(tiny_clip), "TRAIN": "captions.csv", "TEST": "captions.csv", "BATCH_SIZE": 4}
    for number, code in enumerate(CODE[1:], 1):
        exec(compile(code, f"cell {number}", "exec"), names)
    assert any(finding.name == "leaked_images" for finding in names["report"].findings)
    assert names["result"].settings["trained_on"]["images"] == 14
    assert names["difference"]["low"] <= names["difference"]["difference"] <= names["difference"]["high"]
    assert (tmp_path / "exported" / "config.json").is_file()
