"""Streams: each sample once per epoch, and exact from any step."""

import functools
import http.server
import io
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as F

import clipkit
from clipkit.data import Batch, InputMaker, Loading, Policy, StreamFeed, stream, stream_feed
from clipkit.data.sources import read_ahead, streams
from clipkit.data.sources.read_ahead import ReadAhead
from clipkit.errors import DataError, Interrupted, RecipeError
from clipkit.images import InMemory
from clipkit.recipe import Recipe, steps_of
from clipkit.training.recorder import Recorder
from clipkit.training.transfer import PixelMemory, ahead
from tests.conftest import read_lines
from tests.data.test_sources import Made, _hub, write_shards
from tests.training.test_transfer import kept

_COUNT = 200


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(tmp_path_factory.mktemp("made"))


@pytest.fixture(scope="module")
def address(made: Made, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Shards of 60, 50, 45 and 45 samples behind an HTTP server without range requests."""
    folder = tmp_path_factory.mktemp("served")
    write_shards(made, folder, (60, 110, 155))
    handler = functools.partial(_Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/shards-{{000..003}}.tar"
        server.shutdown()


def tokenize(texts: list[str]) -> dict[str, torch.Tensor]:
    return {"input_ids": torch.tensor([list(text.encode().ljust(40)[:40]) for text in texts])}


def pixels(image: Image.Image) -> dict[str, torch.Tensor]:
    return {"pixel_values": F.pil_to_tensor(image)}


def opened(source: str, samples: int = _COUNT) -> StreamFeed:
    feed = stream_feed(source, samples)
    assert feed is not None
    return feed


def batches(
    feed: StreamFeed,
    first: int,
    last: int,
    workers: int,
    process: tuple[int, int] = (0, 1),
    size: int = 20,
    memory: PixelMemory | None = None,
) -> list[Batch]:
    sampler = feed.sampler("one", size * process[1], 3)
    stretch = sampler.slices(first, last, slice(process[0] * size, (process[0] + 1) * size))
    augments = {"image_features": Policy(steps_of("moco"), 8, pixels, pixels, 3)}
    maker = InputMaker(augments, {"text_features": str}, tokenize)
    loaded = feed.loader(stretch, maker, Loading(workers, 3, process, memory=memory))
    return list(loaded) if memory is None else kept(ahead(loaded, memory, in_thread=workers > 0))


def texts_of(found: list[Batch]) -> list[str]:
    rows = [row for batch in found for row in batch.inputs["text_features"]["input_ids"].tolist()]
    return [bytes(row).decode().strip() for row in rows]


def test_a_worker_that_dies_while_it_sends_is_reported(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: object) -> object:
        raise EOFError

    monkeypatch.setattr(stream.DataLoader, "__iter__", broken)
    with pytest.raises(RuntimeError, match="^DataLoader worker is gone: ."):
        batches(opened(address), 0, 2, 1)


def same(one: list[Batch], two: list[Batch]) -> bool:
    def values(batch: Batch) -> list[torch.Tensor]:
        return [value for own in batch.inputs.values() for value in own.values()] + [batch.image_ids, batch.caption_ids]

    return len(one) == len(two) and all(
        torch.equal(a, b) for x, y in zip(one, two, strict=True) for a, b in zip(values(x), values(y), strict=True)
    )


@pytest.mark.parametrize("workers", [0, 2, pytest.param(3, marks=pytest.mark.slow)])
def test_each_sample_once_per_epoch_and_exact_from_any_step(
    made: Made, address: str, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "_CHUNK", 16)
    monkeypatch.setattr(stream, "_BUFFER", 30)
    pairs = opened(address)
    found = batches(pairs, 0, 20, workers)
    numbers = []
    for epoch in (0, 1):
        texts = texts_of(found[10 * epoch : 10 * epoch + 10])
        numbers.append([int(text.split()[1].rstrip(",")) for text in texts])
        assert sorted(numbers[-1]) == list(range(_COUNT))
        assert all(text in made.captions[number] for text, number in zip(texts, numbers[-1], strict=True))
        ids = [batch.image_ids for batch in found[10 * epoch : 10 * epoch + 10]]
        assert len(torch.cat(ids).unique()) == _COUNT
    assert numbers[0] != numbers[1]
    assert same(found, batches(pairs, 0, 20, workers, memory=PixelMemory(torch.device("cpu"))))
    said = {int(text.split()[1].rstrip(",")): text for text in texts_of(found[:10])}
    again = {int(text.split()[1].rstrip(",")): text for text in texts_of(found[10:])}
    assert all((said[number] != again[number]) == (number % 3 > 0) for number in range(_COUNT))
    for first in (3, 9, 13, 19):
        assert same(batches(pairs, first, 20, workers), found[first:])


def test_samples_before_the_first_step_are_not_decoded(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "_CHUNK", 16)
    images = []

    def counted(image: Any, draft: Any) -> Image.Image:
        images.append(str(image))
        return clipkit.images.open_image(image, draft)

    monkeypatch.setattr("clipkit.data.batch.open_image", counted)
    batches(opened(address), 8, 10, 0)
    assert len(images) <= 3 * 16


@pytest.mark.parametrize(("workers", "processes"), [(0, 2), (1, 2), (0, 4), pytest.param(4, 2, marks=pytest.mark.slow)])
def test_processes_share_the_stream(address: str, workers: int, processes: int) -> None:
    pairs = opened(address, 160)
    steps = 8 // processes  # of 20 pairs on each process
    found = [texts_of(batches(pairs, 0, steps, workers, (index, processes))) for index in range(processes)]
    numbers = [{int(text.split()[1].rstrip(",")) for text in own} for own in found]
    assert [len(own) for own in numbers] == [160 // processes] * processes
    assert len(set.union(*numbers)) == 160


def test_unreadable_images_are_replaced_by_others_of_the_stream(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "_CHUNK", 16)
    write_shards(made, tmp_path, (100,))
    sound = batches(opened(f"{tmp_path}/shards-{{000..001}}.tar?stream=true"), 0, 10, 0)
    broken = {f"{number:03d}.png" for number in (3, 77, 150)}
    write_shards(made, tmp_path, (100,), broken)
    pairs = opened(f"{tmp_path}/shards-{{000..001}}.tar?stream=true")
    found = batches(pairs, 0, 10, 0)
    assert sum(len(batch) for batch in found) == _COUNT
    bad = {image: why for batch in found for image, why in batch.bad.items()}
    assert {why.split(": ")[0].rpartition("/")[2] for why in bad.values()} == broken
    for one, two in zip(sound, found, strict=True):
        kept = torch.tensor([image not in bad for image in one.image_ids.tolist()])
        assert torch.equal(one.image_ids[kept], two.image_ids[kept])
        assert not set(two.image_ids.tolist()) & bad.keys()
        for name, key in (("image_features", "pixel_values"), ("text_features", "input_ids")):
            assert torch.equal(one.inputs[name][key][kept], two.inputs[name][key][kept])
    assert same(batches(pairs, 6, 10, 0), found[6:])


def test_a_dataset_of_the_hub_is_streamed(made: Made, tmp_path: Path) -> None:
    source = _hub(made, tmp_path)
    found = texts_of(batches(opened(f"{source}?stream=true"), 0, 10, 0))
    assert sorted(int(text.split()[1].rstrip(",")) for text in found) == list(range(_COUNT))


def test_errors_name_the_address_and_the_problem_in_one_line(made: Made, address: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="data.samples"):
        stream_feed(address, None)
    with pytest.raises(DataError, match=r"ended after 200 of the 220 samples .* lower data.samples"):
        batches(opened(address, 220), 0, 11, 0)
    with pytest.raises(DataError, match=r"shards-00\d.tar: cannot be read .*\(FileNotFoundError") as caught:
        batches(opened(address.replace("003}", "009}"), 400), 0, 20, 1)
    assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match="stream_"):
        stream_feed(f"{address}?stream_=1", 10)
    with pytest.raises(DataError, match="only .tar shards and hf:NAME can be streamed"):
        stream_feed("p.csv?stream=true", 10)
    assert stream_feed("p.csv", None) is None
    assert stream_feed("p-{000..003}.tar", None) is None
    write_shards(made, tmp_path, ())
    whole = (tmp_path / "shards-000.tar").read_bytes()
    for end, said in ((len(whole) // 2, "is truncated"), (len(whole) // 2 + 600, "is truncated|cannot be read")):
        (tmp_path / "shards-000.tar").write_bytes(whole[:end])
        with pytest.raises(DataError, match=said):
            batches(opened(f"{tmp_path}/shards-000.tar?stream=true"), 0, 10, 0)


class _Dropping(_Quiet):
    """Handler that sends a part of a shard and closes the connection, in the first `drops` requests."""

    drops = 0

    def copyfile(self, source: Any, outputfile: Any) -> None:
        if type(self).drops:
            type(self).drops -= 1
            outputfile.write(source.read(70_000))
            self.close_connection = True
        else:
            super().copyfile(source, outputfile)


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_lost_connection_is_opened_again_and_counted(
    made: Made, tmp_path: Path, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read_ahead, "BACK_OFF", 0.01)
    monkeypatch.setattr(streams, "BACK_OFF", 0.01)
    write_shards(made, tmp_path, (60, 110, 155))
    handler = functools.partial(_Dropping, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        shards = f"http://127.0.0.1:{server.server_port}/shards-{{000..003}}.tar"
        _Dropping.drops = 2
        feed = opened(shards)
        found = batches(feed, 0, 10, workers)
        assert _Dropping.drops == 0
        assert feed.reopened == 2
        assert sorted(int(text.split()[1].rstrip(",")) for text in texts_of(found)) == list(range(_COUNT))
        _Dropping.drops = 1000
        with pytest.raises(DataError, match=r"shards-00\d.tar: cannot be read completely"):
            batches(opened(shards), 0, 10, workers)
        _Dropping.drops = 0
        server.shutdown()


class _Failing(io.BytesIO):
    """File whose connection is lost after some bytes; it counts the bytes that were read."""

    sent = 0

    def __init__(self, content: bytes, lost_after: int | None = None, can_seek: bool = True) -> None:
        super().__init__(content)
        self.lost_after, self.can_seek = lost_after, can_seek

    def read(self, size: int | None = -1) -> bytes:
        if self.lost_after is not None and self.tell() >= self.lost_after:
            raise OSError("connection reset")
        block = super().read(size)
        _Failing.sent += len(block)
        return block

    def seek(self, position: int, whence: int = 0) -> int:
        if not self.can_seek and position != self.tell():
            raise ValueError("cannot seek")
        return super().seek(position, whence)


@pytest.mark.parametrize("can_seek", [True, False])
def test_read_ahead_continues_at_the_same_byte(can_seek: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read_ahead, "BACK_OFF", 0.001)
    monkeypatch.setattr(read_ahead, "BLOCK", 10)
    content, lost = bytes(range(100)), iter([30, 60, 90, None])
    again: list[int] = []
    with ReadAhead(lambda: _Failing(content, next(lost), can_seek), 40, lambda: again.append(1)) as file:
        assert b"".join(iter(lambda: file.read(7), b"")) == content
    assert len(again) == 3  # more than the attempts for one block
    with (
        ReadAhead(lambda: _Failing(content, 30), 40) as file,
        pytest.raises(OSError, match="connection reset"),
    ):
        list(iter(lambda: file.read(7), b""))


def test_read_ahead_holds_a_limited_number_of_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read_ahead, "BLOCK", 10)
    _Failing.sent = 0
    with ReadAhead(lambda: _Failing(bytes(1000)), 40) as file:
        for expected in (50, 60):  # a full buffer and a block that waits for room; then one block more
            deadline = time.monotonic() + 20
            while _Failing.sent < expected:
                assert time.monotonic() < deadline
                time.sleep(0.001)
            time.sleep(0.02)
            assert _Failing.sent == expected
            assert len(file.read(25)) == 10


@pytest.mark.slow
def test_ten_thousand_shards_are_listed_at_once() -> None:
    began = time.process_time()
    assert len(opened("https://host/shards-{00000..09999}.tar").stream.parts) == 10_000
    assert time.process_time() - began < 2  # 0.3 s


@pytest.mark.slow
def test_a_run_on_a_stream_resumes_exactly(
    recipe: Callable[..., Recipe], address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = {"data.train": address, "data.samples": 200, "train.batch_size": 40, "data.workers": 2}
    clipkit.train(recipe({**own, "output": str(tmp_path / "whole")}))
    log = Recorder.log

    def interrupting(self: Recorder, row: dict[str, Any], *others: Any, **times: float) -> None:
        log(self, row, *others, **times)
        if row["step"] == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Recorder, "log", interrupting)
    with pytest.raises(Interrupted):
        clipkit.train(recipe(own))
    monkeypatch.setattr(Recorder, "log", log)
    with pytest.raises(RecipeError, match="the processes and workers that read the stream changed"):
        clipkit.train(recipe({**own, "data.workers": 1}), resume=True)
    clipkit.train(recipe(own), resume=True)
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == (tmp_path / "whole" / "metrics.jsonl").read_text()
    assert len(read_lines(tmp_path / "run" / "metrics.jsonl")) == 10
    assert "a stream in 4 parts, 200 pairs per epoch" in (tmp_path / "run" / "log.txt").read_text()
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["metrics"]
    assert results["settings"]["reopened_connections"] == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.captions": "all"}, "is a stream, which does not support data.captions: all"),
        ({"data.validation": 0.1}, "is a stream, which does not support a share in data.validation"),
        ({"data.safe": True}, "is a stream, which does not support data.safe"),
        ({"loss.name": "negclip"}, "is a stream, which does not support negative captions"),
        ({"data.samples": 4}, "train.batch_size is 8, but data.samples is only 4"),
        ({"data.samples": None}, "set data.samples"),
    ],
)
def test_settings_without_stream_support_are_refused(
    recipe: Callable[..., Recipe], changes: dict[str, Any], message: str
) -> None:
    own = {"data.train": "http://127.0.0.1:9/a.tar", "data.samples": 100, **changes}
    with pytest.raises((RecipeError, DataError), match=message):
        clipkit.train(recipe(own))


def test_identities_are_hashes_of_the_location_and_the_caption() -> None:
    held = InMemory("http://a/b.tar/1.jpg", b"")
    assert streams.StreamSample(held, ["x"]).identity == streams.StreamSample(held, ["y"]).identity
    assert streams.identity_of("x") == streams.identity_of("x") != streams.identity_of("y")
    assert 0 <= streams.identity_of("x") < 2**63
    assert np.int64(streams.identity_of("x")) >= 0
