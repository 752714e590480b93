"""Resuming a run: allowed and refused changes, damaged and missing checkpoints, and the checkpoints that are kept."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import clipkit
from clipkit.errors import OutputError, RecipeError
from clipkit.recipe import Recipe
from clipkit.training import step as step_module
from clipkit.training.folder.checkpoint import _sums, checkpoint_of, checkpoint_steps
from clipkit.training.folder.resume import StartPoint, find_checkpoint
from clipkit.training.folder.run_folder import RunFolder
from clipkit.training.plan import make_plan
from tests.conftest import draw, read_lines, small_recipe, write_csv
from tests.forked import together
from tests.training.test_kills import same_run

Build = Callable[..., Recipe]
METRICS = ["mean_recall", "image_retrieval_recall@10", "text_retrieval_recall@10"]
CHANGES = {"train.epochs": 4, "train.batch_size": 5, "checkpoint.every_steps": 2, "optim.lr": 1e-3}


def interrupt_at(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """End the run, as if it were killed, at the start of step `number`."""
    step, calls = step_module.Step.__call__, 0

    def counted(*arguments: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == number:
            raise SystemExit
        return step(*arguments)

    monkeypatch.setattr(step_module.Step, "__call__", counted)


def interrupted(recipe: Recipe, after: int) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        interrupt_at(monkeypatch, after + 1)
        with pytest.raises(SystemExit):
            clipkit.train(recipe)


def start_point(recipe: Recipe) -> StartPoint:
    """Return where a resumed run would start; raises as it would."""
    plan = make_plan(recipe)
    return find_checkpoint(RunFolder(recipe.output), recipe, plan.steps, plan.identity, plan.processes)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory, shapes: Path, tiny_clip: Path) -> Path:
    """The folder of a run that ended after step 7, with checkpoints of steps 3 (its evaluation) and 6."""
    output = tmp_path_factory.mktemp("stopped") / "run"
    interrupted(small_recipe(tiny_clip, shapes, output).override(CHANGES), after=7)
    return output


def files_of(folder: Path) -> dict[Path, tuple[int, bytes]]:
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*") if path.is_file()}


def test_resume_starts_a_run_in_an_empty_folder(recipe: Build, tmp_path: Path) -> None:
    clipkit.train(recipe(CHANGES), resume=True)
    clipkit.train(recipe({**CHANGES, "output": str(tmp_path / "other")}))
    same_run(tmp_path / "run", tmp_path / "other")


def test_resume_starts_again_without_a_checkpoint(recipe: Build, tmp_path: Path) -> None:
    interrupted(recipe(CHANGES), after=1)
    assert len(read_lines(tmp_path / "run" / "metrics.jsonl")) == 1
    clipkit.train(recipe(CHANGES), resume=True)
    assert [row["step"] for row in read_lines(tmp_path / "run" / "metrics.jsonl")] == list(range(1, 13))


def test_resume_changes_nothing_in_a_finished_run(recipe: Build, tmp_path: Path) -> None:
    result = clipkit.train(recipe(CHANGES))
    before = files_of(tmp_path / "run")
    assert clipkit.train(recipe(CHANGES), resume=True) == result
    assert files_of(tmp_path / "run") == before
    with pytest.raises(RecipeError, match="optim.lr: 0.001 → 0.01"):
        start_point(recipe({**CHANGES, "optim.lr": 0.01}))
    shutil.rmtree(tmp_path / "run" / "checkpoints")  # to save disk space
    assert clipkit.train(recipe(CHANGES), resume=True) == result
    with pytest.raises(OutputError, match="no checkpoints.*--overwrite"):
        clipkit.train(recipe({**CHANGES, "train.epochs": 9}), resume=True)
    left = files_of(tmp_path / "run")
    assert left == {path: content for path, content in before.items() if path in left}
    assert tmp_path / "run" / "model" / "model.safetensors" in left


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optim.lr": 2e-3}, "optim.lr: 0.001 → 0.002"),
        (
            {"train.seed": 3, "loss.name": "infonce", "train.batch_size": 6},
            "train.batch_size: 5 → 6; train.seed: 0 → 3",
        ),
        ({"train.ema": 0.9}, "train.ema: null → 0.9"),
        ({"train.epochs": 1}, "step 6.* train.epochs: 1 .* step 3"),
        ({"data.validation": None}, "data.validation changed since step 6"),
    ],
)
def test_resume_refuses_a_changed_recipe(recipe: Build, stopped: Path, changes: dict[str, Any], message: str) -> None:
    before = files_of(stopped)
    with pytest.raises(RecipeError, match=message):
        start_point(recipe({**CHANGES, **changes, "output": str(stopped)}))
    assert files_of(stopped) == before


def test_train_with_resume_refuses_a_changed_recipe(recipe: Build, stopped: Path) -> None:
    before = files_of(stopped)
    with pytest.raises(RecipeError, match="train.seed: 0 → 3"):
        clipkit.train(recipe({**CHANGES, "train.seed": 3, "output": str(stopped)}), resume=True)
    assert files_of(stopped) == before


def test_an_automatic_choice_and_its_result_are_the_same_recipe(recipe: Build, stopped: Path) -> None:
    """Before `data.captions: auto` existed, runs were saved with `one`."""
    for captions in ("auto", "one"):
        start = start_point(recipe({**CHANGES, "data.captions": captions, "output": str(stopped)}))
        assert start.step == 6
    with pytest.raises(RecipeError, match="data.captions: auto → all"):
        start_point(recipe({**CHANGES, "data.captions": "all", "output": str(stopped)}))


def test_resume_prints_allowed_changes(recipe: Build, stopped: Path, tmp_path: Path, shapes: Path) -> None:
    shutil.copytree(stopped, tmp_path / "run")
    moved = shutil.copytree(shapes, tmp_path / "moved")
    changes = {
        "train.epochs": 6,
        "eval.every_epochs": 2,
        "eval.metric": "text_retrieval_recall@5",
        "train.log_every": 3,
        "data.workers": 1,
        "data.train": str(moved / "captions.csv"),
        "checkpoint.keep_last": 5,
        "output": str(tmp_path / "run"),
    }
    result = clipkit.train(recipe({**CHANGES, **changes}), resume=True)
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "changed since step 6: train.epochs: 4 → 6" in log
    assert log.count("changed since step 6: ") == len(changes)
    assert result["settings"]["steps"] == 18
    assert result["settings"]["best"]["metric"] == "text_retrieval_recall@5"
    assert [row["step"] for row in read_lines(tmp_path / "run" / "metrics.jsonl")] == [*range(1, 7), 9, 12, 15, 18]
    assert Recipe.from_yaml(tmp_path / "run" / "recipe.yaml").train.epochs == 6


def test_resume_extends_a_finished_run(recipe: Build, tmp_path: Path) -> None:
    clipkit.train(recipe(CHANGES))
    result = clipkit.train(recipe({**CHANGES, "train.epochs": 5}), resume=True)
    assert result["settings"]["steps"] == 15
    assert [row["step"] for row in read_lines(tmp_path / "run" / "metrics.jsonl")] == list(range(1, 16))


def small_data(folder: Path) -> Path:
    (folder / "images").mkdir(parents=True)
    rows = []
    for number, color in enumerate(("red", "green", "blue", "yellow") * 2):
        draw(color, "circle", shift=number).save(folder / "images" / f"{number}.png")
        rows.append([f"images/{number}.png", f"a {color} circle, {number}"])
    return write_csv(folder / "captions.csv", ["image", "caption"], rows)


def test_resume_refuses_changed_data(recipe: Build, tmp_path: Path) -> None:
    data = small_data(tmp_path / "data")
    built = recipe({**CHANGES, "data.train": str(data), "train.batch_size": 4})
    interrupted(built, after=5)
    before = files_of(tmp_path / "run")
    written = data.read_text()
    data.write_text(written.replace("a red circle, 0", "a red disc, 0"))
    with pytest.raises(RecipeError, match="data.train changed since step 4"):
        start_point(built)
    data.write_text(written)
    draw("red", "square", size=40).save(tmp_path / "data" / "images" / "0.png")
    with pytest.raises(RecipeError, match="data.train changed since step 4"):
        start_point(built)
    assert files_of(tmp_path / "run") == before


def test_resume_refuses_other_content_of_equal_size_and_time(recipe: Build, tmp_path: Path) -> None:
    data = small_data(tmp_path / "data")
    built = recipe({**CHANGES, "data.train": str(data), "train.batch_size": 4})
    interrupted(built, after=3)
    image = tmp_path / "data" / "images" / "0.png"
    status, content = image.stat(), bytearray(image.read_bytes())
    content[-20] ^= 1
    image.write_bytes(content)
    os.utime(image, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(RecipeError, match="the content of the images of data.train changed since step 2"):
        start_point(built)


def test_a_run_without_hashes_of_the_content_is_resumed(recipe: Build, tmp_path: Path) -> None:
    built = recipe({**CHANGES, "train.batch_size": 4})
    plan = make_plan(built)
    earlier = {name: value for name, value in plan.identity.items() if not name.startswith("the content")}
    assert len(earlier) == len(plan.identity) - 3
    interrupted(built, after=3)
    folder = RunFolder(built.output)
    step = checkpoint_of(folder.checkpoints, 2)
    state = json.loads((step / "state.json").read_text())
    (step / "state.json").write_text(json.dumps(state | {"identity": earlier}))
    (step / "SHA256SUMS").write_bytes(_sums(step))
    assert start_point(built).step == 2


def test_resume_refuses_changed_frozen_weights(recipe: Build, tmp_path: Path, tiny_clip: Path) -> None:
    model = shutil.copytree(tiny_clip, tmp_path / "model")
    built = recipe({**CHANGES, "model.name": str(model), "model.image.tune": "frozen"})
    interrupted(built, after=5)
    clip = clipkit.load(model)
    with torch.no_grad():
        next(clip.image.trunk.parameters()).add_(1e-3)
    clip.save(model)
    with pytest.raises(RecipeError, match="frozen weights.* changed since step 4"):
        start_point(built)


def test_resume_keeps_the_measured_micro_batch(recipe: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """With another amount of free memory, `auto` would give another size, and so other bits."""
    sizes: list[int] = []

    def size(*arguments: Any) -> int:
        sizes.append(5 if sizes else 2)
        return sizes[-1]

    monkeypatch.setattr("clipkit.training.micro_batch.find_micro_batch_size", size)
    interrupted(recipe(CHANGES), after=5)
    result = clipkit.train(recipe(CHANGES), resume=True)
    assert sizes == [2]
    assert result["settings"]["micro_batch_size"] == 2


def test_resume_on_more_processes_gives_the_same_run_up_to_rounding(recipe: Build, tmp_path: Path) -> None:
    sgd = {"optim.name": "sgd", "optim.lr": 0.05, "optim.weight_decay": 0.0}
    clipkit.train(recipe({**CHANGES, **sgd, "output": str(tmp_path / "whole")}))
    interrupted(recipe({**CHANGES, **sgd}), after=7)
    file = tmp_path / "r.yaml"
    file.write_text(recipe({**CHANGES, **sgd}).to_yaml())
    output, _ = together(2, "-m", "clipkit", "train", str(file), "--resume")
    assert "processes changed since step 6 (1 → 2)" in output
    rows = [read_lines(tmp_path / name / "metrics.jsonl") for name in ("run", "whole")]
    assert [row["step"] for row in rows[0]] == [row["step"] for row in rows[1]]
    for one, two in zip(*rows, strict=True):
        assert one["loss"] == pytest.approx(two["loss"], abs=1e-5)
    weights = [load_file(tmp_path / name / "model" / "model.safetensors") for name in ("run", "whole")]
    for name, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][name], rtol=1e-4, atol=1e-5)


def test_train_refuses_a_folder_in_use_and_takes_the_lock_of_a_killed_run(recipe: Build, tmp_path: Path) -> None:
    import multiprocessing

    folder = tmp_path / "run"
    context = multiprocessing.get_context("forkserver")  # tests.forked has set it up
    ready, done = context.Event(), context.Event()
    holder = context.Process(target=_hold, args=(folder, ready, done))
    holder.start()
    assert ready.wait(60)
    for options in ({"resume": True}, {"overwrite": True}):
        with pytest.raises(OutputError, match=f"run: .*another run .*process {holder.pid} on"):
            clipkit.train(recipe(CHANGES), **options)
    holder.kill()
    holder.join()
    assert (folder / ".lock").exists()
    clipkit.train(recipe(CHANGES), resume=True)
    assert not (folder / ".lock").exists()


def _hold(folder: Path, ready: Any, done: Any) -> None:
    RunFolder(folder).claim(resume=True, overwrite=False)
    ready.set()
    done.wait()


def test_run_keeps_the_last_and_best_checkpoints(
    recipe: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last two, the best two, and those that were the best when one of the last was written."""
    from clipkit.training.measures.captions import CaptionValidation

    values = iter([0.5, 0.9, 0.2, 0.7, 0.3, 0.4])
    monkeypatch.setattr(CaptionValidation, "figures", lambda self: dict.fromkeys(METRICS, next(values)))
    changes = {"train.epochs": 6, "train.batch_size": 8, "checkpoint.every_steps": 1, "checkpoint.keep_best": 2}
    clipkit.train(recipe(changes))
    assert checkpoint_steps(tmp_path / "run" / "checkpoints") == [4, 8, 11, 12]
    assert json.loads((tmp_path / "run" / "results.json").read_text())["settings"]["best"] == {
        "step": 4,
        "metric": "mean_recall",
        "value": 0.9,
    }


