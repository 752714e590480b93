"""Hub data sets in CLIP_benchmark's layout, from a server on loopback, beside CLIP_benchmark on the same shards."""

import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import clipkit
from clipkit.data import LabelledPictures, Pairs
from clipkit.errors import DataError
from clipkit.evaluation.suites.sources import open_wds
from tests.conftest import COLOURS, SHAPES, draw
from tests.evaluation.suites import suite_client
from tests.evaluation.test_zeroshot import ForClipBenchmark, Tokens
from tests.models.hub_server import Hub, Repository, serving

CLASSES = ("red", "green", "blue", "yellow", "purple")  # of the last there is no picture
TEMPLATES = ("a photo of a {c} thing", "something {c}")


def shards(folder: Path, kind: str) -> Path:
    """Two tars of shapes with their colours, or with two captions each, as CLIP_benchmark's exporter writes them."""
    samples = [(colour, shape) for colour in COLOURS for shape in SHAPES]
    (folder / "test").mkdir(parents=True)
    for number in range(2):
        with tarfile.open(folder / "test" / f"{number}.tar", "w") as tar:
            for place, (colour, shape) in enumerate(samples[number::2]):
                content = io.BytesIO()
                draw(colour, shape, shift=place % 3).save(content, "PNG")
                text = (
                    f"a {colour} {shape}\nthe {shape} is {colour}"
                    if kind == "retrieval"
                    else str(CLASSES.index(colour))
                )
                files = {"png": content.getvalue(), ("txt" if kind == "retrieval" else "cls"): text.encode()}
                for ending, own in files.items():
                    member = tarfile.TarInfo(f"s{place:04d}.{ending}")
                    member.size = len(own)
                    tar.addfile(member, io.BytesIO(own))
    (folder / "test" / "nshards.txt").write_text("2\n")
    (folder / "dataset_type.txt").write_text(kind)
    if kind != "retrieval":
        (folder / "classnames.txt").write_text("\n".join(CLASSES) + "\n")
        (folder / "zeroshot_classification_templates.txt").write_text("\n".join(TEMPLATES) + "\n")
    return folder


def test_shards_have_their_classes_prompts_and_captions(tmp_path: Path) -> None:
    opened = open_wds(shards(tmp_path / "classes", "classification"), "test")
    assert isinstance(opened.data, LabelledPictures)
    assert opened.data.class_names == list(CLASSES)
    assert opened.templates == list(TEMPLATES)
    assert [CLASSES[label] for label in opened.data.labels[:4].tolist()] == ["red", "red", "green", "green"]
    captions = open_wds(shards(tmp_path / "captions", "retrieval"), "test").data
    assert isinstance(captions, Pairs)
    assert captions.captions[:2] == ["a red square", "the square is red"]
    assert captions.image_of_caption[:4].tolist() == [0, 0, 1, 1]
    with pytest.raises(DataError, match=r"has no shards train/0\.tar"):
        open_wds(tmp_path / "classes", "train")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["classification", "retrieval"])
def test_the_same_as_clip_benchmark_from_the_same_shards(kind: str, tiny_clip: Path, tmp_path: Path) -> None:
    builder = pytest.importorskip("clip_benchmark.datasets.builder")
    pytest.importorskip("webdataset")
    folder = shards(tmp_path / "wds_fake", kind)
    task = {"classification": "zeroshot", "retrieval": "retrieval"}[kind]
    entry = {"name": "fake", "task": task, "source": "wds:clip-benchmark/wds_fake", "pictures": 16}
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
    theirs = builder.build_wds_dataset("fake", lambda picture: picture.convert("RGB"), data_dir=str(folder))
    pictures, targets = zip(*theirs, strict=True)
    features = model.encode_image(list(pictures))
    if kind == "classification":
        from clip_benchmark.metrics import zeroshot_classification as metrics

        weights = metrics.zero_shot_classifier(
            ForClipBenchmark(model), lambda texts: Tokens(model.text.tokenize(texts)), theirs.classes, theirs.templates,
            "cpu", amp=False,
        )  # fmt: skip
        scores, labels = 100 * features @ weights, torch.tensor(targets)
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
