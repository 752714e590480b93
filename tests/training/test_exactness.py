"""Gradients do not depend on micro-batches or processes: they equal those of one graph on one process."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor

from clipkit.seeds import mix
from clipkit.training import step as step_module
from tests.forked import together
from tests.training import exactness
from tests.training.exactness import OBJECTIVES, build, global_batch, gradients

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}
SLOW_FLOAT32 = pytest.param(torch.float32, marks=pytest.mark.slow)


def in_one_graph(loss: str, pairs: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return the gradients of plain autograd over the whole batch."""
    model = build(dtype, 0.0, loss)
    batch = global_batch(pairs, dtype)
    gathered = {"image_ids": batch.image_ids, "caption_ids": batch.caption_ids}
    for name, encoder in exactness.encoders(loss, model).items():
        features = encoder(batch.inputs[name])
        gathered[name] = features if encoder.of_trunk else F.normalize(features, dim=-1)
    assert model.logit_bias is not None
    scalars = {"scale": model.logit_scale.exp(), "bias": model.logit_bias}
    value = exactness.value(loss, model)(gathered, scalars, slice(0, pairs))
    value.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None} | {"loss": value.detach()}


def assert_agree(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    assert found.keys() == expected.keys()
    of_all = torch.stack([value.norm() for name, value in expected.items() if name != "loss"]).norm()
    for name, value in expected.items():
        assert (found[name] - value).norm() <= tolerance * (value.norm() + of_all), name


@pytest.mark.parametrize("dtype", [torch.float64, SLOW_FLOAT32])
@pytest.mark.parametrize("loss", OBJECTIVES)
def test_micro_batches_on_one_process(loss: str, dtype: torch.dtype) -> None:
    accelerator = Accelerator(cpu=True)
    for pairs, micro in exactness.cuts(loss):
        expected = in_one_graph(loss, pairs, dtype)
        assert_agree(gradients(loss, pairs, micro, dtype, 0.0, accelerator), expected, TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", [torch.float64, SLOW_FLOAT32])
@pytest.mark.parametrize("processes", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_micro_batches_on_several_processes(processes: int, dtype: torch.dtype, tmp_path: Path) -> None:
    together(processes, exactness.__file__, str(tmp_path), str(dtype).removeprefix("torch."))
    every = [torch.load(tmp_path / f"{processes}-{index}.pt", weights_only=False) for index in range(processes)]
    assert [count for count, _ in every] == [processes] * processes
    first: dict[Any, dict[str, Tensor]] = every[0][1]
    assert len(first) == sum(len(exactness.cuts(loss)) for loss in OBJECTIVES)
    for (loss, pairs, micro), found in first.items():
        assert_agree(found, in_one_graph(loss, pairs, dtype), TOLERANCE[dtype])
        for _, other in every[1:]:  # equal to the bit on every process, or the processes drift apart
            assert all(torch.equal(other[(loss, pairs, micro)][name], found[name]) for name in found)


@pytest.mark.parametrize("loss", ["infonce", "negclip", "SimCSE, text"])
@pytest.mark.parametrize("tokens", [1, 20, 1000])
def test_parts_with_a_number_of_tokens(loss: str, tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Use the parts of an accelerator, on a CPU."""
    monkeypatch.setattr(step_module, "is_accelerator", lambda device: True)
    monkeypatch.setattr(step_module, "_ACCELERATOR_TOKENS", tokens)
    for pairs, micro in exactness.cuts(loss):
        found = gradients(loss, pairs, micro, torch.float64, 0.0, Accelerator(cpu=True))
        assert_agree(found, in_one_graph(loss, pairs, torch.float64), TOLERANCE[torch.float64])


@pytest.mark.parametrize(
    ("lengths", "micro", "sizes"),
    [
        ([3, 4, 5, 6], 10, [2, 1, 1]),
        ([3, 4, 5, 6], 1, [1, 1, 1, 1]),
        ([1] * 7, 3, [3, 3, 1]),
        ([1, 1, 1, 4], 1, [3, 1]),  # four tokens, as one caption of the longest
        ([2, 2, 2, 11], 10, [3, 1]),
        ([10] * 8, 100, [2, 2, 2, 2]),  # a quarter of all tokens
        ([50], 1, [1]),
    ],
)
def test_sizes_of_text_parts(lengths: list[int], micro: int, sizes: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_module, "_ACCELERATOR_TOKENS", 10)
    assert step_module._sizes(torch.tensor(lengths), micro) == sizes


@pytest.mark.parametrize("micro", [1, 3, 8, 100])
@pytest.mark.parametrize("loss", ["infonce", "negclip", "cross_consistency", "SimCSE, text", "SimCLR, image, head"])
def test_dropout_masks_are_replayed(loss: str, micro: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compare with one graph over the same micro-batches with the same random states."""
    monkeypatch.setattr(step_module, "_CPU_CAPTIONS", 1000)
    pairs, dtype = 14, torch.float64
    found = gradients(loss, pairs, micro, dtype, 0.3, Accelerator(cpu=True))

    model, batch = build(dtype, 0.3), global_batch(pairs, dtype)
    gathered = {"image_ids": batch.image_ids, "caption_ids": batch.caption_ids}
    for number, (name, encoder) in enumerate(exactness.encoders(loss, model).items()):
        inputs, text = batch.inputs[name], name.startswith(("text", "negative"))
        order = inputs["attention_mask"].sum(1).argsort(stable=True) if text else torch.arange(pairs)
        parts = []
        for index, rows in enumerate(order.split(micro)):
            torch.manual_seed(mix(1, 7, 0, number, index))
            part = {key: value[rows] for key, value in inputs.items()}
            parts.append(encoder(model.text.cut_padding(part) if text else part))
        features = torch.cat(parts)[order.argsort()]
        gathered[name] = features if encoder.of_trunk else F.normalize(features, dim=-1)
    assert model.logit_bias is not None
    value = exactness.value(loss, model)(
        gathered,
        {"scale": model.logit_scale.exp(), "bias": model.logit_bias},
        slice(0, pairs),
    )
    value.backward()
    expected = {name: p.grad for name, p in model.named_parameters() if p.grad is not None} | {"loss": value.detach()}
    assert_agree(found, expected, 1e-10)
    without = in_one_graph(loss, pairs, dtype)
    assert (found["loss"] - without["loss"]).abs() > 1e-6  # the masks are there


def test_only_the_last_micro_batch_keeps_its_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each micro-batch runs twice except the last one, whose backward pass comes first."""
    runs: list[tuple[str, bool]] = []
    run = step_module._Encoding._run

    def counted(self: Any, index: int, following: int) -> Tensor:
        runs.append((type(self.encoder.tower).__name__, torch.is_grad_enabled()))
        return run(self, index, following)

    monkeypatch.setattr(step_module._Encoding, "_run", counted)
    gradients("infonce", 16, 4, torch.float64, 0.0, Accelerator(cpu=True))
    assert runs.count(("ImageTower", False)) == runs.count(("ImageTower", True)) == 4
    assert runs.count(("TextTower", False)) == 3
    assert runs.count(("TextTower", True)) == 4
    runs.clear()
    gradients("infonce", 16, 16, torch.float64, 0.0, Accelerator(cpu=True))
    assert runs == [("ImageTower", True), ("TextTower", True)]
