import multiprocessing
import os
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from clipkit.data import (
    Batch,
    EpochSampler,
    InputMaker,
    Pairs,
    Policy,
    TextView,
    WorkerProgress,
    loader,
    pair_loader,
    read_pairs,
)
from clipkit.data import workers as loader_workers
from clipkit.errors import DataError
from clipkit.recipe.policies import Crop
from tests.conftest import draw, write_csv


def to_tensor(image: Image.Image | torch.Tensor) -> dict[str, torch.Tensor]:
    from torchvision.transforms.v2.functional import pil_to_tensor

    pixels = image if isinstance(image, torch.Tensor) else pil_to_tensor(image)
    return {"pixel_values": pixels.float()}


def tokenize(captions: list[str]) -> dict[str, torch.Tensor]:
    longest = max(map(len, captions))
    return {
        "input_ids": torch.tensor([[ord(c) for c in caption] + [0] * (longest - len(caption)) for caption in captions])
    }


def batches_of(
    pairs: Pairs, workers: int, rows: slice = slice(0, 6), seed: int = 0, replace: bool = True
) -> list[Batch]:
    sampler = EpochSampler(pairs, "one", 6, seed)
    crop = Policy([Crop(scale=(0.3, 1.0))], 16, to_tensor, to_tensor, seed)
    texts = {"text_features": TextView("same", pairs)}
    maker = InputMaker({"image_features": crop}, texts, tokenize)
    return list(
        pair_loader(pairs, sampler.slices(0, 5, rows), maker, workers, sampler.replacement if replace else None)
    )


def test_workers_and_processes_do_not_change_a_batch(shapes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Workers hand over chunks of 4 and 2, padded to their own longest.
    monkeypatch.setattr(loader, "_CHUNK", 4)
    pairs = read_pairs(str(shapes / "captions.csv"))
    alone = batches_of(pairs, 0)
    for other in (batches_of(pairs, 2), [*batches_of(pairs, 0)]):
        for one, two in zip(alone, other, strict=True):
            assert torch.equal(
                one.inputs["image_features"]["pixel_values"], two.inputs["image_features"]["pixel_values"]
            )
            assert torch.equal(one.inputs["text_features"]["input_ids"], two.inputs["text_features"]["input_ids"])
            assert torch.equal(one.caption_ids, two.caption_ids)
    second_half = batches_of(pairs, 0, slice(3, 6))
    for one, two in zip(alone, second_half, strict=True):
        assert torch.equal(
            one.inputs["image_features"]["pixel_values"][3:], two.inputs["image_features"]["pixel_values"]
        )


def test_the_crop_changes_with_epoch_image_and_seed_and_leaves_the_global_generator_alone() -> None:
    image = draw("red", "cross", 64)

    def pixels(seed: int, epoch: int, index: int) -> torch.Tensor:
        policy = Policy([Crop(scale=(0.2, 0.8))], 16, to_tensor, to_tensor, seed)
        return policy(image, epoch, index)["pixel_values"]

    state = torch.get_rng_state()
    first = pixels(0, 0, 0)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(pixels(0, 0, 0), first)
    others = [pixels(0, 1, 0), pixels(0, 0, 1), pixels(1, 0, 0)]
    assert not any(torch.equal(other, first) for other in others)


def test_a_crop_for_towers_that_take_images_in_their_own_shape() -> None:
    image = draw("red", "cross", 64)
    shapes = {
        tuple(Policy([Crop(scale=(0.2, 0.8))], None, to_tensor, to_tensor, 0)(image, 0, n)["pixel_values"].shape)
        for n in range(8)
    }
    assert len(shapes) > 4
    for _, height, width in shapes:
        assert 0.15 < height * width / 64**2 < 0.85


def test_loading_leaves_the_global_generator_alone(shapes: Path) -> None:
    state = torch.get_rng_state()
    batches_of(read_pairs(str(shapes / "captions.csv")), 0)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_is_an_error_of_one_line(tmp_path: Path, workers: int) -> None:
    for number in range(6):
        draw("red", "circle").save(tmp_path / f"{number}.png")
    (tmp_path / "3.png").write_bytes(b"<html>not found</html>")
    rows = [[f"{number}.png", "words"] for number in range(6)]
    pairs = read_pairs(str(write_csv(tmp_path / "p.csv", ["image", "caption"], rows)))
    with pytest.raises(DataError, match=r"3.png: is not an image that Pillow can read") as caught:
        batches_of(pairs, workers, replace=False)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "lost", [ConnectionResetError(104, "Connection reset by peer"), EOFError(), FileNotFoundError(2, "gone")]
)
def test_a_worker_that_dies_while_it_sends_is_reported(
    shapes: Path, monkeypatch: pytest.MonkeyPatch, lost: Exception
) -> None:
    def broken(self: object) -> object:
        raise lost

    monkeypatch.setattr(loader.DataLoader, "__iter__", broken)
    with pytest.raises(RuntimeError, match="^DataLoader worker is gone: ."):
        batches_of(read_pairs(str(shapes / "captions.csv")), 1)


