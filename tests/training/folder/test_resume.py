"""Going on with a run: what may have changed since, and what may not."""

import json
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
from clipkit.training.folder import run_folder
from clipkit.training.folder.checkpoint import checkpoint_steps
from tests.conftest import draw, read_lines, write_csv
from tests.forked import together
from tests.training.test_kills import same_run

Build = Callable[..., Recipe]
METRICS = ["mean_recall", "image_retrieval_recall@10", "text_retrieval_recall@10"]
CHANGES = {"train.epochs": 4, "train.batch_size": 5, "checkpoint.every_steps": 2, "optim.lr": 1e-3}


def interrupt_at(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """The run is gone, without a word, when it is about to make this many steps."""
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


def files_of(folder: Path) -> dict[Path, tuple[int, bytes]]:
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*") if path.is_file()}


def test_on_an_empty_folder_it_just_begins(recipe: Build, tmp_path: Path) -> None:
    clipkit.train(recipe(CHANGES), resume=True)
    clipkit.train(recipe({**CHANGES, "output": str(tmp_path / "other")}))
    same_run(tmp_path / "run", tmp_path / "other")


def test_before_the_first_checkpoint_it_begins_again(recipe: Build, tmp_path: Path) -> None:
    interrupted(recipe(CHANGES), after=1)
    assert len(read_lines(tmp_path / "run" / "metrics.jsonl")) == 1
    clipkit.train(recipe(CHANGES), resume=True)
    assert [row["step"] for row in read_lines(tmp_path / "run" / "metrics.jsonl")] == list(range(1, 13))


def test_a_finished_run_is_left_as_it_is(recipe: Build, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = clipkit.train(recipe(CHANGES))
    before = files_of(tmp_path / "run")
    assert clipkit.train(recipe(CHANGES), resume=True) == result
    assert files_of(tmp_path / "run") == before
    with pytest.raises(RecipeError, match="optim.lr: 0.001 → 0.01"):
        clipkit.train(recipe({**CHANGES, "optim.lr": 0.01}), resume=True)
    shutil.rmtree(tmp_path / "run" / "checkpoints")  # to save room
    assert clipkit.train(recipe(CHANGES), resume=True) == result
    with pytest.raises(OutputError, match="holds a model but no checkpoints to go on from"):
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
        ({"train.epochs": 1}, "is at step 6 already, and train.epochs: 1 ends at step 3"),
        ({"data.validation": None}, "data.validation changed since step 6"),
    ],
)
def test_another_recipe_is_refused(recipe: Build, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    interrupted(recipe(CHANGES), after=7)
    before = files_of(tmp_path / "run")
    with pytest.raises(RecipeError, match=message):
        clipkit.train(recipe({**CHANGES, **changes}), resume=True)
    assert files_of(tmp_path / "run") == before


def test_what_may_change_is_said(recipe: Build, tmp_path: Path, shapes: Path) -> None:
    interrupted(recipe(CHANGES), after=7)
    moved = shutil.copytree(shapes, tmp_path / "moved")
    changes = {
        "train.epochs": 6,
        "eval.every_epochs": 2,
        "eval.metric": "text_retrieval_recall@5",
        "train.log_every": 3,
        "data.workers": 1,
        "data.train": str(moved / "captions.csv"),
        "checkpoint.keep_last": 5,
    }
    result = clipkit.train(recipe({**CHANGES, **changes}), resume=True)
    said = (tmp_path / "run" / "log.txt").read_text()
    assert "changed since step 6: train.epochs: 4 → 6" in said
    assert said.count("changed since step 6: ") == len(changes)
    assert result["settings"]["steps"] == 18
    assert result["settings"]["best"]["metric"] == "text_retrieval_recall@5"
    assert [row["step"] for row in read_lines(tmp_path / "run" / "metrics.jsonl")] == [*range(1, 7), 9, 12, 15, 18]
    assert Recipe.from_yaml(tmp_path / "run" / "recipe.yaml").train.epochs == 6


def test_a_finished_run_can_be_made_longer(recipe: Build, tmp_path: Path) -> None:
    clipkit.train(recipe(CHANGES))
    result = clipkit.train(recipe({**CHANGES, "train.epochs": 5}), resume=True)
    assert result["settings"]["steps"] == 15
    assert [row["step"] for row in read_lines(tmp_path / "run" / "metrics.jsonl")] == list(range(1, 16))


def own_data(folder: Path) -> Path:
    (folder / "images").mkdir(parents=True)
    rows = []
    for number, colour in enumerate(("red", "green", "blue", "yellow") * 2):
        draw(colour, "circle", shift=number).save(folder / "images" / f"{number}.png")
        rows.append([f"images/{number}.png", f"a {colour} circle, {number}"])
    return write_csv(folder / "captions.csv", ["image", "caption"], rows)


def test_other_data_is_refused(recipe: Build, tmp_path: Path) -> None:
    data = own_data(tmp_path / "data")
    built = recipe({**CHANGES, "data.train": str(data), "train.batch_size": 4})
    interrupted(built, after=5)
    before = files_of(tmp_path / "run")
    written = data.read_text()
    data.write_text(written.replace("a red circle, 0", "a red disc, 0"))
    with pytest.raises(RecipeError, match=r"the images or captions of data.train changed since step 4"):
        clipkit.train(built, resume=True)
    data.write_text(written)
    draw("red", "square", size=40).save(tmp_path / "data" / "images" / "0.png")
    with pytest.raises(RecipeError, match=r"the images or captions of data.train changed since step 4"):
        clipkit.train(built, resume=True)
    assert files_of(tmp_path / "run") == before


def test_other_frozen_weights_are_refused(recipe: Build, tmp_path: Path, tiny_clip: Path) -> None:
    model = shutil.copytree(tiny_clip, tmp_path / "model")
    built = recipe({**CHANGES, "model.name": str(model), "model.image.tune": "frozen"})
    interrupted(built, after=5)
    clip = clipkit.load(model)
    with torch.no_grad():
        next(clip.image.trunk.parameters()).add_(1e-3)
    clip.save(model)
    with pytest.raises(RecipeError, match="the frozen weights of the model changed since step 4"):
        clipkit.train(built, resume=True)


def test_the_cut_that_was_found_is_kept(recipe: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With another amount of memory free, auto would find another cut and so other bits."""
    from clipkit.training import micro_batch

    found = iter([60_000_000, 10**12])
    sizes = []

    def size(*arguments: Any) -> int:
        sizes.append(2 if next(found) < 10**9 else 5)
        return sizes[-1]

    monkeypatch.setattr("clipkit.training.model.find_micro_batch_size", size)
    assert micro_batch is not None
    interrupted(recipe(CHANGES), after=5)
    result = clipkit.train(recipe(CHANGES), resume=True)
    assert sizes == [2]
    assert result["settings"]["micro_batch_size"] == 2


def test_on_another_number_of_processes_it_is_the_same_to_rounding(recipe: Build, tmp_path: Path) -> None:
    sgd = {"optim.name": "sgd", "optim.lr": 0.05, "optim.weight_decay": 0.0}
    clipkit.train(recipe({**CHANGES, **sgd, "output": str(tmp_path / "whole")}))
    interrupted(recipe({**CHANGES, **sgd}), after=7)
    file = tmp_path / "r.yaml"
    file.write_text(recipe({**CHANGES, **sgd}).to_yaml())
    said, _ = together(2, "-m", "clipkit", "train", str(file), "--resume")
    assert "processes changed since (1 → 2): the same run to rounding only" in said
    rows = [read_lines(tmp_path / name / "metrics.jsonl") for name in ("run", "whole")]
    assert [row["step"] for row in rows[0]] == [row["step"] for row in rows[1]]
    for one, two in zip(*rows, strict=True):
        assert one["loss"] == pytest.approx(two["loss"], abs=1e-5)
    weights = [load_file(tmp_path / name / "model" / "model.safetensors") for name in ("run", "whole")]
    for name, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][name], rtol=1e-4, atol=1e-5)


def test_a_live_run_is_refused_and_a_dead_ones_lock_taken_over(recipe: Build, tmp_path: Path) -> None:
    import multiprocessing

    folder = tmp_path / "run"
    context = multiprocessing.get_context("forkserver")  # tests.forked has set it up
    ready, done = context.Event(), context.Event()
    holder = context.Process(target=_hold, args=(folder, ready, done))
    holder.start()
    assert ready.wait(60)
    for options in ({"resume": True}, {"overwrite": True}):
        with pytest.raises(OutputError, match=f"a run is at work in it .process {holder.pid} on"):
            clipkit.train(recipe(CHANGES), **options)
    holder.kill()
    holder.join()
    assert (folder / ".lock").exists()
    clipkit.train(recipe(CHANGES), resume=True)
    assert not (folder / ".lock").exists()


def _hold(folder: Path, ready: Any, done: Any) -> None:
    run_folder.RunFolder(folder).claim(resume=True, overwrite=False)
    ready.set()
    done.wait()


def test_what_is_kept(recipe: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last two, the best two, and what was the best when one of the last was written."""
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


def test_what_is_saved_is_the_best_not_the_last(recipe: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_checkpoints_by_the_clock(recipe: Build, tmp_path: Path) -> None:
    changes = {"data.validation": None, "train.epochs": 3, "checkpoint.keep_last": 50}
    clipkit.train(recipe(changes))
    assert checkpoint_steps(tmp_path / "run" / "checkpoints") == [6]
    clipkit.train(recipe({**changes, "checkpoint.every_minutes": 1e-9}), overwrite=True)
    assert checkpoint_steps(tmp_path / "run" / "checkpoints") == [1, 2, 3, 4, 5, 6]
