"""The examples of docs/python.md run one after the other as they are written."""

import re
import shutil
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pytest

from tests.conftest import read_lines

PAGE = Path(__file__).parents[1] / "docs" / "python.md"


def examples() -> list[tuple[str, str]]:
    """Return the code blocks of the page, each with the heading above it."""
    sections = re.split(r"^#+ ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    found = [(text.partition("\n")[0], re.findall(r"```python\n(.*?)```", text, re.DOTALL)) for text in sections]
    return [(heading, block) for heading, blocks in found for block in blocks]


def test_there_are_ten_short_examples_that_compile() -> None:
    found = examples()
    assert len(found) >= 10
    for heading, block in found:
        compile(block, heading, "exec")
        assert len(block.splitlines()) <= 30, heading


@pytest.mark.slow
def test_the_examples_run_as_written(
    tiny_clip: Path, shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mpl.use("Agg")
    shutil.copytree(tiny_clip, tmp_path / "my-clip")
    lines = (shapes / "captions.csv").read_text().splitlines()
    # One caption per image, and paths from the working directory.
    rows = [lines[0], *(f"{shapes}/{line}" for line in lines[1::2])]
    (tmp_path / "photos.csv").write_text("\n".join(rows) + "\n")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "page"}
    monkeypatch.setitem(sys.modules, "page", type(sys)("page"))
    for heading, block in examples():
        exec(compile(block, heading, "exec"), names)
    runs = {folder.name for folder in (tmp_path / "runs").iterdir()}
    assert runs == {"files", "data", "model", "loss", "objective", "callback", "notebook", "tracked"}
    assert read_lines(tmp_path / "runs/data/metrics.jsonl") == read_lines(tmp_path / "runs/files/metrics.jsonl")
    files, loss = (read_lines(tmp_path / f"runs/{name}/metrics.jsonl") for name in ("files", "loss"))
    assert loss[0]["loss"] == pytest.approx(files[0]["loss"], rel=1e-5)
    assert {"temperature", "rank"} <= {*names["run"].metrics.columns, *names["worst"].columns}
    assert (tmp_path / "recall.png").stat().st_size > 10_000
