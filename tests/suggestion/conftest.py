"""Five quite different datasets and three models, all tiny."""

import functools
import http.server
import io
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import timm
import torch
import transformers
from PIL import Image
from timm.models import save_for_hf

from clipkit.suggestion import data_facts, rules
from tests.conftest import COLOURS, SHAPES, draw, write_csv
from tests.models import families

MANY = 40
"""Images of the dataset `many`; the limits of the rules are lowered to match."""


@dataclass(frozen=True)
class Datasets:
    """Sources by name."""

    few: str
    many: str
    classes: str
    stream: str
    long: str


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture(scope="session")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Datasets]:
    folder = tmp_path_factory.mktemp("datasets")
    kinds = [(color, shape) for color in COLOURS for shape in SHAPES]
    noise = np.random.default_rng(0)
    (folder / "images").mkdir()
    rows = []
    for number in range(MANY):
        color, shape = kinds[number % len(kinds)]
        pixels = np.asarray(draw(color, shape, shift=number % 5)) ^ noise.integers(0, 32, (32, 32, 3), dtype=np.uint8)
        name = f"images/{number:03d}.png"
        Image.fromarray(pixels).save(folder / name)
        rows += [[name, f"a {color} {shape}, number {number}"], [name, f"{number}: the {shape} is {color}"]]
        (folder / "classes" / color).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / "classes" / color / f"{number:03d}.png")
    header = ["image", "caption"]
    few = write_csv(folder / "few.csv", header, rows[:32:2])
    many = write_csv(folder / "many.csv", header, rows)
    long = write_csv(folder / "long.csv", header, [[name, f"{text} " * 20] for name, text in rows[::2]])
    (folder / "served").mkdir()
    for shard in range(3):
        with tarfile.open(folder / "served" / f"{shard}.tar", "w") as tar:
            for number, (name, text) in enumerate(rows[shard:36:3]):
                for ending, content in (("png", (folder / name).read_bytes()), ("txt", text.encode())):
                    member = tarfile.TarInfo(f"{number:03d}.{ending}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    handler = functools.partial(_Quiet, directory=str(folder / "served"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        stream = f"http://127.0.0.1:{server.server_port}/{{0..2}}.tar"
        yield Datasets(str(few), str(many), str(folder / "classes"), stream, str(long))
        server.shutdown()


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """Arguments of `suggest` that name a model: a CLIP, a SigLIP, two towers."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    families.clip(folder / "clip")
    families.siglip(folder / "siglip")
    save_for_hf(timm.create_model("test_convnext", num_classes=0), str(folder / "image"), safe_serialization=True)
    tokenizer = families.bert_tokenizer()
    text = transformers.BertModel(
        transformers.BertConfig(**families.SMALL, vocab_size=len(tokenizer), max_position_embeddings=64)
    )
    families.save(folder / "text", text, tokenizer)
    return {
        "clip": {"model": str(folder / "clip")},
        "siglip": {"model": str(folder / "siglip")},
        "towers": {"image_tower": str(folder / "image"), "text_tower": str(folder / "text")},
    }


@pytest.fixture
def low_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lower the numbers of images at which rules change, so that `many` counts as many."""
    monkeypatch.setattr(rules, "_FEW", 20)
    monkeypatch.setattr(data_facts, "_EXAMINED", 30)
