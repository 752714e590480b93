"""Encoding as on an accelerator, tested on the CPU: the same features as one by one."""

import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

import clipkit
from clipkit.errors import DataError, UserError
from clipkit.images import Stored, open_image
from clipkit.models import DualEncoder, decoding, decoding_processes, encode
from clipkit.models.encode import encode_images, encode_strings, tower_features
from clipkit.models.exact_resize import ExactResize
from tests.models.families import build


@pytest.fixture(scope="module")
def model(tiny_clip: Path) -> DualEncoder:
    return clipkit.load(tiny_clip)


@pytest.fixture
def accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    """Treat the CPU like an accelerator beside two free cores, and a few images like many."""
    monkeypatch.setattr(encode, "is_accelerator", lambda device: True)
    for module in (encode, decoding):
        monkeypatch.setattr(module, "MANY", 1)
    monkeypatch.setattr(decoding_processes, "_CHUNK", 3)
    monkeypatch.setattr(decoding, "_workers", lambda: 2)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """Images of several sizes and kinds: files, arrays, PIL images."""
    folder = tmp_path_factory.mktemp("many")
    draw = np.random.default_rng(0)
    arrays = [draw.integers(0, 256, (30 + 3 * n, 90 - 2 * n, 3), dtype=np.uint8) for n in range(21)]
    several: list[Any] = []
    for number, array in enumerate(arrays):
        Image.fromarray(array).save(folder / f"{number}.jpg")
        several.append([folder / f"{number}.jpg", array, Image.fromarray(array)][number % 3])
    return several


def encoded(model: DualEncoder, images: list[Any], bad: dict[int, str] | None = None) -> torch.Tensor:
    return encode_images(model.image, images, tower_features, None, model.device, bad=bad)


def children() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if "resource_tracker" not in " ".join(child.cmdline())]


