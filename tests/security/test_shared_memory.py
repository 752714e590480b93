"""A small /dev/shm, as in containers: batches go through pipes instead, and nothing of the result changes."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from clipkit.data import (
    EpochSampler,
    InputMaker,
    Policy,
    TextView,
    TokenStore,
    pair_loader,
    read_pairs,
    shared_memory,
    slots,
)
from clipkit.data.batch import Batch
from clipkit.data.shared_memory import Packed, packed, shared_zeros, unpacked
from clipkit.recipe.policies import Crop
from tests.data.test_loader import to_tensor, tokenize


def load(source: Path) -> list[Batch]:
    pairs = read_pairs(str(source))
    sampler = EpochSampler(pairs, "one", 8, 0)
    crop = Policy([Crop(scale=(0.3, 1.0))], 16, to_tensor, to_tensor, 0)
    maker = InputMaker({"image_features": crop}, {"text_features": TextView("same", pairs)}, tokenize)
    return list(pair_loader(pairs, sampler.slices(0, 2, slice(0, 8)), maker, 2, sampler.replacement))


@pytest.mark.parametrize("free", [0, 1 << 10, 1 << 20])
def test_batches_are_the_same_without_shared_memory(free: int, shapes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = load(shapes / "captions.csv")
    monkeypatch.setattr(shared_memory, "free_bytes", lambda: free)
    monkeypatch.setattr(slots, "available_memory", lambda: 0)
    for one, two in zip(expected, load(shapes / "captions.csv"), strict=True):
        for name, inputs in one.inputs.items():
            for key, value in inputs.items():
                assert torch.equal(value, two.inputs[name][key])
        assert torch.equal(one.image_ids, two.image_ids)
        assert torch.equal(one.caption_rows, two.caption_rows)


def test_a_packed_batch_has_no_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = torch.arange(3)
    batch = Batch({"a": {"x": numbers.float(), "y": numbers.bfloat16()}}, numbers, numbers, numbers, {1: "bad"})
    assert packed(batch) is batch  # not in a worker
    monkeypatch.setattr(shared_memory, "can_send_shared", lambda size: False)
    sent = packed(batch)
    assert isinstance(sent, Packed)
    assert not any(isinstance(value, torch.Tensor) for value in sent.batch.inputs["a"].values())
    back = unpacked(sent)
    assert torch.equal(back.inputs["a"]["y"], batch.inputs["a"]["y"])
    assert back.inputs["a"]["y"].dtype == torch.bfloat16
    assert torch.equal(back.image_ids, numbers)
    assert back.bad == {1: "bad"}


def test_the_token_store_does_not_use_shared_memory_files(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(torch.Tensor, "share_memory_", refuse)
    monkeypatch.setattr(shared_memory, "free_bytes", lambda: 0)
    store = TokenStore(["a", "dog"], lambda texts: {"input_ids": torch.tensor([[len(t)] for t in texts])}, 1, 0)
    assert store([1, 0])["input_ids"].tolist() == [[3], [1]]
    assert TokenStore.fits(1000, 77)


def test_forked_processes_share_the_memory() -> None:
    code = (
        "import os, torch\n"
        "from clipkit.data.shared_memory import shared_zeros\n"
        "values = shared_zeros(2, 3, dtype=torch.int32)\n"
        "process = os.fork()\n"
        "if not process:\n    values[1, 2] = 7\n    os._exit(0)\n"
        "os.waitpid(process, 0)\n"
        "assert values.tolist() == [[0, 0, 0], [0, 0, 7]]\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)
    assert shared_zeros(0).shape == (0,)
