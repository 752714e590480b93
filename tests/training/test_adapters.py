"""Runs with adapters: what changes, what is saved, and what resumes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import clipkit
from clipkit.errors import RecipeError
from clipkit.models.adapters.attach import is_of_adapter
from clipkit.models.adapters.low_rank import LowRank
from clipkit.recipe import Recipe
from clipkit.training.plan import make_plan
from tests.conftest import read_lines
from tests.forked import python
from tests.training.folder.test_resume import interrupted
from tests.training.test_kills import same_run

Build = Callable[..., Recipe]
ADAPTED = {
    "model.image.tune": "lora",
    "model.text": {"tune": "dora", "lora": {"rank": 2, "targets": "all", "last": 1, "dropout": 0.2}},
    "optim.lr": {"pretrained": 1e-4, "adapter": 1e-2},
    "train.micro_batch_size": 3,
}


def assert_same_features(one: Path, two: Path) -> None:
    models = [clipkit.load(folder, device="cpu") for folder in (one, two)]
    for name, value in models[0].state_dict().items():
        torch.testing.assert_close(models[1].state_dict()[name], value, rtol=0, atol=1e-6)


def test_only_adapters_and_the_scale_learn(recipe: Build, tmp_path: Path, tiny_clip: Path) -> None:
    results = clipkit.train(recipe(ADAPTED))
    run, start = tmp_path / "run", load_file(tiny_clip / "model.safetensors")
    saved = load_file(run / "model" / "model.safetensors")
    changed = {
        name.partition(".encoder.")[2] or name for name, value in saved.items() if not torch.equal(value, start[name])
    }
    layers = {f"layers.{number}.self_attn.{part}_proj.weight" for number in range(3) for part in "qkv"}
    layers |= {f"layers.2.{name}.weight" for name in ("self_attn.out_proj", "mlp.fc1", "mlp.fc2")}
    assert changed == {*layers, "logit_scale"}
    assert_same_features(run / "model", run / "adapter")
    assert (run / "adapter" / "adapter_model.safetensors").stat().st_size < 60_000
    checkpoint = load_file(run / "checkpoints" / "step-000004" / "model.safetensors")
    assert all(is_of_adapter(name) or name == "logit_scale" for name in checkpoint)
    assert results["settings"]["learning_rates"] == {"adapter": 1e-2, "pretrained": 1e-4}
    rows = read_lines(run / "metrics.jsonl")
    assert [row["lr_pretrained"] for row in rows] == pytest.approx([row["lr"] / 100 for row in rows])
    assert "0.01 for adapter weights and 0.0001 for pretrained weights" in (run / "log.txt").read_text()


def test_resume_gives_the_same_bits_also_with_dropout(recipe: Build, tmp_path: Path) -> None:
    changes = {**ADAPTED, "checkpoint.every_steps": 1, "train.ema": 0.5}
    clipkit.train(recipe(changes))
    other = {**changes, "output": str(tmp_path / "other")}
    interrupted(recipe(other), after=3)
    clipkit.train(recipe(other), resume=True)
    same_run(tmp_path / "run", tmp_path / "other")
    files = [tmp_path / name / "adapter" / "adapter_model.safetensors" for name in ("run", "other")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_dropout_is_on_in_training_only(recipe: Build) -> None:
    model = make_plan(recipe(ADAPTED)).model
    rates = {(part.dropout, part.training) for part in model.modules() if isinstance(part, LowRank)}
    assert rates == {(0.0, False), (0.2, True)}


def test_interpolated_adapters_are_the_interpolated_model(
    recipe: Build, tmp_path: Path, tiny_clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clipkit.train(recipe({**ADAPTED, "output": str(tmp_path / "whole")}))
    monkeypatch.setattr("clipkit.training.interpolation.ALPHAS", (0.0, 0.25, 1.0))
    monkeypatch.setattr("clipkit.training.interpolation.best_row", lambda rows, most: rows[1])
    clipkit.train(recipe({**ADAPTED, "eval.interpolate": True}))
    assert_same_features(tmp_path / "run" / "model", tmp_path / "run" / "adapter")
    start, end, found = (
        load_file(folder / "model.safetensors")
        for folder in (tiny_clip, tmp_path / "whole" / "model", tmp_path / "run" / "model")
    )
    for name, value in found.items():
        torch.testing.assert_close(value, 0.75 * start[name] + 0.25 * end[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model.image.lora": {"rank": 2}}, "image.lora"),
        ({"model.text.tune": "lora", "model.text.lora.rank": 0}, "model.text.lora.rank"),
        ({"model.text.tune": "lora", "model.text.lora.targets": ["q", "w"]}, "model.text.lora.targets"),
        ({"model.text.tune": "lora", "model.text.lora.targets": []}, "model.text.lora.targets"),
        ({"model.text.tune": "lora", "model.text.lora.rnk": 2}, "model.text.lora.rank"),
        ({"model": {"image": {"name": "timm:test_vit", "pretrained": False, "tune": "dora"}}}, "image.pretrained"),
    ],
)
def test_settings_that_do_not_apply_are_refused(recipe: Build, changes: dict[str, Any], named: str) -> None:
    with pytest.raises(RecipeError, match=named) as error:
        recipe(changes)
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_runs_merge_and_export(recipe: Build, tmp_path: Path, tiny_clip: Path) -> None:
    clipkit.train(recipe(ADAPTED))
    commands = [["merge", tiny_clip, tmp_path / "run", "--alpha", "0.5", "--out", tmp_path / "half"]]
    for source in ("run", "run/adapter", "half"):
        for name in ("open_clip", "onnx", "sentence-transformers"):
            commands.append(["export", tmp_path / source, "--to", name, "--out", tmp_path / name / source])
    for command in commands:
        done = python("-m", "clipkit", *command)
        assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("key", ["train.gradient_checkpointing", "train.compile"])
def test_checkpointed_and_compiled_trunks_train_the_same(recipe: Build, tmp_path: Path, key: str) -> None:
    changes = {**ADAPTED, "model.text.lora.dropout": 0.0, "optim.name": "sgd", "optim.lr": 0.05}
    clipkit.train(recipe({**changes, "output": str(tmp_path / "plain")}))
    clipkit.train(recipe({**changes, key: True}))
    plain, other = (read_lines(tmp_path / name / "metrics.jsonl") for name in ("plain", "run"))
    for one, two in zip(plain, other, strict=True):
        assert two == pytest.approx(one, rel=1e-4)
