import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import SafetensorError

import clipkit
from clipkit.embedding.cache import FeatureCache
from clipkit.errors import DataError, ModelError
from clipkit.evaluation import Features
from clipkit.files import cache_folder
from tests.conftest import draw


@pytest.fixture
def model(tiny_clip: Path) -> clipkit.DualEncoder:
    return clipkit.load(tiny_clip)


@pytest.fixture
def images(shapes: Path) -> list[Path]:
    return sorted((shapes / "images").glob("*.png"))


def counted(model: clipkit.DualEncoder, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Images that go through the tower."""
    seen: list[int] = []
    encode = model.encode_image

    def encode_image(images: Any, *arguments: Any, **options: Any) -> Any:
        seen.append(len(images))
        return encode(images, *arguments, **options)

    monkeypatch.setattr(model, "encode_image", encode_image)
    return seen


def test_what_is_there_is_not_computed_again(
    model: clipkit.DualEncoder, images: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = counted(model, monkeypatch)
    first = Features(model, cache=tmp_path).images(images[:10])
    torch.testing.assert_close(first, model.encode_image(images[:10]), rtol=0, atol=1e-6)
    seen.clear()
    later = Features(model, cache=tmp_path)
    # In another order, with two more, and one of them twice.
    again = later.images([images[11], *images[9::-1], images[10], images[3]])
    assert seen == [2]
    assert (later.computed, later.from_cache) == (2, 10)
    assert torch.equal(again[1:11], first.flip(0))
    assert torch.equal(again[12], first[3])
    torch.testing.assert_close(again[0], model.encode_image([images[11]])[0], rtol=0, atol=1e-6)


def test_equal_files_and_strings_are_encoded_once(
    model: clipkit.DualEncoder, images: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(images[0], tmp_path / "copy.png")
    seen = counted(model, monkeypatch)
    features = Features(model, cache=False).images([images[0], tmp_path / "copy.png", images[1]])
    assert seen == [2]
    assert torch.equal(features[0], features[1])
    own = Features(model, cache=False)
    texts = own.texts(["a", "b", "a"])
    assert own.computed == 2
    assert torch.equal(texts[0], texts[2])


def test_a_changed_file_is_noticed(model: clipkit.DualEncoder, images: list[Path], tmp_path: Path) -> None:
    own = tmp_path / "own.png"
    shutil.copy(images[0], own)
    before = Features(model, cache=tmp_path / "cache").images([own])
    stamp = own.stat().st_mtime_ns
    draw("blue", "cross").save(own)
    import os

    os.utime(own, ns=(stamp, stamp))
    after = Features(model, cache=tmp_path / "cache").images([own])
    assert not torch.equal(before, after)


def test_a_changed_model_is_noticed(model: clipkit.DualEncoder, images: list[Path], tmp_path: Path) -> None:
    before = Features(model, cache=tmp_path).images(images[:3])
    with torch.no_grad():
        for parameter in model.image.head.parameters():
            parameter.mul_(-1)
    torch.testing.assert_close(Features(model, cache=tmp_path).images(images[:3]), -before)


def test_damaged_files_of_the_cache_are_computed_again(
    model: clipkit.DualEncoder, images: list[Path], tmp_path: Path
) -> None:
    first = Features(model, cache=tmp_path).images(images[:4])
    (file,) = tmp_path.glob("*/*.safetensors")
    whole = file.read_bytes()
    for damaged in (whole[:100], b"", b"{}", whole[:-8]):
        file.write_bytes(damaged)
        assert torch.equal(Features(model, cache=tmp_path).images(images[:4]), first)


def test_a_full_disk_costs_the_cache_and_nothing_else(
    model: clipkit.DualEncoder,
    images: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def full(*_: Any) -> None:
        raise SafetensorError("No space left on device")

    monkeypatch.setattr("clipkit.embedding.cache.save_file", full)
    features = Features(model, cache=tmp_path).images(images[:2])
    torch.testing.assert_close(features, model.encode_image(images[:2]), rtol=0, atol=1e-6)
    assert "No space left on device" in caplog.text
    assert list(tmp_path.glob("*/*")) == []


def test_interrupted_it_keeps_what_was_done(
    model: clipkit.DualEncoder, images: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clipkit.embedding.features._CHUNK", 4)
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    with pytest.raises(DataError, match=r"broken\.png"):
        Features(model, cache=tmp_path / "cache").images([*images[:8], broken])
    later = Features(model, cache=tmp_path / "cache")
    later.images(images[:10])
    assert (later.computed, later.from_cache) == (2, 8)


def test_images_in_memory(model: clipkit.DualEncoder, images: list[Path], tmp_path: Path) -> None:
    opened = Image.open(images[0]).convert("RGB")
    features = Features(model, cache=tmp_path).images([images[0], opened, np.asarray(opened)])
    torch.testing.assert_close(features[1], features[0])
    torch.testing.assert_close(features[2], features[0])


def test_features_that_are_not_finite_are_an_error(model: clipkit.DualEncoder, images: list[Path]) -> None:
    with torch.no_grad():
        next(model.text.head.parameters()).fill_(float("nan"))
        next(model.image.head.parameters()).fill_(float("inf"))
    with pytest.raises(ModelError, match=r"its features of 'a cat' are not finite"):
        Features(model, cache=False).texts(["a cat", "a dog"])
    with pytest.raises(ModelError, match=r"00\.png' are not finite"):
        Features(model, cache=False).images(images)


def test_a_missing_image_is_one_line(model: clipkit.DualEncoder) -> None:
    with pytest.raises(DataError, match=r"none\.png: cannot be read"):
        Features(model, cache=False).images(["none.png"])


def test_the_model_is_evaluated_whatever_mode_it_is_in(
    model: clipkit.DualEncoder, images: list[Path], tmp_path: Path
) -> None:
    expected = model.encode_image(images[:3])
    model.image.head = torch.nn.Sequential(model.image.head, torch.nn.Dropout(0.5))
    model.train()
    torch.testing.assert_close(Features(model, cache=tmp_path).images(images[:3]), expected)
    assert model.image.head.training
    model.eval()


def test_images_in_memory_are_what_is_seen(model: clipkit.DualEncoder) -> None:
    """Equal indices into other colours are another image."""
    red, blue = Image.new("P", (32, 32), 0), Image.new("P", (32, 32), 0)
    red.putpalette([255, 0, 0])
    blue.putpalette([0, 0, 255])
    features = Features(model, cache=False).images([red, blue])
    assert not torch.equal(features[0], features[1])


def test_a_file_that_changes_meanwhile_is_not_kept(
    model: clipkit.DualEncoder, images: list[Path], tmp_path: Path
) -> None:
    own = tmp_path / "own.png"
    shutil.copy(images[0], own)
    features = Features(model, cache=tmp_path / "cache")
    hashes = features.content_hashes([own, images[1]])
    shutil.copy(images[2], own)
    features.images([own, images[1]], hashes)
    later = Features(model, cache=tmp_path / "cache")
    later.images([images[0], images[1]])
    assert (later.computed, later.from_cache) == (1, 1)


def test_a_cache_that_is_deleted_meanwhile_is_no_error(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path / "tower")
    cache.add([b"k" * 32], torch.ones(1, 2))
    shutil.rmtree(tmp_path / "tower")
    found, features = cache.read([b"k" * 32])
    assert found.tolist() == [False]
    assert len(features) == 0


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CLIPKIT_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"
    monkeypatch.delenv("CLIPKIT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "clipkit"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "clipkit"


def test_rows_come_back_in_the_order_asked_for(tmp_path: Path) -> None:
    keys = [bytes([number]) * 32 for number in range(6)]
    cache = FeatureCache(tmp_path / "tower")
    cache.add(keys[:2], torch.tensor([[0.0], [1.0]]))
    cache.add(keys[3:], torch.tensor([[3.0], [4.0], [5.0]]))
    for own in (cache, FeatureCache(tmp_path / "tower")):
        found, features = own.read([keys[5], keys[2], keys[0], keys[3]])
        assert found.tolist() == [True, False, True, True]
        assert features[:, 0].tolist() == [5, 0, 3]
