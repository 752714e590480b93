"""Encoder for mteb: its features, and equal figures of mteb's wrapper of open_clip on tasks of each type."""

import importlib.util
import io
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

import clipkit
from clipkit.embedding.features import Features
from clipkit.errors import DataError, UserError
from clipkit.evaluation.mteb import MtebModel, mteb_model
from tests.conftest import draw

TASK = SimpleNamespace(name="Tiny")
ARCHITECTURE = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "patch_size": 8, "head_width": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}


@pytest.fixture(scope="module")
def model(tiny_clip: Path) -> clipkit.DualEncoder:
    return clipkit.load(tiny_clip, device="cpu")


def encoder(model: clipkit.DualEncoder, **options: Any) -> MtebModel:
    """Return an encoder without mteb's description, so that mteb itself is not needed."""
    return MtebModel(Features(model, normalize=False, **options), SimpleNamespace())  # type: ignore[arg-type]


def loader(dataset: Any) -> Any:
    return SimpleNamespace(dataset=dataset)


def transparent() -> Image.Image:
    image = draw("red", "circle").convert("RGBA")
    image.putalpha(Image.fromarray(np.arange(32 * 32).reshape(32, 32).astype(np.uint8)))
    return image


def stored(images: list[Image.Image], **columns: list[Any]) -> datasets.Dataset:
    """Return a dataset with PNG files, as tasks of mteb have them."""
    contents = []
    for image in images:
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        contents.append({"bytes": buffer.getvalue(), "path": None})
    return datasets.Dataset.from_dict({"image": contents, **columns}).cast_column("image", datasets.Image())


def test_features_are_those_before_normalization(model: clipkit.DualEncoder) -> None:
    images, texts = [draw("red", "circle"), draw("blue", "cross")], ["a red circle", "blue"]
    ours = encoder(model, cache=False)
    image = ours.encode(loader(stored(images)), task_metadata=TASK, hf_split="test", batch_size=32)
    assert torch.equal(image, model.encode_image(images, normalize=False))
    assert not torch.allclose(image.norm(dim=1), torch.ones(2))
    text = ours.encode(loader(datasets.Dataset.from_dict({"text": texts})), task_metadata=TASK)
    both = ours.encode(loader(stored(images, text=texts)), task_metadata=TASK)
    assert torch.equal(both, text + image)


def test_images_are_decoded_as_by_mteb(model: clipkit.DualEncoder) -> None:
    ours = encoder(model, cache=False)
    expected = model.encode_image(transparent().convert("RGB"), normalize=False)
    assert not torch.equal(expected, model.encode_image(transparent(), normalize=False))
    assert torch.equal(ours.encode(loader(stored([transparent()])), task_metadata=TASK), expected)

    class InMemory(list[dict[str, Image.Image]]):
        features = {"image": []}  # noqa: RUF012

    held = ours.encode(loader(InMemory([{"image": transparent()}])), task_metadata=TASK)
    assert torch.equal(held, expected)


def test_each_image_is_encoded_once_for_all_tasks(model: clipkit.DualEncoder, tmp_path: Path) -> None:
    red, blue = draw("red", "circle"), draw("blue", "cross")
    first = encoder(model, cache=tmp_path)
    first.encode(loader(stored([red, red, blue])), task_metadata=TASK)
    assert first.features.counts == {"computed": 2, "from_cache": 0}
    again = encoder(model, cache=tmp_path)
    again.encode(loader(stored([blue, red])), task_metadata=TASK)
    assert again.features.counts == {"computed": 0, "from_cache": 2}
    of_unit_length = Features(model, cache=tmp_path)
    assert torch.equal(of_unit_length.texts(["red"]), model.encode_text("red"))
    assert torch.equal(of_unit_length.images([red]), model.encode_image(red))
    assert of_unit_length.counts == {"computed": 2, "from_cache": 0}


def test_a_damaged_image_names_its_task_and_row(model: clipkit.DualEncoder) -> None:
    rows = {"image": [{"bytes": b"no image", "path": None}]}
    damaged = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    with pytest.raises(DataError, match="Tiny, row 1: "):
        encoder(model, cache=False).encode(loader(damaged), task_metadata=TASK)
    gone = datasets.Dataset.from_dict({"image": [{"bytes": None, "path": "gone.png"}]})
    gone = gone.cast_column("image", datasets.Image())
    with pytest.raises(DataError, match=r"Tiny, row 1: .*gone.png"):
        encoder(model, cache=False).encode(loader(gone), task_metadata=TASK)
    missing = datasets.Dataset.from_dict({"text": ["a", None]})
    with pytest.raises(DataError, match="Tiny, row 2: .*None"):
        encoder(model, cache=False).encode(loader(missing), task_metadata=TASK)


