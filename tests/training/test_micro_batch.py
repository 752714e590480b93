"""The largest micro-batch that fits into memory."""

from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

import clipkit
from clipkit.data import EpochSampler, IndexedFeed, Policy, TextView, read_pairs
from clipkit.models.memory import graph_bytes
from clipkit.models.towers import TRUNK_FEATURES
from clipkit.models.tuning import tune
from clipkit.processes import Processes
from clipkit.training import micro_batch
from clipkit.training.inputs import TowerInputs
from clipkit.training.micro_batch import available_memory, find_micro_batch_size
from clipkit.training.objectives.objective import Encoded


def test_micro_batch_uses_half_of_the_memory_and_at_most_all_rows(
    tiny_clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, accelerator = clipkit.load(tiny_clip, device="cpu"), Accelerator(cpu=True)
    image = {"pixel_values": torch.zeros(2, 3, 32, 32)}
    text = model.text.tokenize(["red square " * 40] * 2)
    encoded = [(model.image, image), (model.text, text)]
    pair = sum(graph_bytes(tower, inputs) for tower, inputs in encoded) // 2

    def size_for(memory: int) -> int:
        monkeypatch.setattr(micro_batch, "available_memory", lambda: memory)
        return find_micro_batch_size(model, encoded, 64, Processes(accelerator), accelerator)

    assert size_for(40 * pair) == 20
    assert size_for(10000 * pair) == 64
    assert size_for(0) == 1


def test_available_memory_is_part_of_the_total() -> None:
    import psutil

    assert 0 < available_memory() <= psutil.virtual_memory().total


def test_example_inputs_do_not_share_memory_with_stored_features(tiny_clip: Path, shapes: Path) -> None:
    model, processes = clipkit.load(tiny_clip, device="cpu"), Processes(Accelerator(cpu=True))
    pairs = read_pairs(str(shapes / "captions.csv"))
    for tower in (model.image, model.text):
        tune(tower, "head")
    encoded = {
        "image_features": Encoded("image", Policy((), 32, model.image.preprocess.of_crop, model.image.preprocess, 0)),
        "text_features": Encoded("text", TextView("same", pairs)),
    }
    inputs = TowerInputs(model, IndexedFeed(pairs), processes, encoded, augmented=False)
    assert inputs.stores.keys() == encoded.keys()
    for name, example in inputs.example(2).items():
        assert example[TRUNK_FEATURES].untyped_storage().nbytes() == 2 * inputs.stores[name][0].nbytes
    # Each batch has the rows of its samples, in memory that the next batch reuses.
    sampler = EpochSampler(pairs, "one", 8, 0)
    for batch in inputs.batches(sampler.epoch(0), 0):
        for name, ids in (("image_features", batch.image_ids), ("text_features", batch.caption_ids)):
            assert torch.equal(batch.inputs[name][TRUNK_FEATURES], inputs.stores[name][ids])
