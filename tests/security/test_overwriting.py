"""Outputs replace outputs of clipkit and nothing else."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from clipkit.cli.demo import run_demo
from clipkit.cli.output import check_writable
from clipkit.errors import OutputError
from clipkit.evaluation.predictions import write_rows
from clipkit.overwriting import check_replaceable, run_of
from clipkit.run_files import RunFiles
from clipkit.training import train
from clipkit.training.folder.run_folder import RunFolder
from tests.forked import python

FOREIGN: dict[str, Callable[[Path], object]] = {
    "captions.csv": lambda file: file.write_text("image,caption\na.png,clipkit\n"),
    "captions.json": lambda file: file.write_text('[{"image": "a.png", "caption": "x"}]'),
    "captions.jsonl": lambda file: file.write_text('{"image": "a.png", "task": 1}\n{"image": "b.png"}\n'),
    "config.json": lambda file: file.write_text('{"model_type": "clip", "task": 1}'),
    "image.png": lambda file: Image.new("RGB", (3, 3)).save(file),
    "image.jpg": lambda file: Image.new("RGB", (3, 3)).save(file),
    "data.parquet": lambda file: parquet.write_table(pa.table({"clipkit": [1]}), file),
    "model.safetensors": lambda file: file.write_bytes(b"\x10" + bytes(7) + b'{"clipkit": 1}  '),
    "recipe.yaml": lambda file: file.write_text("output: runs/clipkit\n"),
    "notes.html": lambda file: file.write_text("<!doctype html><p>clipkit</p>"),
    "table.md": lambda file: file.write_text("# clipkit\n"),
    "deep.json": lambda file: file.write_text('{"a":' * 100_000),
    "cut.png": lambda file: file.write_bytes(b"\x89PNG\r\n\x1a\n"),
    "cut.parquet": lambda file: file.write_bytes(b"PAR1"),
    "binary": lambda file: file.write_bytes(bytes(range(256))),
    "space": lambda file: file.write_text(" "),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_file_of_someone_else_is_not_replaced(name: str, tmp_path: Path) -> None:
    FOREIGN[name](tmp_path / name)
    with pytest.raises(OutputError, match=f"{name}: exists and is not an output of clipkit"):
        check_replaceable(tmp_path / name)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: path.symlink_to("/dev/null")])
@pytest.mark.skipif(os.name == "nt", reason="no pipes")
def test_what_is_not_a_regular_file_is_not_replaced(make: Callable[[Path], object], tmp_path: Path) -> None:
    make(tmp_path / "out")
    with pytest.raises(OutputError, match="out: is "):
        check_replaceable(tmp_path / "out")
    for device in ("/dev/null", "/dev/stdout", "/dev/stderr", "/dev/zero"):
        with pytest.raises(OutputError, match=f"{device}: "):
            check_replaceable(Path(device))


def test_links_are_not_replaced_also_if_they_lead_nowhere(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text('{"task": "x", "data": {}, "metrics": {}}')
    for target in ("result.json", "nowhere"):
        (tmp_path / "link").symlink_to(target)
        with pytest.raises(OutputError, match=f"link: is a link to {target}"):
            check_replaceable(tmp_path / "link")
        (tmp_path / "link").unlink()


def test_outputs_and_empty_files_are_replaced(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    (tmp_path / "result.json").write_text('{"task": "retrieval", "data": {}, "metrics": {}}')
    (tmp_path / "findings.json").write_text('{"task": "check", "data": "x", "findings": []}')
    write_rows(tmp_path / "predictions.parquet", [{"a": 1}])
    check_writable(*tmp_path.iterdir(), tmp_path / "new")
    for number, keys in enumerate((["model", "image", "method", "texts"], ["format", "suite", "rows"])):
        (tmp_path / f"{number}.json").write_text(json.dumps(dict.fromkeys(keys)))
        check_replaceable(tmp_path / f"{number}.json")


def test_inputs_are_not_replaced_under_any_of_their_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = tmp_path / "a?b.json"
    result.write_text('{"task": "retrieval", "data": {}, "metrics": {}}')
    os.link(result, tmp_path / "hard.json")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    for name in ("a?b.json", "./a?b.json", "folder/../a?b.json", "hard.json", result):
        with pytest.raises(OutputError, match="would overwrite"):
            check_writable(result, inputs=[None, name])
    with pytest.raises(OutputError, match="would overwrite"):
        check_writable(tmp_path / "new", tmp_path / "folder" / ".." / "new")
    other = tmp_path / "plain.json"
    result.rename(other)
    with pytest.raises(OutputError, match="would overwrite"):
        check_writable(other, inputs=["plain.json?image=a"])


def test_files_of_a_run_are_not_replaced(tmp_path: Path) -> None:
    run = RunFiles(tmp_path / "run")
    (run.path / "model" / "image").mkdir(parents=True)
    check_replaceable(run.results)
    run.marker.touch()
    run.results.write_text('{"task": "retrieval", "data": {}, "metrics": {}}')
    (tmp_path / "link").symlink_to(run.path)
    for name in ("results.json", "log.txt", "model/new.json", "model/image/x", ".clipkit-run", "recipe.yaml"):
        for folder in (run.path, tmp_path / "link"):
            with pytest.raises(OutputError, match="belongs to the run"):
                check_replaceable(folder / name)
    check_replaceable(run.path / "evaluated.json")
    assert run_of(tmp_path / "link" / "evaluated.json") is None


def typed(*arguments: object) -> str:
    """Run a command that is refused in one line, and return the line."""
    done = python("-m", "clipkit", *map(str, arguments))
    assert done.returncode == 2, done.stdout + done.stderr
    (line,) = done.stderr.splitlines()
    return line


@pytest.mark.slow
def test_commands_do_not_replace_their_inputs(shapes: Path, tiny_clip: Path, tmp_path: Path) -> None:
    table, image, weights = shapes / "captions.csv", shapes / "images" / "00.png", tiny_clip / "model.safetensors"
    config = tiny_clip / "config.json"
    before = {file: file.read_bytes() for file in (table, image, weights, config)}
    evaluation = ("eval", "retrieval", "--model", tiny_clip, "--data", table)
    for file in before:
        for option in ("--json", "--report", "--predictions"):
            assert str(file) in typed(*evaluation, option, file)
        assert str(file) in typed("data", "check", table, "--json", file)
        assert str(file) in typed("data", "preview", table, "--out", file)
    (tmp_path / "results.json").write_text("{}")
    assert "results.json" in typed("eval", "suite", "offline", "--model", tiny_clip, "--out", tmp_path)
    assert "weights" in typed("export", tiny_clip, "--to", "onnx", "--out", tmp_path).replace(str(tmp_path), "weights")
    assert {file: file.read_bytes() for file in before} == before


@pytest.mark.slow
def test_preview_replaces_a_preview(shapes: Path, tmp_path: Path) -> None:
    for name in ("preview.png", "preview.png", "new.jpg"):
        done = python("-m", "clipkit", "data", "preview", shapes / "captions.csv", "--out", tmp_path / name)
        assert done.returncode == 0, done.stderr
    assert "new.jpg: exists" in typed("data", "preview", shapes / "captions.csv", "--out", tmp_path / "new.jpg")
    assert "new.xyz" in typed("data", "preview", shapes / "captions.csv", "--out", tmp_path / "new.xyz")


FOLDERS: dict[str, Callable[[Path], object]] = {
    "a recipe": lambda folder: (folder / "recipe.yaml").write_text("mine"),
    "a model": lambda folder: (folder / "model").mkdir(),
    "a log": lambda folder: (folder / "log.txt").write_text("mine"),
    "results": lambda folder: (folder / "results.json").write_text("{}"),
    "a link to nowhere": lambda folder: (folder / "metrics.jsonl").symlink_to("precious"),
    "a link to a folder": lambda folder: (folder / "model").symlink_to("precious"),
    "a marker that is a link": lambda folder: (folder / ".clipkit-run").symlink_to("recipe.yaml"),
    "a marker that is a folder": lambda folder: (folder / ".clipkit-run").mkdir(),
    "a lock that is a link": lambda folder: (folder / ".lock").symlink_to(folder / "precious.txt"),
    "checkpoints": lambda folder: (folder / "checkpoints" / "step-000001").mkdir(parents=True),
}


@pytest.mark.parametrize("options", [(False, False), (True, False), (False, True)])
@pytest.mark.parametrize("content", FOLDERS)
def test_a_folder_that_is_no_run_is_never_cleared(content: str, options: tuple[bool, bool], tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "precious.txt").write_text("precious")
    FOLDERS[content](folder)
    before = sorted((file, file.is_file() and file.read_bytes()) for file in folder.rglob("*"))
    with pytest.raises(OutputError, match="mine"):
        RunFolder(folder).claim(*options)
    assert sorted((file, file.is_file() and file.read_bytes()) for file in folder.rglob("*")) == before


def test_overwrite_keeps_what_the_new_run_reads(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    run.model.mkdir(parents=True)
    run.marker.touch()
    run.recipe.write_text("output: run")
    (run.path / "captions.csv").write_text("mine")
    for source in (run.path, run.model, f"{run.model}/", f"{run.path}/model/x.csv?image=a", tmp_path / "." / "run"):
        with pytest.raises(OutputError, match=r"the recipe uses and --overwrite would delete"):
            run.claim(resume=False, overwrite=True, inputs=[str(source)])
    run.claim(resume=False, overwrite=True, inputs=[str(run.path / "captions.csv"), "org/model", "hf:x?split=a"])
    run.release()
    run.claim(resume=True, overwrite=False, inputs=[str(run.model)])
    run.release()


@pytest.mark.slow
def test_a_run_marks_its_folder_and_replaces_it(recipe: Callable[..., object], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "notes.md").write_text("mine")
    train(recipe(), {"train.epochs": 1})
    (folder / ".metrics.jsonl.abc.writing").write_text("half")
    train(recipe(), {"train.epochs": 1}, overwrite=True)
    assert (folder / "notes.md").read_text() == "mine"
    assert RunFiles(folder).is_marked
    assert not list(folder.glob("*.writing")) + list(folder.glob(".*.writing"))
    assert json.loads((folder / "results.json").read_text())["task"]


@pytest.mark.parametrize("marker", [None, "{}", "[]", '{"models"', "demo"])
def test_demo_does_not_replace_data_of_someone_else(marker: str | None, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.csv").write_text("mine")
    if marker is not None:
        (tmp_path / "demo.json").write_text(marker)
    with pytest.raises(OutputError, match="does not contain a demo"):
        run_demo(tmp_path)
    assert (tmp_path / "data" / "train.csv").read_text() == "mine"