def test_unsupported_arguments_are_errors(model: clipkit.DualEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="int8"):
        encoder(model, cache=False).encode(loader(stored([])), task_metadata=TASK, precision="int8")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name != "mteb" or None)
    with pytest.raises(UserError, match=r"mteb is required.*clipkit-torch\[mteb\]"):
        mteb_model(model)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
    with pytest.raises(UserError, match="'my clip'"):
        mteb_model(model, name="my clip")


# With mteb itself.


@pytest.fixture(scope="module")
def mteb() -> Any:
    return pytest.importorskip("mteb", reason="mteb is not installed: pip install 'clipkit-torch[mteb]'")


@pytest.fixture
def saved(tmp_path: Path) -> Iterator[Path]:
    """Folder with a tiny model in open_clip's layout."""
    import open_clip
    from open_clip import factory

    (tmp_path / "tiny-mteb.json").write_text(json.dumps(ARCHITECTURE))
    before = list(factory._MODEL_CONFIG_PATHS)
    open_clip.add_model_config(tmp_path / "tiny-mteb.json")
    torch.manual_seed(0)
    clipkit.load("open_clip:tiny-mteb", device="cpu").save(tmp_path / "tiny")
    yield tmp_path / "tiny"
    factory._MODEL_CONFIG_PATHS[:] = before
    factory._rescan_model_configs()


def wrapper_of_mteb(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return mteb's wrapper of open_clip, which loads models from the Hub only, for a folder."""
    import open_clip
    from mteb.models.model_implementations.openclip_models import openclip_loader

    create, tokenizer, local = open_clip.create_model_and_transforms, open_clip.get_tokenizer, f"local-dir:{folder}"
    monkeypatch.setattr(open_clip, "create_model_and_transforms", lambda name, **options: create(local, **options))
    monkeypatch.setattr(open_clip, "get_tokenizer", lambda name: tokenizer(local))
    theirs = openclip_loader("me/tiny", revision="x", device="cpu")
    theirs.mteb_model_meta = mteb_model(clipkit.load(folder, device="cpu"), name="me/tiny").mteb_model_meta
    return theirs


def figures(scores: Any, name: str = "") -> Iterator[tuple[str, float]]:
    """All numbers in the scores of a task, by path."""
    if isinstance(scores, dict | list):
        for key, value in scores.items() if isinstance(scores, dict) else enumerate(scores):
            yield from figures(value, f"{name}/{key}")
    elif isinstance(scores, int | float) and not np.isnan(scores):
        yield name, float(scores)


@pytest.mark.peer
def test_tasks_have_the_figures_of_mteb(
    mteb: Any, saved: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from tests.evaluation import mteb_tasks

    theirs = wrapper_of_mteb(saved, monkeypatch)
    ours = clipkit.mteb_model(clipkit.load(saved, device="cpu"), cache=tmp_path / "cache")
    assert isinstance(ours, mteb.models.EncoderProtocol)
    for task, same in zip(mteb_tasks.all_tasks(), mteb_tasks.all_tasks(), strict=True):
        scores = []
        for model, its_task in ((theirs, task), (ours, same)):
            result = mteb.evaluate(model, its_task, cache=None, show_progress_bar=False)
            scores.append(dict(figures(result.task_results[0].scores)))
        assert len(scores[0]) > 2, task.metadata.name
        assert scores[1] == pytest.approx(scores[0], abs=1e-6), task.metadata.name


@pytest.mark.peer
def test_a_changed_model_is_evaluated_again(mteb: Any, saved: Path, tmp_path: Path) -> None:
    from tests.evaluation.mteb_tasks import VisualSts

    cache = mteb.ResultCache(tmp_path / "results")
    model = clipkit.load(saved, device="cpu")
    scores, revisions = [], []
    for _ in range(2):
        encoder = clipkit.mteb_model(model, cache=tmp_path / "cache")
        assert encoder.mteb_model_meta.name == "clipkit/tiny"
        result = mteb.evaluate(encoder, VisualSts(), cache=cache, show_progress_bar=False)
        again = mteb.evaluate(encoder, VisualSts(), cache=cache, show_progress_bar=False)
        assert again.task_results[0].get_score() == pytest.approx(result.task_results[0].get_score(), abs=1e-5)
        scores.append(result.task_results[0].get_score())
        revisions.append(encoder.mteb_model_meta.revision)
        with torch.no_grad():
            next(model.image.parameters()).normal_()
    assert scores[0] != scores[1]
    assert revisions[0] != revisions[1]
    named = clipkit.mteb_model(model, name="me/my-clip", revision="main").mteb_model_meta
    assert (named.name, named.revision) == ("me/my-clip", "main")
