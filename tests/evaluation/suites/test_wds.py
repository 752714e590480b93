"""Hub datasets in CLIP_benchmark's layout, from a local server; compared with CLIP_benchmark on the same shards."""

import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import clipkit
from clipkit.data import LabelledImages, Pairs
from clipkit.errors import DataError
from clipkit.evaluation.suites.sources import open_wds
from tests.conftest import COLOURS, SHAPES, draw
from tests.evaluation.suites import suite_client
from tests.evaluation.tasks.test_zeroshot import ForClipBenchmark, Tokens
from tests.models.hub_server import Hub, Repository, serving

CLASSES = ("red", "green", "blue", "yellow", "purple")  # the last one has no image
TEMPLATES = ("a photo of a {c} thing", "something {c}")


def vector(classes: list[int]) -> bytes:
    """Return the labels of an image as a vector of zeros and ones in NumPy's format."""
    content = io.BytesIO()
    np.save(content, np.isin(np.arange(len(CLASSES)), classes).astype(np.float32))
    return content.getvalue()


def shards(folder: Path, kind: str) -> Path:
    """Write two tars of shapes with one color, several labels, or captions, as CLIP_benchmark writes them."""
    samples = [(colour, shape) for colour in COLOURS for shape in SHAPES]
    (folder / "test").mkdir(parents=True)
    for number in range(2):
        with tarfile.open(folder / "test" / f"{number}.tar", "w") as tar:
            for place, (colour, shape) in enumerate(samples[number::2]):
                content = io.BytesIO()
                draw(colour, shape, shift=place % 3).save(content, "PNG")
                suffix, label = {
                    "retrieval": ("txt", f"a {colour} {shape}\nthe {shape} is {colour}".encode()),
                    "classification": ("cls", str(CLASSES.index(colour)).encode()),
                    "multilabel": ("npy", vector([CLASSES.index(colour), 4] if place % 3 else [])),
                }[kind]
                for name, data in {"png": content.getvalue(), suffix: label}.items():
                    member = tarfile.TarInfo(f"s{place:04d}.{name}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    (folder / "test" / "nshards.txt").write_text("2\n")
    (folder / "dataset_type.txt").write_text(kind)
    if kind != "retrieval":
        (folder / "classnames.txt").write_text("\n".join(CLASSES) + "\n")
        (folder / "zeroshot_classification_templates.txt").write_text("\n".join(TEMPLATES) + "\n")
    return folder


def test_shards_are_read_with_classes_prompts_and_captions(tmp_path: Path) -> None:
    opened = open_wds(shards(tmp_path / "classes", "classification"), "test")
    assert isinstance(opened.data, LabelledImages)
    assert opened.data.class_names == list(CLASSES)
    assert opened.templates == list(TEMPLATES)
    assert [CLASSES[label] for label in opened.data.labels[:4].tolist()] == ["red", "red", "green", "green"]
    captions = open_wds(shards(tmp_path / "captions", "retrieval"), "test").data
    assert isinstance(captions, Pairs)
    assert captions.captions[:2] == ["a red square", "the square is red"]
    assert captions.image_of_caption[:4].tolist() == [0, 0, 1, 1]
    several = open_wds(shards(tmp_path / "several", "multilabel"), "test").data
    assert isinstance(several, LabelledImages)
    assert several.labels[:3].tolist() == [[False] * 5, [True, False, False, False, True],
                                           [False, True, False, False, True]]  # fmt: skip


def test_incomplete_shards_are_refused(tmp_path: Path) -> None:
    folder = shards(tmp_path / "classes", "classification")
    with pytest.raises(DataError, match="has no split train"):
        open_wds(folder, "train")
    (folder / "classnames.txt").write_text("red\ngreen\nblue\n")
    with pytest.raises(DataError, match=r"has the label 3, and classnames\.txt 3 names"):
        open_wds(folder, "test")
    (folder / "test" / "1.tar").unlink()  # as of a download that was broken off, without the network
    with pytest.raises(DataError, match=r"1 of its 2 shards are missing, the first is .*1\.tar"):
        open_wds(folder, "test")
    (folder / "test" / "nshards.txt").write_text("many")
    with pytest.raises(DataError, match="says 'many'"):
        open_wds(folder, "test")
    several = shards(tmp_path / "several", "multilabel")
    (several / "classnames.txt").write_text("red\ngreen\n")
    with pytest.raises(DataError, match=r"has the label '4', and classnames\.txt 2 names"):
        open_wds(several, "test")
    (several / "dataset_type.txt").unlink()
    (several / "classnames.txt").write_text("\n".join(CLASSES))
    with pytest.raises(DataError):  # CLIP_benchmark takes it for classes too, and fails
        open_wds(several, "test")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["classification", "multilabel", "retrieval"])