@pytest.fixture
def forks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Record how many processes decode."""
    counts: list[int] = []
    original = decoding.in_processes

    def recorded(decoder: Any, batch_size: int, workers: int, copied: Any) -> Any:
        counts.append(workers)
        return original(decoder, batch_size, workers, copied)

    monkeypatch.setattr(decoding, "in_processes", recorded)
    return counts


@pytest.mark.parametrize("batch_size", [1, 2, 8])
@pytest.mark.usefixtures("accelerator")
def test_processes_give_the_same_features(
    model: DualEncoder, many: list[Any], batch_size: int, forks: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = children()
    features = encode_images(model.image, many, tower_features, batch_size, model.device)
    assert forks == [2]
    assert children() == before
    monkeypatch.undo()
    assert torch.equal(features, encode_images(model.image, many, tower_features, batch_size, model.device))


@pytest.mark.parametrize(("room", "resized"), [(1, 0), (20_000, 9), (1 << 20, 21)])
@pytest.mark.usefixtures("accelerator")
def test_device_resizes_what_fits_into_the_shared_memory(
    model: DualEncoder, many: list[Any], room: int, resized: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding_processes, "_CHUNK_BYTES", room)
    counts = []
    original = ExactResize.__call__

    def recorded(self: ExactResize, images: torch.Tensor) -> torch.Tensor:
        counts.append(len(images))
        return original(self, images)

    monkeypatch.setattr(ExactResize, "__call__", recorded)
    features = encoded(model, many)
    probes = 3
    assert sum(counts) - probes == resized
    monkeypatch.undo()
    assert torch.equal(features, encoded(model, many))


@pytest.mark.usefixtures("accelerator")
def test_inputs_without_a_table_are_also_prepared_in_processes(
    many: list[Any], tmp_path: Path, forks: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    naflex = clipkit.load(build("siglip2", tmp_path / "siglip2"))
    features = encoded(naflex, many)
    assert forks == [2]
    monkeypatch.undo()
    assert torch.equal(features, encoded(naflex, many))


@pytest.mark.usefixtures("accelerator")
def test_unreadable_images_are_reported_as_from_threads(
    model: DualEncoder, many: list[Any], tmp_path: Path, forks: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "no.jpg").write_bytes(b"no image")
    images = [*many[:7], tmp_path / "no.jpg", *many[7:12], tmp_path / "missing.jpg", np.zeros(3)]
    bad: dict[int, str] = {}
    features = encoded(model, images, bad)
    with pytest.raises(DataError, match=r"no\.jpg") as caught:
        encoded(model, images)
    assert forks == [2, 2]
    monkeypatch.undo()
    expected: dict[int, str] = {}
    good = [position for position in range(len(images)) if position not in (7, 13, 14)]
    assert torch.equal(features[good], encoded(model, images, expected)[good])
    assert list(bad.items()) == list(expected.items())
    assert list(bad) == [7, 13, 14]
    assert str(caught.value) == bad[7]
    assert features.isfinite().all()


@pytest.mark.parametrize("reason", ["opened file", "few", "daemon", "other thread", "spawn", "one core"])
@pytest.mark.usefixtures("accelerator")
def test_threads_decode_where_processes_cannot(
    model: DualEncoder, many: list[Any], reason: str, forks: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    images = list(many)
    match reason:
        case "opened file":
            images[0] = Image.open(many[0])
        case "few":
            monkeypatch.setattr(decoding, "MANY", len(many) + 1)
        case "daemon":
            monkeypatch.setitem(multiprocessing.current_process()._config, "daemon", True)
        case "spawn":
            monkeypatch.setattr(multiprocessing, "get_start_method", lambda allow_none: "spawn")
        case "one core":
            monkeypatch.setattr(decoding, "_workers", lambda: 1)
    results = []
    if reason == "other thread":
        thread = threading.Thread(target=lambda: results.append(encoded(model, images)))
        thread.start()
        thread.join()
    else:
        results.append(encoded(model, images))
    assert not forks
    monkeypatch.undo()
    assert torch.equal(results[0], encoded(model, many))


@pytest.mark.parametrize("failing", ["first fork", "second fork", "memory"])
@pytest.mark.usefixtures("accelerator")
def test_threads_decode_if_processes_cannot_be_started(
    model: DualEncoder, many: list[Any], failing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, calls = children(), []
    original = os.fork

    def refused(*arguments: Any) -> Any:
        calls.append(arguments)
        if failing == "second fork" and len(calls) == 1:
            return original()
        raise OSError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(*((decoding_processes.mmap, "mmap") if failing == "memory" else (os, "fork")), refused)
    features = encoded(model, many)
    assert calls
    assert children() == before
    monkeypatch.undo()
    assert torch.equal(features, encoded(model, many))


def test_each_process_gets_its_share_of_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(16)))
    assert decoding._workers() == 15
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert decoding._workers() == 3


class Killing(Stored):
    """Image file whose reader is killed, or takes long."""

    name = "killing"
    size = 1

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds

    def read_bytes(self) -> bytes:
        if not self.seconds:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(self.seconds)
        raise OSError("slow")


@pytest.mark.usefixtures("accelerator")
def test_killed_process_ends_encoding_in_one_line(model: DualEncoder, many: list[Any]) -> None:
    before = children()
    with pytest.raises(UserError, match="was killed"):
        encoded(model, [*many, Killing(), *many])
    assert children() == before


@pytest.mark.usefixtures("accelerator")
def test_interrupt_ends_the_processes(model: DualEncoder, many: list[Any]) -> None:
    before = children()
    through_calls = []

    def interrupted(tower: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        through_calls.append(len(children()) - len(before))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encode_images(model.image, many, interrupted, 2, model.device)
    assert through_calls == [2]
    assert children() == before


@pytest.mark.usefixtures("accelerator")
def test_processes_ignore_ctrl_c_and_end_with_their_parent(model: DualEncoder, many: list[Any]) -> None:
    parent, child = os.pipe()

    def encode_slowly() -> None:  # in a process of its own, which is then killed
        os.setsid()
        torch.set_num_threads(1)  # the threads of this process do not exist in the forked one

        def tell(tower: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
            os.write(child, " ".join(str(process.pid) for process in psutil.Process().children()).encode())
            time.sleep(60)
            return torch.zeros(1)

        encode_images(model.image, many, tell, 2, model.device)

    process = multiprocessing.get_context("fork").Process(target=encode_slowly)
    process.start()
    workers = [psutil.Process(int(pid)) for pid in os.read(parent, 1000).split()]
    assert len(workers) == 2
    time.sleep(1)  # the first batch may come before the second process has started to ignore signals
    for worker in workers:
        worker.send_signal(signal.SIGINT)
        worker.send_signal(signal.SIGTERM)
    time.sleep(0.1)
    assert all(worker.is_running() and worker.status() != "zombie" for worker in workers)
    process.kill()
    process.join()
    _, alive = psutil.wait_procs(workers, timeout=5)
    assert not alive


TEXTS = [f"a {'very ' * (n % 9)}long text about {n % 40} dogs" for n in range(120)] + ["", "x", "!" * 400, "x"]


@pytest.mark.parametrize("family", ["clip", "siglip", "chinese_clip"])
@pytest.mark.parametrize("budget", [1, 100, 10_000])
@pytest.mark.usefixtures("accelerator")
def test_texts_in_batches_of_tokens_have_the_same_features(
    family: str, budget: int, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = clipkit.load(build(family, tmp_path_factory.mktemp("texts") / family))
    monkeypatch.setattr(encode, "_TOKENS", budget)
    monkeypatch.setattr(encode, "_TOKENIZED", 160)
    monkeypatch.setattr(encode, "_ROWS", 30)
    shapes = []

    def through(tower: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        shapes.append(tuple(inputs["input_ids"].shape))
        return model.text(inputs)

    features = encode_strings(model.text, TEXTS, through, None, model.device)
    assert all(rows == 1 or rows * length <= budget for rows, length in shapes)
    assert sum(rows for rows, _ in shapes) == len(set(TEXTS))
    if budget == 10_000:
        assert len(shapes) <= 6
    monkeypatch.undo()
    torch.testing.assert_close(features, encode_strings(model.text, TEXTS, tower_features, None, model.device))


@pytest.mark.usefixtures("accelerator")
def test_batch_size_limits_the_rows_of_texts(model: DualEncoder) -> None:
    sizes = []
    encode_strings(
        model.text,
        TEXTS,
        lambda tower, batch: sizes.append(len(batch["input_ids"])) or model.text(batch),
        7,
        model.device,
    )
    assert max(sizes) == 7


def test_one_core_keeps_its_batches(model: DualEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """The values of a CPU's features depend on the batches to the last bit."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    sizes = []
    texts = [f"a dog number {n}" for n in range(300)]
    encode_strings(
        model.text,
        texts,
        lambda tower, batch: sizes.append(len(batch["input_ids"])) or model.text(batch),
        None,
        model.device,
    )
    assert sizes == [256, 44]


