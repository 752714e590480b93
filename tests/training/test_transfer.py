"""Batches that are loaded in a thread, and micro-batches; on the CPU with the memory that a GPU uses, and on a GPU."""

import os
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch

import clipkit
from clipkit.data import Batch, EpochSampler, InputMaker, Policy, TextView, pair_loader, read_pairs
from clipkit.errors import DataError, Interrupted
from clipkit.recipe import Recipe
from clipkit.recipe.policies import Crop
from clipkit.training import inputs, transfer
from clipkit.training.transfer import MicroBatches, PixelMemory, ahead
from tests.conftest import read_lines
from tests.data.test_loader import tokenize

CPU = torch.device("cpu")
Build = Callable[..., Recipe]


def pixels(image: object) -> dict[str, torch.Tensor]:
    assert isinstance(image, torch.Tensor)
    return {"pixel_values": image}


def loaded(source: Path, workers: int, memory: PixelMemory | None) -> Generator[Batch, None, None]:
    pairs = read_pairs(str(source / "captions.csv"))
    sampler = EpochSampler(pairs, "one", 6, 0)
    crop = Policy([Crop(scale=(0.3, 1.0))], 16, pixels, pixels, 0)
    maker = InputMaker({"image_features": crop}, {"text_features": TextView("same", pairs)}, tokenize)
    return pair_loader(pairs, sampler.slices(0, 7, slice(0, 6)), maker, workers, memory=memory)


def kept(batches: Iterator[Batch], device: torch.device = CPU) -> list[Batch]:
    """Copy batches, since the next one but one overwrites each."""
    return [
        replace(
            batch,
            inputs={
                name: {key: value.to("cpu").clone() for key, value in values.items()}
                for name, values in batch.inputs.items()
            },
        )
        for batch in batches
    ]


