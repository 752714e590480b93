"""Real processes, with gloo: the same recipe gives the same run for any micro-batch size and number of processes."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import clipkit
from clipkit.recipe import Recipe
from tests.conftest import read_lines
from tests.forked import python, together
from tests.training import several_runs

# An odd batch size, so that two processes get shares of unequal size; 6 steps.
SGD = {"optim.name": "sgd", "optim.lr": 0.05, "optim.weight_decay": 0.0}
VIEWS = {"views": {"image": {"policies": ["moco", "moco"]}}}
KINDS = {
    "sgd": {
        "train.batch_size": 7, "train.epochs": 3, "objective": {"captions": 1.0, "views": 1.0},
        "optim.pull_to_start": 1.0, **VIEWS, **SGD,
    },
    "adamw": {
        "train.batch_size": 7, "train.epochs": 3, "optim.lr": 1e-3,
        "optim.unfreeze": {"last:1": 0.2, "full": 0.4}, "optim.layer_decay": 0.8, "optim.warm_moments": 1,
    },
    # 32 captions of 16 images in batches of 20: every batch contains some images twice.
    "duplicates": {"train.batch_size": 20, "train.epochs": 6, "data.captions": "all", **SGD},
}  # fmt: skip
SLOW_KINDS = {
    "adapters": {
        "train.batch_size": 7, "train.epochs": 3, **SGD, "optim.lr": 0.1,
        "model.image.tune": "lora", "model.text.tune": "dora", "model.text.lora.targets": "all",
    },
}  # fmt: skip
MICRO_BATCHES = {"one pass": {}, "micro-batches": {"train.micro_batch_size": 2, "data.workers": 2}}


@pytest.mark.parametrize("times", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_micro_batches_and_processes_do_not_change_a_run(
    recipe: Callable[..., Recipe], tmp_path: Path, tiny_clip: Path, times: int
) -> None:
    files: dict[int, list[str]] = {1: [], 2: []} if times == 1 else {1: [], 2: [], 4: []}
    kinds = KINDS if times == 1 else KINDS | SLOW_KINDS
    for kind, changes in kinds.items():
        for cut, how in MICRO_BATCHES.items():
            for processes, of_these in files.items():
                output = tmp_path / f"{kind}-{cut}-{processes}"
                file = output.with_suffix(".yaml")
                longer = {"train.epochs": times * changes["train.epochs"]}
                built = recipe({**changes, **how, **longer, "data.validation": None, "output": str(output)})
                file.write_text(built.to_yaml())
                of_these.append(str(file))
    for file in files[1]:
        clipkit.train(file)
    for processes in [*files][1:]:
        together(processes, several_runs.__file__, *files[processes])
    start = load_file(tiny_clip / "model.safetensors")
    for kind in kinds:
        runs = [tmp_path / f"{kind}-{cut}-{processes}" for cut in MICRO_BATCHES for processes in files]
        losses = [torch.tensor([row["loss"] for row in read_lines(run / "metrics.jsonl")]) for run in runs]
        weights = [load_file(run / "model" / "model.safetensors") for run in runs]
        assert len(losses[0]) == 6 * times
        assert not torch.equal(losses[0][0], losses[0][-1])
        for other_losses, other in zip(losses[1:], weights[1:], strict=True):
            torch.testing.assert_close(other_losses, losses[0], rtol=0, atol=1e-5)
            update = torch.stack([(weights[0][name] - start[name]).norm() for name in start]).norm()
            for name, value in weights[0].items():
                if kind == "adamw" and name.endswith("k_proj.bias"):
                    continue  # its true gradient is zero: Adam normalizes rounding noise
                tolerance = 1e-4 if kind == "adamw" else 1e-5
                assert (other[name] - value).norm() <= tolerance * update, (kind, name)


@pytest.mark.slow
def test_scale_is_equal_on_both_processes(recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text(recipe({**KINDS["adamw"], "train.epochs": 5, "train.micro_batch_size": 2}).to_yaml())
    together(2, several_runs.__file__, str(file))
    one, two = ((tmp_path / f"run-{index}-of-2.txt").read_text() for index in range(2))
    assert one == two != clipkit.load(recipe().model.name or "").logit_scale.item().hex()


@pytest.mark.slow
def test_command_line_starts_processes_and_returns_their_exit_code(recipe_file: Path, tmp_path: Path) -> None:
    command = ["-m", "clipkit", "train", recipe_file, "--processes", "2"]
    done = python(*command)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("2 processes on cpu joined by gloo, fp32")
    assert [row["step"] for row in read_lines(tmp_path / "run" / "metrics.jsonl")] == [1, 2, 3, 4]
    # The exit code is that of the processes, and one of them prints the error.
    done = python(*command)
    assert done.returncode == 2
    assert done.stderr.count("--overwrite") == 1
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_train_refuses_more_processes_than_pairs(recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text(recipe({"train.batch_size": 2}).to_yaml())
    done = python("-m", "clipkit", "train", file, "--processes", "3")
    assert done.returncode == 2, done.stderr
    assert "train.batch_size is 2" in done.stderr