def test_an_error_in_a_living_worker_is_not_its_death() -> None:
    lost = FileNotFoundError("Caught FileNotFoundError in DataLoader worker process 0.\nOriginal Traceback …")
    with pytest.raises(FileNotFoundError), loader_workers.lost_workers(SimpleNamespace(num_workers=1)):  # type: ignore[arg-type]
        raise lost


BROKEN = {
    1: b"<html>not found</html>",
    4: b"",
    9: b"\x89PNG\r\n\x1a\n truncated",
}


def test_unreadable_images_are_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "_CHUNK", 4)
    for number in range(20):
        draw("red", "circle", shift=number % 5).save(tmp_path / f"{number}.png")
    rows = [[f"{number}.png", f"words {number} {other}"] for number in range(20) for other in range(2)]
    pairs = read_pairs(str(write_csv(tmp_path / "p.csv", ["image", "caption"], rows)))
    sound = batches_of(pairs, 0)
    for number, content in BROKEN.items():
        (tmp_path / f"{number}.png").write_bytes(content)
    (tmp_path / "12.png").unlink()
    bad = {*BROKEN, 12}
    sampler = EpochSampler(pairs, "one", 6, 0)
    expected = []
    for batch in sampler.slices(0, 5, slice(0, 6)):
        for sample in batch:
            attempt = 0
            drawn = sample
            while drawn.image in bad:
                attempt += 1
                drawn = sampler.replacement(sample, attempt)
            expected.append((drawn.image, drawn.caption))
            assert pairs.image_of_caption[drawn.caption] == drawn.image
    for workers in (0, 2):
        found = batches_of(pairs, workers)
        rows_found = [
            row for batch in found for row in zip(batch.image_ids.tolist(), batch.caption_rows.tolist(), strict=True)
        ]
        assert rows_found == expected
        reasons = {image: reason for batch in found for image, reason in batch.bad.items()}
        assert reasons.keys() == bad
        assert "file not found" in reasons[12]
        for one, two in zip(sound, found, strict=True):
            kept = one.image_ids == two.image_ids
            assert kept.tolist() == [image not in bad for image in one.image_ids.tolist()]
            for name in ("image_features", "text_features"):
                for key, values in one.inputs[name].items():
                    width = min(values.shape[-1], two.inputs[name][key].shape[-1])
                    assert torch.equal(values[kept][..., :width], two.inputs[name][key][kept][..., :width])
    # The caption of a replacement is one of its own.
    assert all((row[1] // 2) == row[0] for row in rows_found)


def test_an_error_if_no_image_is_readable(tmp_path: Path) -> None:
    for number in range(6):
        (tmp_path / f"{number}.png").write_bytes(b"<html>")
    rows = [[f"{number}.png", "words"] for number in range(6)]
    pairs = read_pairs(str(write_csv(tmp_path / "p.csv", ["image", "caption"], rows)))
    with pytest.raises(DataError, match="4.png: is not an image.*64 images"):
        batches_of(pairs, 0)


def test_a_worker_that_dies_is_reported_with_its_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(6):
        draw("red", "circle").save(tmp_path / f"{number}.png")
    rows = [[f"{number}.png", "words"] for number in range(6)]
    pairs = read_pairs(str(write_csv(tmp_path / "p.csv", ["image", "caption"], rows)))

    def deadly(image: Path, draft: object) -> Image.Image:
        if image.name == "3.png":
            os.kill(os.getpid(), signal.SIGKILL)
        return draw("red", "circle")

    monkeypatch.setattr("clipkit.data.batch.open_image", deadly)
    sampler, progress = EpochSampler(pairs, "one", 6, 0), WorkerProgress(pairs.images)
    crop = Policy([Crop()], 16, to_tensor, to_tensor, 0)
    with pytest.raises(RuntimeError, match="DataLoader worker") as caught:
        list(
            pair_loader(
                pairs, sampler.epoch(0), InputMaker({"x": crop}, {}, tokenize), 1, sampler.replacement, progress
            )
        )
    assert progress.last_seen(str(caught.value)) == str(tmp_path / "3.png")


def test_a_worker_prints_no_error_when_its_run_ended(capfd: pytest.CaptureFixture[str]) -> None:
    def work() -> None:
        loader_workers.start_worker(0)
        for error in (ConnectionResetError(104, "Connection reset by peer"), ValueError("a real one")):
            sys.excepthook(type(error), error, None)
        os._exit(0)

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join()
    assert capfd.readouterr().err == "ValueError: a real one\n"