def test_saved_model_has_the_best_weights(recipe: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from clipkit.training.folder.checkpoint import checkpoint_of, read_tensors
    from clipkit.training.measures.captions import CaptionValidation

    values = iter([0.5, 0.9, 0.2])
    monkeypatch.setattr(CaptionValidation, "figures", lambda self: dict.fromkeys(METRICS, next(values)))
    result = clipkit.train(recipe({"train.epochs": 3, "train.batch_size": 8, "optim.lr": 1e-2}))
    saved = clipkit.load(tmp_path / "run")
    kept = read_tensors(checkpoint_of(tmp_path / "run" / "checkpoints", 4), "model")
    last = read_tensors(checkpoint_of(tmp_path / "run" / "checkpoints", 6), "model")
    for name, value in saved.named_parameters():
        assert torch.equal(value, kept[name]), name
    assert any(not torch.equal(kept[name], last[name]) for name in kept)
    again = clipkit.evaluate.retrieval(saved, recipe().data.validation or "")
    assert again["metrics"] == result["metrics"]


def test_run_writes_checkpoints_by_time(recipe: Build, tmp_path: Path) -> None:
    changes = {"data.validation": None, "train.epochs": 3, "checkpoint.keep_last": 50}
    clipkit.train(recipe(changes))
    assert checkpoint_steps(tmp_path / "run" / "checkpoints") == [6]
    clipkit.train(recipe({**changes, "checkpoint.every_minutes": 1e-9}), overwrite=True)
    assert checkpoint_steps(tmp_path / "run" / "checkpoints") == [1, 2, 3, 4, 5, 6]


def test_a_run_without_a_marker_is_resumed_but_not_cleared(tmp_path: Path) -> None:
    """Versions before the marker started it."""
    run = RunFolder(tmp_path / "run")
    checkpoint = run.checkpoints / "step-000004"
    checkpoint.mkdir(parents=True)
    run.recipe.write_text("output: run")
    with pytest.raises(OutputError, match=r"clipkit-run"):  # its checkpoint is not one of clipkit
        run.claim(resume=True, overwrite=False)
    (checkpoint / "SHA256SUMS").write_text("")
    with pytest.raises(OutputError, match=r"clipkit-run"):
        run.claim(resume=False, overwrite=True)
    run.claim(resume=True, overwrite=False)
    run.start()
    run.release()
    assert run.is_marked