def test_metrics_equal_clip_benchmark_on_the_same_shards(kind: str, tiny_clip: Path, tmp_path: Path) -> None:
    builder = pytest.importorskip("clip_benchmark.datasets.builder")
    pytest.importorskip("webdataset")
    folder = shards(tmp_path / "wds_fake", kind)
    task = "retrieval" if kind == "retrieval" else "zeroshot"
    entry: dict[str, Any] = {
        "name": "fake", "task": task, "source": "wds:clip-benchmark/wds_fake", "images": 16
    }  # fmt: skip
    if kind == "multilabel":
        entry["metric"] = "mean_average_precision"
    missing = {"name": "missing", "task": task, "source": "wds:clip-benchmark/wds_missing"}
    (tmp_path / "fake.yaml").write_text(yaml.safe_dump({"name": "fakes", "datasets": [entry, missing]}))
    with serving(Hub({"clip-benchmark/wds_fake": Repository({"main": folder})})) as hub:
        environment = os.environ | {
            "HF_HOME": str(tmp_path / "home"), "HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0", "CUDA_VISIBLE_DEVICES": "",
        }  # fmt: skip
        arguments = [str(tmp_path / "fake.yaml"), str(tiny_clip), str(tmp_path / "out")]
        done = subprocess.run(
            [sys.executable, suite_client.__file__, *arguments],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    suite_result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert list(suite_result["unreached"]) == ["missing"]
    assert not suite_result["failed"]
    (result,) = [json.loads(file.read_text()) for file in (tmp_path / "out").glob("*--fake.json")]

    model = clipkit.load(tiny_clip)
    theirs = builder.build_wds_dataset("fake", lambda image: image.convert("RGB"), data_dir=str(folder))
    images, targets = zip(*theirs, strict=True)
    features = model.encode_image(list(images))
    if kind != "retrieval":
        from clip_benchmark.metrics import zeroshot_classification as metrics

        weights = metrics.zero_shot_classifier(
            ForClipBenchmark(model), lambda texts: Tokens(model.text.tokenize(texts)), theirs.classes, theirs.templates,
            "cpu", amp=False,
        )  # fmt: skip
        scores = 100 * features @ weights
        if kind == "multilabel":
            wanted_precision = metrics.average_precision_per_class(scores, torch.tensor(np.stack(targets)))
            precision = result["metrics"]["mean_average_precision"]["value"]
            assert precision == pytest.approx(wanted_precision.mean().item(), abs=1e-6)
            return
        labels = torch.tensor(targets)
        top = scores.topk(5, dim=1).indices == labels[:, None]  # CLIP_benchmark's accuracy() fails with this NumPy
        assert result["metrics"]["acc1"]["value"] == pytest.approx(top[:, 0].double().mean().item(), abs=1e-6)
        assert result["metrics"]["acc5"]["value"] == pytest.approx(top.any(dim=1).double().mean().item(), abs=1e-6)
    else:
        texts = [caption for captions in targets for caption in captions]
        image_of_text = torch.tensor([image for image, captions in enumerate(targets) for _ in captions])
        wanted = clipkit.metrics.retrieval(features, model.encode_text(texts), image_of_text)
        for name in ("image_retrieval_recall@5", "text_retrieval_recall@5", "mean_recall"):
            assert result["metrics"][name]["value"] == pytest.approx(wanted[name], abs=1e-6)
        assert result["data"]["captions"] == 32
