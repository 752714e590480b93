"""Reading of run folders, finished or killed."""

from pathlib import Path

import pytest

from clipkit.errors import DataError
from clipkit.run_files import RunFiles, append, last_row, read_rows, recipe_of, results_of, row_of


def test_every_file_is_in_the_folder(tmp_path: Path) -> None:
    run = RunFiles(tmp_path)
    paths = [file for file in vars(run).values() if isinstance(file, Path) and file != run.path]
    assert set(paths) == {run.marker, *run.files, *run.folders}
    assert all(file.parent == tmp_path for file in paths)
    assert run.files[0] == run.recipe  # the last one that is removed


def test_rows_are_read_without_damaged_lines(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    assert read_rows(file) == []
    assert last_row(file) is None
    append(file, {"step": 1})
    append(file, {"step": 2, "name": "café"})
    whole = [{"step": 1}, {"step": 2, "name": "café"}]
    assert read_rows(file) == whole
    with file.open("a") as log:
        log.write('{"step": 3, "na')
    assert read_rows(file) == whole
    assert last_row(file) == whole[-1]
    assert [row_of(line) for line in file.read_text().splitlines()] == [*whole, None]
    with file.open("ab") as log:
        log.write(b"\0" * 50 + b'\n{"step": 4}\n\xff\n7\n{}\n{"step": null}\n' + b"[" * 100_000 + b"\n")
    assert read_rows(file) == [*whole, {"step": 4}]
    assert last_row(file) == {"step": 4}


def test_recipe_and_results_of_a_run(tmp_path: Path) -> None:
    run = RunFiles(tmp_path)
    for content in (None, "[1]", "a: [", "\ufffd"):
        if content is not None:
            run.recipe.write_text(content)
        with pytest.raises(DataError, match="recipe"):
            recipe_of(tmp_path)
    run.recipe.write_text("output: here\n")
    assert recipe_of(tmp_path) == {"output": "here"}
    assert run.is_run
    for content, expected in ((None, None), ("{", None), ("[]", None), ('{"settings": {}}', {"settings": {}})):
        if content is not None:
            run.results.write_text(content)
        assert results_of(tmp_path) == expected
    assert not run.is_finished
    run.report.touch()
    assert run.is_finished
