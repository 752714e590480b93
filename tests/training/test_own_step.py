"""The step of a loop of one's own: two processes with micro-batches train as one graph does."""

from pathlib import Path
from typing import Any

import pytest
import torch

import clipkit
from clipkit.errors import DataError, RecipeError, TrainingError, UserError
from tests.forked import together
from tests.training import own_loop


@pytest.mark.parametrize("accumulate", [False, True])
def test_two_processes_and_micro_batches_train_as_one_graph(
    tiny_clip: Path, shapes: Path, tmp_path: Path, accumulate: bool
) -> None:
    arguments = [str(tiny_clip), str(shapes / "captions.csv"), str(tmp_path)]
    own_loop.main(*arguments, micro_batch_size=0, accumulate=accumulate)
    losses, state = torch.load(tmp_path / "1-0.pt")
    together(2, own_loop.__file__, *arguments, "2", *["accumulate"] * accumulate)
    for index in range(2):
        found, weights = torch.load(tmp_path / f"2-{index}.pt")
        torch.testing.assert_close(found, losses, rtol=1e-10, atol=0)
        for name, value in weights.items():
            torch.testing.assert_close(value, state[name], rtol=1e-10, atol=1e-12)


def test_earlier_gradients_survive_memory_errors(tiny_clip: Path) -> None:
    model = clipkit.load(tiny_clip, device="cpu")
    calls = []

    def loss(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        calls.append(len(x))
        if len(calls) in (2, 4, 5):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return (x - y).square().mean()

    step = clipkit.Step(model, loss, batch_size=2)
    inputs = {"pixel_values": torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))}, ["a", "b"]
    step(*inputs)
    once = {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}
    step(*inputs)
    assert len(calls) == 3
    twice = {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}
    assert twice.keys() == once.keys()
    for name, value in twice.items():
        torch.testing.assert_close(value, 2 * once[name], rtol=1e-4, atol=1e-6)
    with pytest.raises(TrainingError):
        step(*inputs)
    for name, value in twice.items():
        assert torch.equal(model.get_parameter(name).grad, value)


def test_wrong_batches_are_refused(tiny_clip: Path) -> None:
    model = clipkit.load(tiny_clip, device="cpu")
    step = clipkit.Step(model, lambda x, y: (x - y).square().mean(), batch_size=2)
    wrong: list[Any] = [(["a.png"], ["a", "b"]), ([], "ab"), ({"pixel_values": torch.zeros(2, 3, 32, 32)}, ["a"])]
    for images, captions in wrong:
        with pytest.raises(UserError):
            step(images, captions)
    inputs = {"pixel_values": torch.zeros(2, 3, 32, 32)}
    with pytest.raises(DataError, match="1 image ids"):
        step(inputs, ["a", "b"], image_ids=[7])
    assert step.steps == 0
    for options in ({"batch_size": 0}, {"batch_size": 4, "micro_batch_size": 0}):
        with pytest.raises(UserError, match="0"):
            clipkit.Step(model, clipkit.losses.infonce, **options)
    with pytest.raises(RecipeError, match="temperature"):
        clipkit.Step(model, lambda x, y, temperature: x, batch_size=2)


def test_equal_captions_have_equal_ids(tiny_clip: Path) -> None:
    seen: dict[str, torch.Tensor] = {}

    def loss(x: torch.Tensor, y: torch.Tensor, image_ids: torch.Tensor, caption_ids: torch.Tensor) -> torch.Tensor:
        seen.update(images=image_ids, captions=caption_ids)
        return (x - y).square().mean()

    step = clipkit.Step(clipkit.load(tiny_clip, device="cpu"), loss, batch_size=3, micro_batch_size=1)
    step({"pixel_values": torch.zeros(3, 3, 32, 32)}, ["a", "b", "a"])
    assert seen["images"].tolist() == [0, 1, 2]
    assert seen["captions"][0] == seen["captions"][2] != seen["captions"][1]
