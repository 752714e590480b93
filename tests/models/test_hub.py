"""Downloads with the real Hub client from a server on loopback."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from huggingface_hub import constants
from open_clip.push_to_hf_hub import save_config_for_hf
from safetensors.torch import save_file

import clipkit
from clipkit.errors import ModelError
from tests.models import hub_client
from tests.models.families import build
from tests.models.hub_server import TOKEN, Hub, Repository, serving


class Client:
    """A separate process with clipkit, which uses the Hub on loopback."""

    def __init__(self, home: Path, url: str) -> None:
        environment = os.environ | {
            "HF_HOME": str(home), "HF_ENDPOINT": url, "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1", "CUDA_VISIBLE_DEVICES": "",
        }  # fmt: skip
        environment.pop("HF_TOKEN", None)
        self.process = subprocess.Popen(
            [sys.executable, hub_client.__file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip

    def load(self, name: str, token: str = "") -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps([name, token]) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, self.process.communicate()[1]
        return json.loads(line)

    def error(self, name: str, token: str = "") -> str:
        answer = self.load(name, token)
        assert "\n" not in answer["error"]
        return answer["error"]

    def close(self) -> str:
        return self.process.communicate()[1]


def features(folder: Path) -> list[float]:
    return clipkit.load(folder).encode_text(["a red square"])[0, :4].tolist()


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """A CLIP with two revisions, gated and private copies, an open_clip and an unsupported model."""
    base = tmp_path_factory.mktemp("repositories")
    first, second = build("clip", base / "first"), build("clip", base / "second")
    model = clipkit.load(second)
    with torch.no_grad():
        model.text.head.weight.add_(
            torch.randn(model.text.head.weight.shape, generator=torch.Generator().manual_seed(1))
        )
    model.save(second)
    for unneeded in (
        "pytorch_model.bin",
        "tf_model.h5",
        "flax_model.msgpack",
        "onnx/model.onnx",
        "model.fp16.safetensors",
    ):
        (first / unneeded).parent.mkdir(exist_ok=True)
        (first / unneeded).write_bytes(b"x" * 100)
    other = base / "open_clip"
    vision = {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8}
    text = {"context_length": 77, "vocab_size": 49408, "width": 128, "heads": 2, "layers": 2}
    native = open_clip.CLIP(24, vision, text)
    native.visual.preprocess_cfg = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
    native.visual.image_mean = native.visual.image_std = (0.5, 0.5, 0.5)
    other.mkdir()
    save_config_for_hf(
        native, other / "open_clip_config.json", {"embed_dim": 24, "vision_cfg": vision, "text_cfg": text}
    )
    save_file(native.state_dict(), other / "open_clip_model.safetensors")
    torch.save(native.state_dict(), other / "open_clip_pytorch_model.bin")
    foreign = base / "foreign"
    foreign.mkdir()
    (foreign / "config.json").write_text(json.dumps({"model_type": "blip"}))
    (foreign / "model.safetensors").write_bytes(b"x" * 100)
    pickled = shutil.copytree(second, base / "pickled")
    torch.save(clipkit.load(second).backend.native.state_dict(), pickled / "pytorch_model.bin")  # type: ignore[attr-defined]
    (pickled / "model.safetensors").unlink()
    repositories = {
        "tiny/clip": Repository({"main": first, "v2": second}),
        "tiny/private": Repository({"main": second}, private=True),
        "tiny/gated": Repository({"main": second}, gated=True),
        "tiny/open": Repository({"main": other}),
        "tiny/blip": Repository({"main": foreign}),
        "tiny/pickled": Repository({"main": pickled}),
    }
    with serving(Hub(repositories)) as served:
        yield served


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hf_home")


@pytest.fixture(scope="module")
def online(hub: Hub, home: Path) -> Iterator[Client]:
    client = Client(home, hub.url)
    yield client
    client.close()


def folder_of(hub: Hub, name: str, revision: str = "main") -> Path:
    return hub.repositories[name].revisions[revision]


@pytest.mark.slow
def test_only_needed_files_are_downloaded(hub: Hub, online: Client) -> None:
    assert online.load("tiny/clip") == {"features": features(folder_of(hub, "tiny/clip"))}
    sent = hub.files_sent("tiny/clip")
    assert "model.safetensors" in sent
    assert {"config.json", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json"} <= set(sent)
    assert not [file for file in sent if file.endswith((".bin", ".h5", ".msgpack", ".onnx"))]
    assert "model.fp16.safetensors" not in sent


def test_revision_is_pinned(hub: Hub, online: Client) -> None:
    answer = online.load("tiny/clip@v2")
    assert answer == {"features": features(folder_of(hub, "tiny/clip", "v2"))}
    assert answer != online.load("tiny/clip")
    sha = hub.repositories["tiny/clip"].sha("v2")
    assert online.load(f"tiny/clip@{sha}") == answer
    assert re.match(r"tiny/clip@v3: .*\bv3\b", online.error("tiny/clip@v3"))


def test_each_refusal_names_its_reason(hub: Hub, online: Client) -> None:
    assert "is private or does not exist; log in with `hf auth login`" in online.error("tiny/private")
    assert "is private or does not exist" in online.error("tiny/none")
    assert "neither a folder nor a Hub repository; check the name" in online.error("tiny/none", TOKEN)
    assert "is a gated repository" in online.error("tiny/gated")
    expected = {"features": features(folder_of(hub, "tiny/private"))}
    assert online.load("tiny/private", TOKEN) == expected
    assert online.load("tiny/gated", TOKEN) == expected


def test_interrupted_download_is_resumed(hub: Hub, online: Client) -> None:
    weights = "open_clip_model.safetensors"
    hub.break_once.add(weights)
    assert online.load("tiny/open") == {"features": features(folder_of(hub, "tiny/open"))}
    assert not hub.break_once
    # The client writes 10 MiB at a time, and asks for what is missing.
    assert [request for _, path, request in hub.requests if path.endswith(weights) and request] == [
        f"bytes={10 << 20}-"
    ]


def test_layout_decides_which_weights_are_downloaded(hub: Hub, online: Client) -> None:
    assert "open_clip_pytorch_model.bin" not in hub.files_sent("tiny/open")
    assert online.load("tiny/pickled") == {"features": features(folder_of(hub, "tiny/pickled"))}
    # Nobody waits for gigabytes that cannot be opened.
    assert "type blip" in online.error("tiny/blip")
    assert hub.files_sent("tiny/blip") == ["config.json"]


def test_offline_loading_uses_the_cache(hub: Hub, online: Client, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = online.load("tiny/clip")
    before = len(hub.requests)
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    assert constants.HF_HUB_OFFLINE  # in this process, as in all tests
    assert clipkit.load("tiny/clip").encode_text(["a red square"])[0, :4].tolist() == expected["features"]
    with pytest.raises(ModelError, match=r"tiny/never: .*HF_HUB_OFFLINE"):
        clipkit.load("tiny/never")
    assert len(hub.requests) == before


@pytest.mark.slow
def test_unreachable_hub_falls_back_to_the_cache(hub: Hub, online: Client, home: Path) -> None:
    expected = online.load("tiny/clip")
    lonely = Client(home, "http://127.0.0.1:9")
    assert lonely.load("tiny/clip") == expected
    assert "the Hub is not reachable" in lonely.error("tiny/never")
    lonely.close()
