"""Datasets in CLIP_benchmark's layout, compared with CLIP_benchmark on the same shards."""

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
from clipkit.data import read_labeled, read_pairs
from clipkit.errors import DataError
from tests.conftest import COLOURS, SHAPES, draw
from tests.evaluation.suites import suite_client
from tests.evaluation.tasks.test_zeroshot import ForClipBenchmark, Tokens
from tests.models.hub_server import Hub, Repository, serving

CLASSES = ("red", "green", "blue", "yellow", "purple")  # the last has no image
TEMPLATES = ("a photo of a {c} thing", "something {c}")


def vector(classes: list[int]) -> bytes:
    """A one for each class, in NumPy's format."""
    content = io.BytesIO()
    np.save(content, np.isin(np.arange(len(CLASSES)), classes).astype(np.float32))
    return content.getvalue()


def shards(folder: Path, kind: str) -> Path:
    """Two tars of shapes with their colours, with colour and size, or with captions, as CLIP_benchmark writes them."""
    samples = [(colour, shape) for colour in COLOURS for shape in SHAPES]
    (folder / "test").mkdir(parents=True)
    for number in range(2):
        with tarfile.open(folder / "test" / f"{number}.tar", "w") as tar:
            for place, (colour, shape) in enumerate(samples[number::2]):
                content = io.BytesIO()
                draw(colour, shape, shift=place % 3).save(content, "PNG")
                ending, said = {
                    "retrieval": ("txt", f"a {colour} {shape}\nthe {shape} is {colour}".encode()),
                    "classification": ("cls", str(CLASSES.index(colour)).encode()),
                    "multilabel": ("npy", vector([CLASSES.index(colour), 4] if place % 3 else [])),
                }[kind]
                for name, own in {"png": content.getvalue(), ending: said}.items():
                    member = tarfile.TarInfo(f"s{place:04d}.{name}")
                    member.size = len(own)
                    tar.addfile(member, io.BytesIO(own))
    (folder / "test" / "nshards.txt").write_text("2\n")
    (folder / "dataset_type.txt").write_text(kind)
    if kind != "retrieval":
        (folder / "classnames.txt").write_text("\n".join(CLASSES) + "\n")
        (folder / "zeroshot_classification_templates.txt").write_text("\n".join(TEMPLATES) + "\n")
    return folder


def test_labels_have_the_class_names_and_prompts_of_the_folder(tmp_path: Path) -> None:
    source = f"wds:{shards(tmp_path, 'classification')}"
    labelled = read_labeled(source)
    assert labelled.name == source
    assert labelled.class_names == list(CLASSES)
    assert labelled.classes == ["0", "1", "2", "3", "4"]
    assert labelled.templates == list(TEMPLATES)
    assert [CLASSES[label] for label in labelled.labels[:4].tolist()] == ["red", "red", "green", "green"]
    assert read_pairs(source).captions[:4] == ["red", "red", "green", "green"]
    assert read_pairs(f"{source}?split=test&templates=imagenet_simple").captions[0] == "itap of a red."


def test_captions_are_split_into_lines(tmp_path: Path) -> None:
    pairs = read_pairs(f"wds:{shards(tmp_path, 'retrieval')}:test")
    assert pairs.captions[:2] == ["a red square", "the square is red"]
    assert pairs.image_of_caption[:4].tolist() == [0, 0, 1, 1]
    with pytest.raises(DataError, match="has a label"):
        read_labeled(f"wds:{tmp_path}")


def test_multilabel_images_may_have_no_label(tmp_path: Path) -> None:
    labelled = read_labeled(f"wds:{shards(tmp_path, 'multilabel')}")
    assert labelled.labels[:3].tolist() == [[False] * 5, [True, False, False, False, True],
                                           [False, True, False, False, True]]  # fmt: skip
    assert labelled.class_names == list(CLASSES)
    with pytest.raises(DataError, match="sample 1 has no caption"):
        read_pairs(f"wds:{tmp_path}")


def test_errors_name_the_missing_part(tmp_path: Path) -> None:
    folder = shards(tmp_path / "classes", "classification")
    with pytest.raises(DataError, match="has no split train"):
        read_labeled(f"wds:{folder}:train")
    (folder / "classnames.txt").write_text("red\ngreen\nblue\n")
    with pytest.raises(DataError, match="the label '3', which is not one of its 3 listed classes"):
        read_labeled(f"wds:{folder}")
    (folder / "test" / "1.tar").unlink()  # as after an interrupted download, without a network
    with pytest.raises(DataError, match=r"1 of its 2 shards are missing, e\.g\. .*1\.tar"):
        read_labeled(f"wds:{folder}")
    (folder / "test" / "nshards.txt").write_text("many")
    with pytest.raises(DataError, match="'many'"):
        read_labeled(f"wds:{folder}")
    multilabel = shards(tmp_path / "several", "multilabel")
    (multilabel / "classnames.txt").write_text("red\ngreen\n")
    with pytest.raises(DataError, match="the label '4', which is not one of its 2 listed classes"):
        read_labeled(f"wds:{multilabel}")
    (multilabel / "dataset_type.txt").unlink()
    (multilabel / "classnames.txt").write_text("\n".join(CLASSES))
    with pytest.raises(DataError, match="multilabel"):  # CLIP_benchmark reads these as classes, and fails
        read_labeled(f"wds:{multilabel}")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["classification", "multilabel", "retrieval"])
def test_results_equal_those_of_clip_benchmark(kind: str, tiny_clip: Path, tmp_path: Path) -> None:
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
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert list(found["unreached"]) == ["missing"]
    assert not found["failed"]
    (result,) = [json.loads(own.read_text()) for own in (tmp_path / "out").glob("*--fake.json")]

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
        top = scores.topk(5, dim=1).indices == labels[:, None]  # its own accuracy() fails with this numpy
        assert result["metrics"]["acc1"]["value"] == pytest.approx(top[:, 0].double().mean().item(), abs=1e-6)
        assert result["metrics"]["acc5"]["value"] == pytest.approx(top.any(dim=1).double().mean().item(), abs=1e-6)
    else:
        texts = [caption for own in targets for caption in own]
        image_of_text = torch.tensor([place for place, own in enumerate(targets) for _ in own])
        wanted = clipkit.metrics.retrieval(features, model.encode_text(texts), image_of_text)
        for name in ("image_retrieval_recall@5", "text_retrieval_recall@5", "mean_recall"):
            assert result["metrics"][name]["value"] == pytest.approx(wanted[name], abs=1e-6)
        assert result["data"]["captions"] == 32