@pytest.mark.gpu
@pytest.mark.parametrize("family", ["clip", "siglip", "chinese_clip"])
def test_a_gpu_gets_exactly_the_pixels_of_a_cpu(
    family: str, many: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (encode, decoding):
        monkeypatch.setattr(module, "MANY", 1)
    model = clipkit.load(build(family, tmp_path / family), device="cuda")
    pixels: list[torch.Tensor] = []

    def through(tower: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        pixels.append(inputs["pixel_values"].cpu())
        return model.image(inputs)

    encode_images(model.image, many, through, 8, model.device)
    expected = torch.stack([model.image.preprocess(open_image(image))["pixel_values"] for image in many])
    assert torch.equal(torch.cat(pixels), expected)


@pytest.mark.gpu
def test_features_of_many_texts_on_a_gpu_are_those_of_a_cpu(tiny_clip: Path) -> None:
    texts = [f"{text} {number}" for number in range(400) for text in TEXTS[::20]]
    on_gpu = clipkit.load(tiny_clip, device="cuda").encode_text(texts)
    torch.testing.assert_close(on_gpu, clipkit.load(tiny_clip, device="cpu").encode_text(texts), rtol=0, atol=1e-5)
    fast = clipkit.load(tiny_clip, device="cuda", dtype="auto").encode_text(texts)
    torch.testing.assert_close(on_gpu, fast, rtol=0, atol=0.02)
