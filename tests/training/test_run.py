"""A whole run, through the public API."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CLIPModel

import clipkit
from clipkit.errors import DataError, OutputError, RecipeError, TrainingError
from clipkit.recipe import Recipe
from tests.conftest import read_lines

Build = Callable[..., Recipe]
COMPOSED = {
    "name": None,
    "image": {"name": "timm:test_convnext", "pretrained": False, "image_size": 32},
    "text": {
        "name": "hf:bert",
        "pretrained": False,
        "tokenizer": "open_clip:ViT-B-32",
        "context_length": 8,
        "config": {
            "hidden_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 32,
        },
    },
    "embed_dim": 16,
}


def test_run_folder_has_all_files_of_the_design(recipe: Build, tmp_path: Path, shapes: Path) -> None:
    result = clipkit.train(recipe({"train.epochs": 3}))
    run = tmp_path / "run"
    assert {path.name for path in run.iterdir()} == {
        "recipe.yaml", "metrics.jsonl", "speed.jsonl", "evaluations.jsonl", "results.json", "report.html",
        "checkpoints", "model", "log.txt", "findings.json", ".clipkit-run",
    }  # fmt: skip
    rows = read_lines(run / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, 7))
    assert set(rows[0]) == {
        "step", "epoch", "seen", "loss", "lr", "scale", "grad_norm", "image_accuracy", "text_accuracy",
        "positive_cosine", "negative_cosine", "image_cosine", "text_cosine",
    }  # fmt: skip
    assert rows[-1]["seen"] == 48
    assert Recipe.from_yaml(run / "recipe.yaml") == recipe({"train.epochs": 3})
    assert json.loads((run / "results.json").read_text()) == result
    assert set(result["metrics"]["mean_recall"]) == {"value", "low", "high", "chance"}
    assert "1 process on" in (run / "log.txt").read_text()
    assert "16 images, 32 captions" in (run / "report.html").read_text(encoding="utf-8")


def test_run_learns_and_reports_the_metrics_of_the_saved_model(recipe: Build, tmp_path: Path, shapes: Path) -> None:
    result = clipkit.train(recipe({"train.epochs": 30, "optim.lr": 3e-3, "data.augment": "none"}))
    rows = read_lines(tmp_path / "run" / "metrics.jsonl")
    assert rows[-1]["loss"] < 0.3 * rows[0]["loss"]
    again = clipkit.evaluate.retrieval(clipkit.load(tmp_path / "run"), str(shapes / "captions.csv"))
    assert again["metrics"] == result["metrics"]
    assert result["metrics"]["mean_recall"]["value"] > 0.8
    best = max(read_lines(tmp_path / "run" / "evaluations.jsonl"), key=lambda row: row["mean_recall"])
    assert best["mean_recall"] == pytest.approx(result["metrics"]["mean_recall"]["value"])


def test_fine_tuned_model_opens_in_transformers(recipe: Build, tmp_path: Path, tiny_clip: Path) -> None:
    clipkit.train(recipe())
    tuned = clipkit.load(tmp_path / "run")
    native = CLIPModel.from_pretrained(tmp_path / "run" / "model").eval()
    tokens = tuned.text.tokenize(["a red square"])
    with torch.inference_mode():
        expected = torch.nn.functional.normalize(native.get_text_features(**tokens).pooler_output, dim=-1)
    torch.testing.assert_close(tuned.encode_text(["a red square"]), expected, rtol=0, atol=1e-6)
    before = clipkit.load(tiny_clip)
    assert not torch.equal(tuned.encode_text(["a red square"]), before.encode_text(["a red square"]))


@pytest.mark.parametrize("workers", [0, 2])
def test_same_recipe_gives_the_same_bits(recipe: Build, tmp_path: Path, workers: int) -> None:
    torch.rand(7)  # the state of the global random generator must not matter
    clipkit.train(recipe({"output": str(tmp_path / "a"), "data.workers": workers}))
    clipkit.train(recipe({"output": str(tmp_path / "b"), "data.workers": 0}))
    assert (tmp_path / "a" / "metrics.jsonl").read_text() == (tmp_path / "b" / "metrics.jsonl").read_text()
    one, two = (CLIPModel.from_pretrained(tmp_path / name / "model").state_dict() for name in "ab")
    assert all(torch.equal(value, two[name]) for name, value in one.items())


def test_resume_within_an_epoch_gives_the_same_bits(
    recipe: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"train.epochs": 5, "train.batch_size": 5, "checkpoint.every_steps": 4}
    clipkit.train(recipe({**changes, "output": str(tmp_path / "whole")}))
    from clipkit.training.step import Step

    step = Step.__call__
    steps = 0

    def fails_at_step_11(*arguments: Any) -> torch.Tensor:
        nonlocal steps
        steps += 1
        if steps == 11:
            raise KeyboardInterrupt
        return step(*arguments)

    monkeypatch.setattr(Step, "__call__", fails_at_step_11)
    with pytest.raises(KeyboardInterrupt):
        clipkit.train(recipe(changes))
    clipkit.train(recipe(changes), resume=True)
    for name in ("metrics.jsonl", "evaluations.jsonl"):
        assert (tmp_path / "run" / name).read_text() == (tmp_path / "whole" / name).read_text()
    one, two = (CLIPModel.from_pretrained(tmp_path / name / "model").state_dict() for name in ("run", "whole"))
    assert all(torch.equal(value, two[name]) for name, value in one.items())
    assert steps == 11 + 6  # resumed from step 9, which has a checkpoint because of its evaluation


def test_frozen_trunks_run_once_and_give_the_same_loss(recipe: Build, tmp_path: Path) -> None:
    changes = {
        "model.image.tune": "head",
        "model.text.tune": "head",
        "data.augment": "none",
        "train.epochs": 4,
    }
    clipkit.train(recipe(changes))
    log = (tmp_path / "run" / "log.txt").read_text()
    assert log.count("outputs of the image tower for 16 images") == 2  # for training and for validation
    assert log.count("outputs of the text tower for 32 captions") == 2
    stored = read_lines(tmp_path / "run" / "metrics.jsonl")
    # A crop of the whole image gives the same pixels, but counts as augmentation.
    whole = {
        "data.augment": "crop",
        "data.crop_scale": [1.0, 1.0],
        "output": str(tmp_path / "each"),
        "model.text.tune": "full",
    }
    clipkit.train(recipe({**changes, **whole}))
    assert (tmp_path / "each" / "log.txt").read_text().count("outputs of the image tower") == 1
    each = read_lines(tmp_path / "each" / "metrics.jsonl")
    assert stored[0]["loss"] == pytest.approx(each[0]["loss"], abs=1e-5)


def test_two_towers_train_from_scratch(recipe: Build, tmp_path: Path, shapes: Path) -> None:
    result = clipkit.train(recipe({"model": COMPOSED, "train.epochs": 2}))
    again = clipkit.evaluate.retrieval(clipkit.load(tmp_path / "run"), str(shapes / "captions.csv"))
    assert again["metrics"] == result["metrics"]


def test_run_without_validation_keeps_the_last_weights(recipe: Build, tmp_path: Path) -> None:
    result = clipkit.train(recipe({"data.validation": None}))
    assert result["metrics"] == {}
    assert clipkit.load(tmp_path / "run").encode_text(["a"]).shape == (1, 24)
    assert not (tmp_path / "run" / "evaluations.jsonl").exists()


def test_scale_is_limited_to_100_or_its_initial_value(recipe: Build, tmp_path: Path, tiny_clip: Path) -> None:
    warm = clipkit.load(tiny_clip)
    for start, largest in ((4.6, 100.0), (5.0, 148.5)):
        with torch.no_grad():
            warm.logit_scale.fill_(start)
        warm.save(tmp_path / "warm")
        # Once the model tells pairs apart, the loss falls with the scale: a large learning rate raises the scale.
        changes = {"model.name": str(tmp_path / "warm"), "optim.lr": 0.05, "model.image.tune": "frozen"}
        clipkit.train(recipe({**changes, "model.text.tune": "frozen"}), overwrite=True)
        scales = [row["scale"] for row in read_lines(tmp_path / "run" / "metrics.jsonl")]
        assert max(scales) <= largest * (1 + 1e-5)


def test_train_changes_a_run_folder_only_with_overwrite(recipe: Build, tmp_path: Path) -> None:
    clipkit.train(recipe())
    before = (tmp_path / "run" / "metrics.jsonl").read_text()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="run: already .*--resume.*--overwrite"):
        clipkit.train(recipe())
    # Invalid input is found before any file of the old run is removed.
    with pytest.raises(DataError):
        clipkit.train(recipe({"data.train": "none.csv"}), overwrite=True)
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == before
    clipkit.train(recipe({"train.seed": 1}), overwrite=True)
    assert (tmp_path / "run" / "metrics.jsonl").read_text() != before
    assert (tmp_path / "run" / "notes.txt").read_text() == "mine"


def test_train_refuses_an_output_below_a_file(recipe: Build, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="file/run"):
        clipkit.train(recipe({"output": str(tmp_path / "file" / "run")}))


def test_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_weights(
    recipe: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from clipkit.training.step import Step

    gradients, step = Step.__call__, 3
    monkeypatch.setattr(Step, "__call__", lambda self, batch, now: gradients(self, batch, now) / (now != step - 1))
    with pytest.raises(TrainingError, match=r"step 3: .*loss is inf.* step 2 .*optim.lr"):
        clipkit.train(recipe({"train.epochs": 5}))
    rows = read_lines(tmp_path / "run" / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, step))
    assert all(math.isfinite(row["loss"]) for row in rows)
    assert (tmp_path / "run" / "checkpoints" / f"step-{step - 1:06d}" / "model.safetensors").is_file()
    log = (tmp_path / "run" / "log.txt").read_text()
    names = log.split(f"images of step {step}: ")[1].split("\n")[0].split()
    assert len(names) == 8
    assert all(name.endswith(".png") for name in names)


BATCH_NORM = COMPOSED | {"image": {"name": "timm:test_resnet", "pretrained": False, "image_size": 32}}


def test_batch_norm_from_scratch_refuses_micro_batches(recipe: Build, tmp_path: Path) -> None:
    clipkit.train(recipe({"model": BATCH_NORM}))
    with pytest.raises(RecipeError, match=r"BatchNorm .* 4 rows .*train.micro_batch_size"):
        clipkit.train(recipe({"model": BATCH_NORM, "train.micro_batch_size": 4}), overwrite=True)


def test_pretrained_batch_norm_keeps_its_statistics(recipe: Build, tmp_path: Path) -> None:
    clipkit.train(recipe({"model": BATCH_NORM}))
    image = {"name": str(tmp_path / "run" / "model" / "image")}
    tuned = recipe({"model": BATCH_NORM | {"image": image}, "train.micro_batch_size": 4, "output": str(tmp_path / "b")})
    clipkit.train(tuned)
    before, after = (
        {name: value for name, value in clipkit.load(tmp_path / run).image.state_dict().items() if "running" in name}
        for run in ("run", "b")
    )
    assert before
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_sigmoid_loss_trains_a_model_with_a_bias(recipe: Build, tmp_path: Path) -> None:
    model = COMPOSED | {"bias": -10.0, "temperature": 0.1}
    clipkit.train(recipe({"model": model, "loss.name": "sigmoid", "optim.lr": 0.01, "train.epochs": 10}))
    rows = read_lines(tmp_path / "run" / "metrics.jsonl")
    assert rows[-1]["loss"] < 0.7 * rows[0]["loss"]
    bias = clipkit.load(tmp_path / "run").logit_bias
    assert bias is not None
    assert bias.item() != -10


@pytest.mark.parametrize("model", [None, COMPOSED])
def test_gradient_checkpointing_gives_the_same_losses(
    recipe: Build, tmp_path: Path, model: dict[str, Any] | None
) -> None:
    changes = {} if model is None else {"model": model}
    sgd = {"optim.name": "sgd", "optim.lr": 0.05, **changes}
    clipkit.train(recipe({**sgd, "output": str(tmp_path / "plain")}))
    clipkit.train(recipe({**sgd, "train.gradient_checkpointing": True}))
    plain, checkpointed = (read_lines(tmp_path / name / "metrics.jsonl") for name in ("plain", "run"))
    for one, two in zip(plain, checkpointed, strict=True):
        assert two == pytest.approx(one, rel=1e-5)


@pytest.mark.slow
def test_dropout_is_off_unless_the_recipe_sets_it(recipe: Build, tmp_path: Path) -> None:
    from clipkit.training.model import model_of

    rates = [
        layer.p for layer in model_of(recipe({"model": COMPOSED})).modules() if isinstance(layer, torch.nn.Dropout)
    ]
    assert max(rates) > 0  # the default of the configuration, in layers that are in evaluation mode
    first = []
    for name, rate in (("off", 0.0), ("on", 0.5)):
        clipkit.train(recipe({"model": COMPOSED, "model.text.dropout": rate, "output": str(tmp_path / name)}))
        first.append(read_lines(tmp_path / name / "metrics.jsonl")[0]["loss"])
    assert first[0] != pytest.approx(first[1], abs=1e-4)


@pytest.mark.slow
def test_compiled_trunks_train_the_same(recipe: Build, tmp_path: Path) -> None:
    sgd = {"optim.name": "sgd", "optim.lr": 0.05}
    clipkit.train(recipe({**sgd, "output": str(tmp_path / "plain")}))
    clipkit.train(recipe({**sgd, "train.compile": True}))
    plain, compiled = (read_lines(tmp_path / name / "metrics.jsonl") for name in ("plain", "run"))
    for one, two in zip(plain, compiled, strict=True):
        assert two == pytest.approx(one, rel=1e-4)
    assert CLIPModel.from_pretrained(tmp_path / "run" / "model") is not None


def test_measuring_the_micro_batch_does_not_change_batch_norm(recipe: Build, tmp_path: Path) -> None:
    states = []
    for name, micro in (("given", 8), ("measured", "auto")):
        changes = {"model": BATCH_NORM, "train.micro_batch_size": micro, "output": str(tmp_path / name)}
        clipkit.train(recipe(changes))
        states.append(clipkit.load(tmp_path / name).state_dict())
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
