"""Checkpoints: written completely or not at all, and never used after damage."""

import pickle
import random
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import clipkit
from clipkit.errors import OutputError
from clipkit.recipe import Recipe
from clipkit.report.runs import runs_in
from clipkit.run_files import results_of, row_of
from clipkit.training.folder.checkpoint import checkpoint_steps, damage, read_state, read_tensors, write_checkpoint
from clipkit.training.folder.resume import newest_usable
from clipkit.training.folder.run_folder import RunFolder
from clipkit.training.guards.doctor import examine
from tests.conftest import small_recipe

Build = Callable[..., Recipe]
CHANGES = {"train.epochs": 6, "checkpoint.every_steps": 1, "checkpoint.keep_last": 4, "train.ema": 0.9}


def write(folder: Path, step: int = 3) -> Path:
    tensors = {"model": {"a": torch.arange(6.0).view(2, 3).T}, "optimizer": {}}
    return write_checkpoint(folder, step, tensors, {"step": step})


def test_checkpoint_reads_back_what_was_written(tmp_path: Path) -> None:
    checkpoint = write(tmp_path)
    assert checkpoint == tmp_path / "step-000003"
    assert damage(checkpoint) is None
    torch.testing.assert_close(read_tensors(checkpoint, "model")["a"], torch.arange(6.0).view(2, 3).T)
    assert read_tensors(checkpoint, "optimizer") == {}
    assert read_state(checkpoint) == {"step": 3}
    write(tmp_path, 12)
    write(tmp_path, 12)  # again, as a run does that resumed from an earlier checkpoint
    assert checkpoint_steps(tmp_path) == [3, 12]
    assert not list(tmp_path.glob(".*"))


def test_sha256sum_verifies_a_checkpoint(tmp_path: Path) -> None:
    command = ["sha256sum", "--check", "--strict", "SHA256SUMS"]
    assert subprocess.run(command, cwd=write(tmp_path), check=False, capture_output=True).returncode == 0


def test_failed_write_leaves_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors import SafetensorError

    from clipkit.training.folder import checkpoint

    write(tmp_path)

    def full(*arguments: Any) -> None:
        raise SafetensorError("No space left on device (os error 28)")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        write(tmp_path, 4)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000003"]


def alter(file: Path, choose: random.Random) -> str:
    """Change a file in a random way."""
    content = file.read_bytes()
    match choose.choice(["flip", "flip", "cut", "longer", "zeros", "pickle", "gone", "swap"]):
        case "flip":
            position = choose.randrange(len(content))
            altered = (
                content[:position] + bytes([content[position] ^ (1 << choose.randrange(8))]) + content[position + 1 :]
            )
        case "cut":
            altered = content[: choose.randrange(len(content))]
        case "longer":
            altered = content + choose.randbytes(choose.randint(1, 50))
        case "zeros":
            position = choose.randrange(len(content))
            altered = content[:position] + bytes(len(content) - position)
        case "pickle":
            altered = pickle.dumps({"model": 1})
        case "swap":
            others = [path for path in sorted(file.parent.iterdir()) if path != file]
            altered = choose.choice(others).read_bytes()
        case _:
            file.unlink()
            return "gone"
    if altered == content:
        altered += b" "
    file.write_bytes(altered)
    return "changed"


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory, shapes: Path, tiny_clip: Path) -> tuple[RunFolder, Recipe]:
    """A finished run with four checkpoints at its end, the best one among them."""
    output = tmp_path_factory.mktemp("kept") / "run"
    recipe = small_recipe(tiny_clip, shapes, output).override(CHANGES)
    clipkit.train(recipe)
    return RunFolder(output), recipe


def never(*arguments: object, **options: object) -> None:
    raise AssertionError("a pickle was opened")


@pytest.mark.parametrize("cases", [60, pytest.param(200, marks=pytest.mark.slow)])
def test_damaged_checkpoints_are_never_used(
    kept: tuple[RunFolder, Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cases: int
) -> None:
    whole, recipe = kept
    steps = checkpoint_steps(whole.checkpoints)
    assert len(steps) >= 4
    identity = read_state(whole.checkpoints / f"step-{steps[-1]:06d}")["identity"]
    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, never)
    monkeypatch.setattr(torch, "load", never)
    choose = random.Random(0)
    used = dict.fromkeys(steps, 0)
    refused: list[str] = []
    for case in range(cases):
        copy = RunFolder(tmp_path / f"run-{case}")
        shutil.copytree(whole.path, copy.path)
        altered = choose.sample(steps, choose.randint(1, len(steps)))
        for step in altered:
            checkpoint = copy.checkpoints / f"step-{step:06d}"
            alter(choose.choice(sorted(checkpoint.iterdir())), choose)
            assert damage(checkpoint) is not None, checkpoint
        try:
            start = newest_usable(copy, recipe, 12, identity)
        except OutputError as error:
            refused.append(str(error))
            continue
        finally:
            shutil.rmtree(copy.path)
        assert start.step not in altered
        best = read_state(whole.checkpoints / f"step-{start.step:06d}")["best"]
        assert best not in altered
        assert len(start.notes) == sum(step > start.step for step in steps)
        used[start.step] += 1
    assert len(refused) >= cases // 20
    assert all("--overwrite" in line and "\n" not in line for line in refused)
    assert sum(count > 0 for count in used.values()) >= 3, used


