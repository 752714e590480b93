import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as safetensors

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
    """Record the number of images of every call of `encode_image`."""
    seen: list[int] = []
    encode = model.encode_image

    def encode_image(images: Any, *arguments: Any, **options: Any) -> Any:
        seen.append(len(images))
        return encode(images, *arguments, **options)

    monkeypatch.setattr(model, "encode_image", encode_image)
    return seen


def test_cached_features_are_not_computed_again(
    model: clipkit.DualEncoder, images: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = counted(model, monkeypatch)
    first = Features(model, cache=tmp_path).images(images[:10])
    torch.testing.assert_close(first, model.encode_image(images[:10]), rtol=0, atol=1e-6)
    seen.clear()
    later = Features(model, cache=tmp_path)
    # Another order, two more images, and one image twice.
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
    of_texts = Features(model, cache=False)
    texts = of_texts.texts(["a", "b", "a"])
    assert of_texts.computed == 2
    assert torch.equal(texts[0], texts[2])


def test_changed_file_is_encoded_again(model: clipkit.DualEncoder, images: list[Path], tmp_path: Path) -> None:
    file = tmp_path / "image.png"
    shutil.copy(images[0], file)
    before = Features(model, cache=tmp_path / "cache").images([file])
    stamp = file.stat().st_mtime_ns
    draw("blue", "cross").save(file)
    import os

    os.utime(file, ns=(stamp, stamp))
    after = Features(model, cache=tmp_path / "cache").images([file])
    assert not torch.equal(before, after)


def test_changed_model_encodes_again(model: clipkit.DualEncoder, images: list[Path], tmp_path: Path) -> None:
    before = Features(model, cache=tmp_path).images(images[:3])
    with torch.no_grad():
        for parameter in model.image.head.parameters():
            parameter.mul_(-1)
    torch.testing.assert_close(Features(model, cache=tmp_path).images(images[:3]), -before)


def test_features_in_damaged_cache_files_are_computed_again(
    model: clipkit.DualEncoder, images: list[Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = Features(model, cache=tmp_path).images(images[:4])
    (file,) = tmp_path.glob("*/*.safetensors")
    whole = file.read_bytes()
    flips = [whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :] for place in range(8, len(whole), 150)]
    keys = load_file(file)["keys"]
    others = [
        safetensors({"keys": keys}),
        safetensors({"keys": keys[:, 0].contiguous(), "features": first}),
        safetensors({"keys": keys.float(), "features": first}),
        safetensors({"keys": keys, "features": -first}),
        safetensors({"keys": keys, "features": first[:2].contiguous()}),
        b"\0" * len(whole),
        whole + b"\0",
    ]
    for damaged in (whole[:100], b"", b"{}", whole[:-8], *flips, *others):
        for before in tmp_path.glob("*/*.safetensors"):
            before.unlink()
        file.write_bytes(damaged)
        caplog.clear()
        features = Features(model, cache=tmp_path)
        assert torch.equal(features.images(images[:4]), first)
        assert features.computed == 4
        assert str(file) in caplog.text
        assert not file.exists()


def test_a_damaged_cache_file_is_not_reported_twice_and_leaves_the_others(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path)
    cache.add([b"a" * 32], torch.ones(1, 3))
    (file,) = tmp_path.glob("*.safetensors")
    cache.add([b"b" * 32], 2 * torch.ones(1, 3))
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 128]))
    for reader in (cache, FeatureCache(tmp_path)):
        known, features = reader.read([b"a" * 32, b"b" * 32])
        assert known.tolist() == [False, True]
        assert features.tolist() == [[2, 2, 2]]


