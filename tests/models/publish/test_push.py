"""Uploads with the real Hub client to a server on loopback."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import model_index_to_eval_results

import clipkit
from clipkit.run_files import RunFiles
from tests.conftest import small_recipe
from tests.models.families import build
from tests.models.hub_server import TOKEN, Hub, serving
from tests.models.publish import push_client


class Client:
    """A separate process with clipkit, which uses the Hub on loopback."""

    def __init__(self, home: Path, url: str) -> None:
        environment = os.environ | {
            "HF_HOME": str(home), "HF_ENDPOINT": url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "CUDA_VISIBLE_DEVICES": "",
        }  # fmt: skip
        self.process = subprocess.Popen(
            [sys.executable, push_client.__file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip

    def ask(self, repository: str, folder: Path | str = "", by: str = "push", **options: Any) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        request = {
            "folder": str(folder),
            "repository": repository,
            "by": by,
            "token": TOKEN,
            "private": False,
            "names": None,
        } | options
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, self.process.communicate()[1]
        answer = json.loads(line)
        assert "\n" not in answer.get("error", "")
        return answer


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    with serving(Hub(uploads=tmp_path_factory.mktemp("uploads"))) as served:
        yield served


@pytest.fixture(scope="module")
def client(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    served = Client(tmp_path_factory.mktemp("home"), hub.url)
    yield served
    served.process.communicate()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, shapes: Path) -> Path:
    """A finished run of a model whose card states a base and a license."""
    folder = tmp_path_factory.mktemp("run")
    base = build("clip", folder / "base")
    (base / "README.md").write_text("---\nlicense: mit\nbase_model: org/first\n---\nA base.\n")
    clipkit.train(small_recipe(base, shapes, folder / "run"))
    return folder / "run"


def test_pushed_model_loads_again(hub: Hub, client: Client, run: Path) -> None:
    done = client.ask("me/first", run / "model")
    assert done["url"].startswith(f"{hub.url}/me/first/commit/")
    assert len(hub.commits) == 1
    assert done["notes"] == []
    loaded = client.ask("me/first", by="load")
    assert loaded["features"] == clipkit.load(run).encode_text(["a red square"])[0, :4].tolist()
    card = (hub.repositories["me/first"].revisions["main"] / "README.md").read_text()
    assert "ORG/NAME" not in card
    assert 'pipeline("zero-shot-image-classification", model="me/first")' in card


def test_only_files_that_clipkit_wrote_are_pushed(hub: Hub, client: Client, run: Path, tmp_path: Path) -> None:
    written = RunFiles(run).model_files
    assert {"README.md", "config.json", "model.safetensors"} <= set(written)
    folder = tmp_path / "model"
    shutil.copytree(run / "model", folder)
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "key").write_text("secret")
    for name in (".env", "notes.txt", "optimizer.pt", "sub/notes.json", "\x1b[31m"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("secret")
    (folder / "link.json").symlink_to(tmp_path / "secret" / "key")
    (folder / "linked").symlink_to(tmp_path / "secret")
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.json").symlink_to(tmp_path / "secret" / "key")
    done = client.ask("me/clean", folder, names=written)
    pushed = hub.repositories["me/clean"].revisions["main"]
    assert {file.name for file in pushed.rglob("*")} == set(written) - {"tokenizer.json"} | (
        {".gitattributes"} & {file.name for file in pushed.rglob("*")}
    )
    assert sum("was not uploaded" in note for note in done["notes"]) >= 7


def test_card_is_valid_for_the_hub(hub: Hub, client: Client, run: Path, shapes: Path) -> None:
    text = (run / "model" / "README.md").read_text(encoding="utf-8")
    card = ModelCard(text)
    assert card.data.license == "mit"
    assert card.data.base_model == ["org/first"]
    assert card.data.library_name == "transformers"
    assert card.data.pipeline_tag == "zero-shot-image-classification"
    results = json.loads((run / "results.json").read_text())
    name, found = model_index_to_eval_results(card.data.to_dict()["model-index"])
    assert name == "ORG/NAME"
    assert {result.metric_type: result.metric_value for result in found} == {
        metric: figure["value"] for metric, figure in results["metrics"].items() if figure["value"] is not None
    }
    assert ModelCard(str(card)).data.to_dict() == card.data.to_dict()
    value = results["metrics"]["image_retrieval_recall@10"]
    assert f"{100 * value['low']:.1f} % – {100 * value['high']:.1f} %" in text
    assert "16 images, 32 captions" in text
    assert "16 training images are also in this data" in text
    assert str(shapes) not in text  # nothing of the machine it ran on
    assert str(run.parent) not in text


def test_interrupted_upload_is_resumed(hub: Hub, client: Client, run: Path) -> None:
    two = run.parent / "two"
    clipkit.load(run / "model").save(two)
    (two / "other.safetensors").write_bytes(os.urandom(5000))
    hub.received.clear()
    hub.break_once.add("PUT 5000")
    before = len(hub.commits)
    broken = client.ask("me/broken", two)
    if "error" in broken:  # the client may have tried once more by itself
        assert "run the same command again" in broken["error"]
        assert len(hub.commits) == before
        client.ask("me/broken", two)
    assert len(hub.commits) == before + 1
    sizes = [size for _, size in hub.received]
    assert sizes.count(2500) == 1  # the half that arrived
    assert sizes.count(5000) == 1
    assert len(sizes) <= 3  # the weights, which are the same as before or arrived the first time, at most once


def test_invalid_card_header_is_refused(hub: Hub, client: Client, run: Path, tmp_path: Path) -> None:
    clipkit.load(run / "model").save(tmp_path)
    (tmp_path / "README.md").write_text("---\nbase_model: [/home/me/base]\n---\nMine.\n")
    before = len(hub.commits)
    assert "rejects the model card" in client.ask("me/header", tmp_path)["error"]
    assert len(hub.commits) == before


def test_push_is_refused_without_access(hub: Hub, client: Client, run: Path) -> None:
    assert "the token is not valid" in client.ask("me/first", run / "model", token="hf_wrong")["error"]
    assert "log in with `hf auth login`" in client.ask("me/first", run / "model", token="")["error"]
    client.ask("me/mine", run / "model")
    hub.read_only = True
    try:
        assert "no write access" in client.ask("org/other", run / "model")["error"]
        # One that is there is known before anything is sent.
        hub.received.clear()
        assert "no write access" in client.ask("me/mine", run / "model")["error"]
        assert not [path for _, path, _ in hub.requests[-5:] if "/preupload/" in path]
    finally:
        hub.read_only = False
    for name in ("a/b/c", "alone", "me/what is this"):
        assert "not a valid Hub repository name" in client.ask(name, run / "model")["error"]
    assert "already exists and is public" in client.ask("me/mine", run / "model", private=True)["error"]


def test_push_keeps_edited_card_and_other_files(hub: Hub, client: Client, run: Path, tmp_path: Path) -> None:
    client.ask("me/existing", run / "model", private=True)
    assert hub.repositories["me/existing"].private
    folder = hub.repositories["me/existing"].revisions["main"]
    (folder / "pytorch_model.bin").write_bytes(b"older weights")
    again = client.ask("me/existing", run / "model")
    assert any("pytorch_model.bin" in note for note in again["notes"])
    assert (folder / "pytorch_model.bin").read_bytes() == b"older weights"
    card = folder / "README.md"
    card.write_text(card.read_text().replace("A dual encoder", "My dual encoder"))
    once_more = client.ask("me/existing", run / "model")
    assert any("README.md was changed on the Hub" in note for note in once_more["notes"])
    assert "My dual encoder" in card.read_text()
    model = clipkit.load(run / "model")
    model.save(tmp_path)
    (tmp_path / "README.md").write_text("Another card of my own.\n")
    assert any("README.md was changed on the Hub" in note for note in client.ask("me/existing", tmp_path)["notes"])
    assert "My dual encoder" in card.read_text()


def test_unchanged_model_keeps_its_card(hub: Hub, client: Client, run: Path) -> None:
    answer = client.ask("me/short", run.parent / "base", by="model")
    assert answer["url"].startswith(hub.url)
    card = ModelCard((hub.repositories["me/short"].revisions["main"] / "README.md").read_text())
    assert card.text.strip().startswith("A base.")  # its weights are the same, and so is its card


def test_push_from_python_keeps_the_card_of_unchanged_weights(hub: Hub, client: Client, run: Path) -> None:
    client.ask("me/python", run, by="model")
    folder = hub.repositories["me/python"].revisions["main"]
    assert "The complete recipe" in (folder / "README.md").read_text()
    client.ask("me/changed", run, by="changed model")
    card = ModelCard((hub.repositories["me/changed"].revisions["main"] / "README.md").read_text())
    assert card.data.eval_results is None  # what was measured was another model
    assert card.data.base_model == ["org/first"]
    assert card.data.license == "mit"
    assert "clipkit.load" in card.text


def test_open_clip_configuration_names_the_repository_of_its_tokenizer(
    hub: Hub, client: Client, run: Path, tmp_path: Path
) -> None:
    from clipkit.models.export import export

    export(clipkit.load(run / "model"), "open_clip", tmp_path / "open_clip")
    client.ask("me/open_clip", tmp_path / "open_clip")
    config = json.loads((hub.repositories["me/open_clip"].revisions["main"] / "open_clip_config.json").read_text())
    assert config["model_cfg"]["text_cfg"]["hf_tokenizer_name"] == "me/open_clip"
    assert client.ask("me/open_clip", by="load")["features"] == pytest.approx(
        clipkit.load(run).encode_text(["a red square"])[0, :4].tolist(), abs=1e-5
    )
