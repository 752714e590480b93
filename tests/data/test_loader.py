from pathlib import Path

import pytest
import torch
from PIL import Image

from clipkit.data import EpochSampler, Pairs, Policy, TextView, loader, pair_loader, read_pairs
from clipkit.data.loader import Batch
from clipkit.errors import DataError
from clipkit.recipe.policies import Crop
from tests.conftest import draw, write_csv


def to_tensor(picture: Image.Image) -> dict[str, torch.Tensor]:
    from torchvision.transforms.v2.functional import pil_to_tensor

    return {"pixel_values": pil_to_tensor(picture).float()}


def tokenize(captions: list[str]) -> dict[str, torch.Tensor]:
    longest = max(map(len, captions))
    return {
        "input_ids": torch.tensor([[ord(c) for c in caption] + [0] * (longest - len(caption)) for caption in captions])
    }


def batches_of(pairs: Pairs, workers: int, rows: slice = slice(0, 6), seed: int = 0) -> list[Batch]:
    sampler = EpochSampler(pairs, "one", 6, seed)
    crop = Policy([Crop(scale=(0.3, 1.0))], 16, to_tensor, to_tensor, seed)
    texts = {"text_features": TextView("same", pairs)}
    return list(pair_loader(pairs, sampler.slices(0, 5, rows), {"image_features": crop}, texts, tokenize, workers))


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


def test_the_crop_changes_with_epoch_picture_and_seed_and_leaves_the_global_generator_alone() -> None:
    picture = draw("red", "cross", 64)

    def pixels(seed: int, epoch: int, image: int) -> torch.Tensor:
        policy = Policy([Crop(scale=(0.2, 0.8))], 16, to_tensor, to_tensor, seed)
        return policy(picture, epoch, image)["pixel_values"]

    state = torch.get_rng_state()
    first = pixels(0, 0, 0)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(pixels(0, 0, 0), first)
    others = [pixels(0, 1, 0), pixels(0, 0, 1), pixels(1, 0, 0)]
    assert not any(torch.equal(other, first) for other in others)


def test_a_crop_for_towers_that_take_pictures_in_their_own_shape() -> None:
    picture = draw("red", "cross", 64)
    shapes = {
        tuple(Policy([Crop(scale=(0.2, 0.8))], None, to_tensor, to_tensor, 0)(picture, 0, n)["pixel_values"].shape)
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
def test_a_picture_that_cannot_be_decoded_is_one_line(tmp_path: Path, workers: int) -> None:
    for number in range(6):
        draw("red", "circle").save(tmp_path / f"{number}.png")
    (tmp_path / "3.png").write_bytes(b"<html>not found</html>")
    rows = [[f"{number}.png", "words"] for number in range(6)]
    pairs = read_pairs(str(write_csv(tmp_path / "p.csv", ["image", "caption"], rows)))
    with pytest.raises(DataError, match=r"3.png: is not a picture that Pillow can read") as caught:
        batches_of(pairs, workers)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "lost", [ConnectionResetError(104, "Connection reset by peer"), EOFError(), FileNotFoundError(2, "gone")]
)
def test_a_worker_that_dies_while_it_hands_over(shapes: Path, monkeypatch: pytest.MonkeyPatch, lost: Exception) -> None:
    def broken(self: object) -> object:
        raise lost

    monkeypatch.setattr(loader.DataLoader, "__iter__", broken)
    with pytest.raises(RuntimeError, match="^DataLoader worker is gone: ."):
        batches_of(read_pairs(str(shapes / "captions.csv")), 1)