def same(one: list[Batch], two: list[Batch]) -> bool:
    return all(
        torch.equal(value, other.inputs[name][key]) and torch.equal(batch.caption_rows, other.caption_rows)
        for batch, other in zip(one, two, strict=True)
        for name, values in batch.inputs.items()
        for key, value in values.items()
    )


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "clipkit-batches"]


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_of_the_thread_are_those_of_the_loader(
    shapes: Path, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clipkit.data.loader._CHUNK", 4)
    memory = PixelMemory(CPU)
    found = kept(ahead(loaded(shapes, workers, memory), memory, in_thread=workers > 0))
    assert same(found, kept(loaded(shapes, 0, None)))
    assert not threads()


def made(memory: PixelMemory, log: list[int], count: int = 6) -> Generator[Batch, None, None]:
    ids = torch.arange(2)
    for number in range(count):
        memory.begin()
        log.append(number)
        if number == 4:
            raise DataError("the fifth batch is unreadable")
        memory.end()
        yield Batch({}, ids, ids, ids)


def test_an_error_arrives_with_its_type_after_the_batches_before_it() -> None:
    memory, log, used = PixelMemory(CPU), list[int](), list[Batch]()
    with pytest.raises(DataError, match="fifth"):
        used.extend(ahead(made(memory, log), memory, True))
    assert (len(used), log) == (4, [0, 1, 2, 3, 4])
    assert not threads()


def test_only_one_batch_is_loaded_ahead_and_the_thread_ends_when_the_run_does() -> None:
    memory, log = PixelMemory(CPU), list[int]()
    with closing(ahead(made(memory, log, 4), memory, True)) as batches:
        for number, _ in zip(range(2), batches, strict=False):
            while len(log) < number + 2:
                pass
            assert max(log) == number + 1
    assert not threads()


def test_a_run_does_not_wait_long_for_a_slow_loader(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "_PATIENCE", 0.01)
    memory, answer = PixelMemory(CPU), threading.Event()

    def slow() -> Generator[Batch, None, None]:
        yield from made(memory, [], 1)
        answer.wait(60)
        yield from made(memory, [], 1)

    with closing(ahead(slow(), memory, True)) as batches:
        next(batches)
    assert threads()
    answer.set()
    while threads():
        pass


def test_a_killed_worker_is_reported_and_none_is_left(shapes: Path) -> None:
    def workers() -> set[psutil.Process]:
        return {one for one in psutil.Process().children() if one.status() != psutil.STATUS_ZOMBIE}

    def kill_and_use_all() -> None:
        memory = PixelMemory(CPU)
        with closing(ahead(loaded(shapes, 1, memory), memory, True)) as batches:
            next(batches)
            (worker,) = workers() - before
            # A worker with nothing to do holds no lock. A worker that is killed while it reads the loader's event
            # leaves it locked; in a run, the loader's handler of SIGCHLD then reports the worker.
            time.sleep(0.3)
            worker.kill()
            worker.wait(5)
            list(batches)

    before = workers()
    with pytest.raises(RuntimeError, match="^DataLoader worker"):
        kill_and_use_all()
    assert not threads()
    assert workers() <= before


def test_a_run_is_the_same_with_the_thread_and_after_an_interruption(
    recipe: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"data.workers": 2, "train.epochs": 4, "train.batch_size": 6, "train.micro_batch_size": 4}
    clipkit.train(recipe({**changes, "output": str(tmp_path / "plain")}))
    used = []

    def memory(device: torch.device) -> PixelMemory:
        used.append(PixelMemory(device))
        return used[-1]

    monkeypatch.setattr(inputs, "pixel_memory", memory)
    log = clipkit.training.recorder.Recorder.log

    def interrupting(self: object, row: dict[str, int], *others: object, **times: float) -> None:
        log(self, row, *others, **times)
        if row["step"] == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr("clipkit.training.recorder.Recorder.log", interrupting)
    with pytest.raises(Interrupted):
        clipkit.train(recipe(changes))
    assert used
    assert not threads()
    clipkit.train(recipe(changes), resume=True)
    assert not threads()
    assert read_lines(tmp_path / "run" / "metrics.jsonl") == read_lines(tmp_path / "plain" / "metrics.jsonl")


def test_micro_batches_are_views_of_slices_and_cut_rows() -> None:
    values = {"x": torch.arange(24.0).view(6, 4), "image": torch.rand(6, 3, 2, 2).to(memory_format=torch.channels_last)}
    slices = [slice(0, 4), slice(4, 6)]
    parts = MicroBatches(values, slices, CPU)
    assert [torch.equal(parts.get(i, i + 1)["image"], values["image"][rows]) for i, rows in enumerate(slices)] == [
        True
    ] * 2
    assert parts.get(1)["image"].data_ptr() == values["image"][4:].data_ptr()
    rows = [torch.tensor([5, 0]), torch.tensor([1])]
    cut = MicroBatches(values, rows, CPU, lambda taken: {name: value[:, :1] for name, value in taken.items()})
    assert cut.get(0)["x"].tolist() == [[20.0], [0.0]]
    assert len(cut) == 2


@pytest.mark.gpu
@pytest.mark.parametrize("share", [16, 1 << 40])
def test_batches_and_micro_batches_on_a_gpu_have_the_same_bytes(
    shapes: Path, share: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "_DEVICE_SHARE", share)
    device = torch.device("cuda", torch.cuda.current_device())
    memory = PixelMemory(device)
    expected = kept(loaded(shapes, 0, None))
    rows = [slice(0, 4), slice(4, 6)]
    with closing(ahead(loaded(shapes, 2, memory), memory, True)) as batches:
        for plain, batch in zip(expected, batches, strict=True):
            images = batch.inputs["image_features"]
            assert images["pixel_values"].is_cuda == (share == 16)
            parts = MicroBatches(images, rows, device)
            for index in (0, 1, 0):
                found = parts.get(index, 1 - index)["pixel_values"]
                assert found.is_cuda
                assert torch.equal(found.cpu(), plain.inputs["image_features"]["pixel_values"][rows[index]])
            order = [torch.tensor([3, 1]), torch.tensor([0])]
            words = MicroBatches(batch.inputs["text_features"], order, device).get(0, 1)["input_ids"]
            assert torch.equal(words.cpu(), plain.inputs["text_features"]["input_ids"][order[0]])
