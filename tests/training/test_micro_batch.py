"""How many pairs fit."""

from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

import clipkit
from clipkit.data import EpochSampler, Policy, TextView, read_pairs
from clipkit.models.memory import graph_bytes
from clipkit.models.towers import TRUNK_FEATURES
from clipkit.models.tuning import tune
from clipkit.processes import Processes
from clipkit.training import micro_batch
from clipkit.training.inputs import TowerInputs
from clipkit.training.micro_batch import available_memory, find_micro_batch_size
from clipkit.training.objectives.objective import Encoded


def test_half_of_the_memory_is_filled_and_never_more_than_there_are_rows(
    tiny_clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, accelerator = clipkit.load(tiny_clip, device="cpu"), Accelerator(cpu=True)
    image = {"pixel_values": torch.zeros(2, 3, 32, 32)}
    text = model.text.tokenize(["red square " * 40] * 2)
    encoded = [(model.image, image), (model.text, text)]
    pair = sum(graph_bytes(tower, inputs) for tower, inputs in encoded) // 2

    def found(memory: int) -> int:
        monkeypatch.setattr(micro_batch, "available_memory", lambda: memory)
        return find_micro_batch_size(model, encoded, 64, Processes(accelerator), accelerator)

    assert found(40 * pair) == 20
    assert found(10000 * pair) == 64
    assert found(0) == 1


def test_there_is_memory() -> None:
    import psutil

    assert 0 < available_memory() <= psutil.virtual_memory().total


def test_what_frozen_trunks_gave_is_not_counted_for_every_pair(tiny_clip: Path, shapes: Path) -> None:
    model, processes = clipkit.load(tiny_clip, device="cpu"), Processes(Accelerator(cpu=True))
    pairs = read_pairs(str(shapes / "captions.csv"))
    for tower in (model.image, model.text):
        tune(tower, "head")
    encoded = {
        "image_features": Encoded("image", Policy((), 32, model.image.preprocess.of_crop, model.image.preprocess, 0)),
        "text_features": Encoded("text", TextView("same", pairs)),
    }
    inputs = TowerInputs(model, pairs, processes, encoded, augmented=False)
    assert inputs.stores.keys() == encoded.keys()
    for name, own in inputs.example(2).items():
        assert own[TRUNK_FEATURES].untyped_storage().nbytes() == 2 * inputs.stores[name][0].nbytes
    # Each batch finds its own rows, in memory that is used again.
    sampler = EpochSampler(pairs, "one", 8, 0)
    for batch in inputs.batches(sampler.epoch(0), 0):
        for name, ids in (("image_features", batch.image_ids), ("text_features", batch.caption_ids)):
            assert torch.equal(batch.inputs[name][TRUNK_FEATURES], inputs.stores[name][ids])
