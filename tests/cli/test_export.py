"""`clipkit export`, as it is typed."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest

from clipkit.export_formats import INDEX_FORMATS
from clipkit.search import embed
from tests.cli.conftest import type_
from tests.models.families import build


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("clip", tmp_path_factory.mktemp("model") / "clip")


def test_export_prints_the_comparison_and_working_code(
    model: Path, shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "there"
    type_(monkeypatch, "export", model, "--to", "open_clip", "--out", out, "--data", shapes / "captions.csv")
    output = capsys.readouterr().out
    assert "16 images: " in output
    assert "32 captions:" in output
    opening = [line.strip() for line in output.splitlines() if "open_clip." in line]
    names: dict[str, object] = {"open_clip": open_clip}
    exec("\n".join(opening), names)  # what it says works
    assert callable(names["tokenizer"])


@pytest.mark.parametrize("part", ["tokenizer", "preprocessing"])
def test_parts_that_do_not_fit_stop_every_command(
    part: str, model: Path, shapes: Path, tmp_path: Path, recipe_file: Path, said_here: Callable[..., str]
) -> None:
    folder = shutil.copytree(model, tmp_path / "model")
    if part == "tokenizer":
        (folder / "tokenizer.json").unlink()
        (folder / "tokenizer_config.json").unlink()
    else:
        file = folder / "preprocessor_config.json"
        size = {"crop_size": {"height": 96, "width": 96}, "size": {"shortest_edge": 96}}
        file.write_text(json.dumps(json.loads(file.read_text()) | size))
    words = {"tokenizer": "tokenizer.json", "preprocessing": "3 × 96 × 96"}
    data = shapes / "captions.csv"
    for command in (
        ["models", folder],
        ["export", folder, "--to", "open_clip", "--out", tmp_path / "out"],
        ["eval", "retrieval", "--model", folder, "--data", data],
        ["train", recipe_file, f"model.name={folder}"],
    ):
        assert words[part] in said_here(*command), command


def test_invalid_input_is_refused_in_one_line(model: Path, tmp_path: Path, said_here: Callable[..., str]) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    assert "already exists" in said_here("export", model, "--to", "open_clip", "--out", tmp_path / "full")
    assert [path.name for path in tmp_path.iterdir()] == ["full"]


@pytest.mark.parametrize("to", INDEX_FORMATS)
def test_code_that_is_printed_for_an_index_works(
    to: str,
    tiny_clip: Path,
    shapes: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if to == "lancedb":
        pytest.importorskip("lancedb", reason="needs pip install 'clipkit-torch[lancedb]'")
    index = tmp_path / "shapes.index"
    embed(shapes / "captions.csv", tiny_clip, index)
    type_(monkeypatch, "export", index, "--to", to, "--out", tmp_path / "out")
    code = [line.strip() for line in capsys.readouterr().out.partition("open it with:")[2].splitlines()]
    names: dict[str, Any] = {}
    exec("\n".join(code), names)
    assert len(names[{"numpy": "features", "parquet": "table", "lancedb": "rows"}[to]]) == (
        10 if to == "lancedb" else 16
    )


def test_formats_of_models_and_of_indexes_are_not_mixed_up(
    model: Path, tmp_path: Path, said_here: Callable[..., str]
) -> None:
    index = tmp_path / "index"
    index.mkdir()
    (index / "manifest.json").write_text('{"format": "clipkit-index", "version": 1}')
    out = ["--out", tmp_path / "out"]
    assert "numpy, parquet, lancedb" in said_here("export", index, "--to", "onnx", *out)
    assert "manifest.json" in said_here("export", model, "--to", "numpy", *out)
    assert "--int8" in said_here("export", index, "--to", "numpy", "--int8", *out)
    assert "'files'" in said_here("export", index, "--to", "parquet", *out)
    assert not (tmp_path / "out").exists()