@pytest.mark.parametrize("victim", ["newest", "log"])
def test_resume_uses_the_checkpoint_before_a_damaged_one(
    kept: tuple[RunFolder, Recipe], recipe: Build, tmp_path: Path, victim: str
) -> None:
    whole, _ = kept
    shutil.copytree(whole.path, tmp_path / "run")
    run = RunFolder(tmp_path / "run")
    run.results.unlink()
    if victim == "newest":
        file = run.checkpoints / "step-000012" / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-1])
        reason = "the checkpoint of step 12 is not used: model.safetensors"
    else:
        lines = run.metrics.read_text().splitlines(keepends=True)
        run.metrics.write_text("".join(lines[:11]))
        reason = "the checkpoint of step 12 is not used: metrics.jsonl"
    clipkit.train(recipe(CHANGES), resume=True)
    log = run.log.read_text()
    assert reason in log
    assert "resuming after step 11" in log
    assert run.metrics.read_bytes() == whole.metrics.read_bytes()
    assert run.evaluations.read_bytes() == whole.evaluations.read_bytes()
    model = "model/model.safetensors"
    assert (run.path / model).read_bytes() == (whole.path / model).read_bytes()
    assert damage(run.checkpoints / "step-000012") is None


def test_resume_does_not_start_again_if_all_checkpoints_are_damaged(
    kept: tuple[RunFolder, Recipe], recipe: Build, tmp_path: Path
) -> None:
    whole, _ = kept
    shutil.copytree(whole.path, tmp_path / "run")
    run = RunFolder(tmp_path / "run")
    for step in checkpoint_steps(run.checkpoints):
        (run.checkpoints / f"step-{step:06d}" / "SHA256SUMS").write_bytes(b"\xff\n")
    before = sorted((path, path.stat().st_mtime_ns) for path in run.path.rglob("*") if path.is_file())
    with pytest.raises(OutputError, match="checkpoints.*SHA256SUMS.*--overwrite"):
        clipkit.train(recipe(CHANGES), resume=True)
    assert sorted((path, path.stat().st_mtime_ns) for path in run.path.rglob("*") if path.is_file()) == before


def cut_line(content: bytes) -> bytes:
    return content[: len(content) // 2]


def zeros_inside(content: bytes) -> bytes:
    middle = len(content) // 3
    return content[:middle] + bytes(60) + content[middle + 60 :]


def half_line_inside(content: bytes) -> bytes:
    lines = content.splitlines(keepends=True)
    return b"".join([lines[0], lines[1][:-20], *lines[2:]])


@pytest.mark.parametrize("damaged", [cut_line, zeros_inside, half_line_inside, lambda content: b""])
@pytest.mark.parametrize("names", [("metrics",), ("evaluations",), ("metrics", "evaluations", "speed")], ids=str)
def test_resume_repairs_logs_that_are_damaged_before_every_checkpoint(
    kept: tuple[RunFolder, Recipe],
    recipe: Build,
    tmp_path: Path,
    names: tuple[str, ...],
    damaged: Callable[[bytes], bytes],
) -> None:
    whole, _ = kept
    shutil.copytree(whole.path, tmp_path / "run")
    run = RunFolder(tmp_path / "run")
    run.results.write_text('{"settings"')
    run.findings.write_bytes(bytes(100))
    for step in checkpoint_steps(run.checkpoints)[:-3]:
        shutil.rmtree(run.checkpoints / f"step-{step:06d}")
    for name in names:
        file: Path = getattr(run, name)
        file.write_bytes(damaged(file.read_bytes()))
    examine(run.path)
    assert [row.name for row in runs_in(tmp_path)] == ["run"]
    clipkit.train(recipe(CHANGES), resume=True)
    log = run.log.read_text()
    assert "damaged logs are repaired" in log or "is not used" in log
    for file in (run.metrics, run.evaluations, run.speed):
        assert all(row_of(line) for line in file.read_bytes().splitlines())
    assert run.is_finished
    model = "model/model.safetensors"
    if names == ("metrics",):
        assert (run.path / model).read_bytes() == (whole.path / model).read_bytes()


def test_resume_refuses_edited_logs(kept: tuple[RunFolder, Recipe], recipe: Build, tmp_path: Path) -> None:
    whole, _ = kept
    shutil.copytree(whole.path, tmp_path / "run")
    run = RunFolder(tmp_path / "run")
    run.results.unlink()
    run.metrics.write_text(run.metrics.read_text().replace('"step": 1,', '"step": 1, "note": 1,'))
    with pytest.raises(OutputError, match="metrics.jsonl has changed"):
        clipkit.train(recipe(CHANGES), resume=True)


def test_doctor_and_runs_read_any_damaged_file_of_a_run(kept: tuple[RunFolder, Recipe], tmp_path: Path) -> None:
    whole, _ = kept
    choose = random.Random(1)
    shutil.copytree(whole.path, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints", "model"))
    run = RunFolder(tmp_path / "run")
    files = (run.metrics, run.speed, run.evaluations, run.findings, run.results)
    before = {file: file.read_bytes() for file in files}
    for _ in range(60):
        for file in choose.sample(files, 2):
            file.write_bytes(choose.choice([cut_line, zeros_inside, half_line_inside])(file.read_bytes()))
        examine(run.path)
        runs_in(tmp_path)
        results_of(run.path)
        for file, content in before.items():
            file.write_bytes(content)
