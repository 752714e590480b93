"""Averaged weights, compared with a loop and in a run."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import clipkit
from clipkit.recipe import Recipe
from clipkit.training.folder.average import Average
from clipkit.training.folder.checkpoint import checkpoint_of, read_state, read_tensors
from clipkit.training.folder.resume import best_evaluation
from clipkit.training.folder.run_folder import RunFolder


def test_average_equals_a_loop(tmp_path: Path) -> None:
    layer = nn.Linear(3, 2).double()
    layer.bias.requires_grad_(False)
    average = Average({"weight": layer.weight}, 0.5)
    expected = layer.weight.detach().clone()
    for step in range(1, 20):
        layer.weight.data.add_(torch.randn(2, 3, dtype=torch.float64))
        average.update(step)
        decay = min(0.5, (1 + step) / (10 + step))
        for row in range(2):
            for column in range(3):
                expected[row, column] = decay * expected[row, column] + (1 - decay) * layer.weight.data[row, column]
    assert list(average.values) == ["weight"]
    torch.testing.assert_close(average.values["weight"], expected, rtol=0, atol=1e-12)
    current = layer.weight.detach().clone()
    with average.applied():
        torch.testing.assert_close(layer.weight.detach(), expected, rtol=0, atol=1e-12)
    assert torch.equal(layer.weight.detach(), current)


def test_current_weights_return_after_an_error() -> None:
    layer = nn.Linear(1, 1)
    average = Average(dict(layer.named_parameters()), 0.9)
    layer.weight.data.add_(1.0)
    current = layer.weight.item()
    with pytest.raises(KeyError), average.applied():
        raise KeyError
    assert layer.weight.item() == current


def test_run_evaluates_and_saves_the_averaged_weights(
    recipe: Callable[..., Recipe], tmp_path: Path, shapes: Path, tiny_clip: Path
) -> None:
    given = clipkit.load(tiny_clip, device="cpu")
    result = clipkit.train(recipe({"train.ema": 0.5, "train.epochs": 4}), model=given)
    run = RunFolder(tmp_path / "run")
    best = best_evaluation(run, "mean_recall")
    assert best is not None
    checkpoint = checkpoint_of(run.checkpoints, best["step"])
    saved = clipkit.load(run.path)
    average, model = read_tensors(checkpoint, "average"), read_tensors(checkpoint, "model")
    for name, value in saved.named_parameters():
        assert torch.equal(value, average[name]), name
    for name, value in given.named_parameters():
        assert torch.equal(value, average[name]), name
    assert any(not torch.equal(average[name], model[name]) for name in average)
    again = clipkit.evaluate.retrieval(saved, str(shapes / "captions.csv"))
    assert again["metrics"] == result["metrics"]
    assert read_state(checkpoint)["recipe"]["train"]["ema"] == 0.5
