"""Slots of shared memory, and stacks of the inputs of a chunk."""

from pathlib import Path
from typing import Any

import pytest
import torch

from clipkit.data import slots
from clipkit.data.batch import Batch
from clipkit.data.slots import Place, Slots, Stack, slots_for
from tests.data.test_loader import batches_of, read_pairs


class Worker:
    id = 1


@pytest.fixture
def in_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots, "get_worker_info", Worker)


def image(value: int) -> dict[str, dict[str, Any]]:
    return {"a": {"pixels": torch.full((3, 2, 5), value, dtype=torch.uint8), "size": torch.tensor([value, 2])}}


def chunk(memory: Slots, *values: int) -> Batch:
    stack = Stack(len(values), memory)
    for row, value in enumerate(values):
        stack.put(row, image(value))
    numbers = torch.arange(len(values))
    return Batch(stack.inputs, numbers, numbers, numbers)


@pytest.mark.usefixtures("in_worker")
def test_a_slot_is_reused_after_it_was_freed_and_not_before() -> None:
    memory, _ = slots_for(image(0), 4, workers=2, ahead=2)
    assert memory is not None
    sent = [chunk(memory, number, 7) for number in range(4)]  # three slots, the fourth has none
    places = [part.inputs["a"]["pixels"] for part in sent]
    assert [isinstance(place, Place) for place in places] == [True, True, True, False]
    assert len({place.slot for place in places[:3]}) == 3
    for number, part in enumerate(sent):
        found = memory.opened(part).inputs["a"]
        assert found["pixels"].float().mean(dim=(1, 2, 3)).tolist() == [number, 7]
        assert found["pixels"].is_contiguous(memory_format=torch.channels_last)
        assert found["size"].tolist() == [[number, 2], [7, 2]]
    memory.free(sent[1])
    again = chunk(memory, 9, 9)
    assert again.inputs["a"]["pixels"].slot == places[1].slot
    assert memory.opened(sent[2]).inputs["a"]["size"].tolist() == [[2, 2], [7, 2]]
    memory.free_all()
    assert isinstance(chunk(memory, 1).inputs["a"]["pixels"], Place)


@pytest.mark.usefixtures("in_worker")
def test_a_larger_chunk_does_not_use_a_slot() -> None:
    memory = Slots(2, 3, 2 * 48)
    assert isinstance(chunk(memory, 1, 2).inputs["a"]["pixels"], Place)
    assert isinstance(chunk(memory, 1, 2, 3).inputs["a"]["pixels"], torch.Tensor)


def test_images_of_another_shape_are_an_error() -> None:
    stack = Stack(2)
    stack.put(0, {"a": {"x": torch.zeros(3)}})
    with pytest.raises(ValueError, match=r"a: x .*\(1,\).*\(3,\)"):
        stack.put(1, {"a": {"x": torch.zeros(1)}})
    stack.repeat(1, 0)
    assert stack.inputs["a"]["x"].shape == (2, 3)


def test_little_memory_gives_fewer_chunks_ahead_or_no_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    size = slots_for(image(0), 100, 1, 2)[0].size
    for free, ahead, has_slots in ((1 << 40, 20, True), (8 * 2 * size * 7, 6, True), (1000, 2, False)):
        monkeypatch.setattr(slots, "available_memory", lambda free=free: free)
        found, number = slots_for(image(0), 100, workers=2, ahead=20)
        assert (number, found is not None) == (ahead, has_slots)
    assert slots_for({}, 100, workers=2, ahead=20) == (None, 2)
    assert slots_for(image(0), 100, workers=0, ahead=20)[0] is None


def test_batches_are_the_same_without_slots(shapes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = read_pairs(str(shapes / "captions.csv"))
    expected = batches_of(pairs, 2)
    monkeypatch.setattr(slots, "available_memory", lambda: 0)
    for one, two in zip(expected, batches_of(pairs, 2), strict=True):
        for name, values in one.inputs.items():
            for key, value in values.items():
                assert torch.equal(value, two.inputs[name][key])