def test_full_disk_disables_the_cache_with_a_warning(
    model: clipkit.DualEncoder,
    images: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def full(*_: Any) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("clipkit.embedding.cache.save_file", full)
    features = Features(model, cache=tmp_path).images(images[:2])
    torch.testing.assert_close(features, model.encode_image(images[:2]), rtol=0, atol=1e-6)
    assert "No space left on device" in caplog.text
    assert list(tmp_path.glob("*/*")) == []


def test_interruption_keeps_finished_chunks_in_the_cache(
    model: clipkit.DualEncoder, images: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clipkit.embedding.features._FIRST_IMAGES", 4)
    monkeypatch.setattr("clipkit.embedding.features._SECONDS", 0)
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    with pytest.raises(DataError, match=r"broken\.png"):
        Features(model, cache=tmp_path / "cache").images([*images[:8], broken])
    later = Features(model, cache=tmp_path / "cache")
    later.images(images[:10])
    assert (later.computed, later.from_cache) == (2, 8)


def test_paths_and_images_in_memory_have_equal_features(
    model: clipkit.DualEncoder, images: list[Path], tmp_path: Path
) -> None:
    opened = Image.open(images[0]).convert("RGB")
    features = Features(model, cache=tmp_path).images([images[0], opened, np.asarray(opened)])
    torch.testing.assert_close(features[1], features[0])
    torch.testing.assert_close(features[2], features[0])


def test_non_finite_features_are_refused(model: clipkit.DualEncoder, images: list[Path]) -> None:
    with torch.no_grad():
        next(model.text.head.parameters()).fill_(float("nan"))
        next(model.image.head.parameters()).fill_(float("inf"))
    with pytest.raises(ModelError, match=r"'a cat' are not finite"):
        Features(model, cache=False).texts(["a cat", "a dog"])
    with pytest.raises(ModelError, match=r"00\.png' are not finite"):
        Features(model, cache=False).images(images)


def test_missing_image_is_refused(model: clipkit.DualEncoder) -> None:
    with pytest.raises(DataError, match=r"none\.png"):
        Features(model, cache=False).images(["none.png"])


def test_model_in_training_mode_is_evaluated_and_restored(
    model: clipkit.DualEncoder, images: list[Path], tmp_path: Path
) -> None:
    expected = model.encode_image(images[:3])
    model.image.head = torch.nn.Sequential(model.image.head, torch.nn.Dropout(0.5))
    model.train()
    torch.testing.assert_close(Features(model, cache=tmp_path).images(images[:3]), expected)
    assert model.image.head.training
    model.eval()


def test_palette_images_with_other_colors_are_different_images(model: clipkit.DualEncoder) -> None:
    red, blue = Image.new("P", (32, 32), 0), Image.new("P", (32, 32), 0)
    red.putpalette([255, 0, 0])
    blue.putpalette([0, 0, 255])
    features = Features(model, cache=False).images([red, blue])
    assert not torch.equal(features[0], features[1])


def test_file_that_changes_after_hashing_is_not_cached(
    model: clipkit.DualEncoder, images: list[Path], tmp_path: Path
) -> None:
    file = tmp_path / "image.png"
    shutil.copy(images[0], file)
    features = Features(model, cache=tmp_path / "cache")
    hashes = features.content_hashes([file, images[1]])
    shutil.copy(images[2], file)
    features.images([file, images[1]], hashes)
    later = Features(model, cache=tmp_path / "cache")
    later.images([images[0], images[1]])
    assert (later.computed, later.from_cache) == (1, 1)


def test_deleted_cache_folder_is_read_as_empty(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path / "tower")
    cache.add([b"k" * 32], torch.ones(1, 2))
    shutil.rmtree(tmp_path / "tower")
    known, features = cache.read([b"k" * 32])
    assert known.tolist() == [False]
    assert len(features) == 0


def test_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CLIPKIT_CACHE", str(tmp_path / "mine"))
    assert cache_folder() == tmp_path / "mine"
    monkeypatch.delenv("CLIPKIT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "clipkit"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "clipkit"


def test_rows_are_returned_in_the_order_of_the_keys(tmp_path: Path) -> None:
    keys = [bytes([number]) * 32 for number in range(6)]
    cache = FeatureCache(tmp_path / "tower")
    cache.add(keys[:2], torch.tensor([[0.0], [1.0]]))
    cache.add(keys[3:], torch.tensor([[3.0], [4.0], [5.0]]))
    for reader in (cache, FeatureCache(tmp_path / "tower")):
        known, features = reader.read([keys[5], keys[2], keys[0], keys[3]])
        assert known.tolist() == [True, False, True, True]
        assert features[:, 0].tolist() == [5, 0, 3]
