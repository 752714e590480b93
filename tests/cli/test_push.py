"""`clipkit push` and `clipkit train --push`, to a Hub on loopback."""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from huggingface_hub import ModelCard, constants

from clipkit.cli import main
from tests.models.families import build
from tests.models.hub_server import TOKEN, Hub, serving


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The Hub of this process."""
    with serving(Hub(uploads=tmp_path / "uploads")) as served:
        monkeypatch.setattr(constants, "ENDPOINT", served.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", served.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield served


def type_(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> None:
    monkeypatch.setattr(sys, "argv", ["clipkit", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    if ended.value.code:
        raise ended.value


def test_invalid_input_is_refused_in_one_line(tmp_path: Path, said_here: Callable[..., str]) -> None:
    model = build("clip", tmp_path / "model")
    assert "log in with `hf auth login`" in said_here("push", model, "me/model")
    assert "is not a valid Hub repository name; write org/name" in said_here("push", model, "model")
    file = tmp_path / "a.json"
    for content in ({"task": "retrieval"}, {"task": "retrieval", "metrics": {"acc1": 0.5}, "data": {}}):
        file.write_text(json.dumps(content))
        assert "is not a results JSON" in said_here("push", model, "me/model", "--results", file)
    assert "is not a results JSON" in said_here("push", model, "me/model", "--results", tmp_path / "none.json")


def test_run_that_cannot_be_pushed_does_not_start(
    recipe_file: Path, tmp_path: Path, said_here: Callable[..., str]
) -> None:
    assert "log in with `hf auth login`" in said_here("train", recipe_file, "--push", "me/model")
    assert "--private is for --push" in said_here("train", recipe_file, "--private")
    assert not (tmp_path / "run").exists()


def test_failed_push_after_training_can_be_repeated(
    hub: Hub, recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    hub.full = True  # which nobody knows before the run
    with pytest.raises(SystemExit) as ended:
        type_(monkeypatch, "train", recipe_file, "--push", "me/model", "--private")
    assert ended.value.code == 1  # it ran, and failed
    output = capsys.readouterr().err.splitlines()[-1]
    assert "Storage limit reached" in output
    assert output.endswith(f"push it with: clipkit push {run} me/model --private")
    assert (run / "results.json").is_file()
    assert not hub.commits
    hub.full = False
    type_(monkeypatch, "push", run, "me/model", "--private")
    assert f"{hub.url}/me/model/commit/" in capsys.readouterr().out
    there = hub.repositories["me/model"]
    assert there.private
    assert len(hub.commits) == 1
    for file in (run / "model").rglob("*"):
        if file.is_file() and file.name != "README.md":
            assert (there.revisions["main"] / file.relative_to(run / "model")).read_bytes() == file.read_bytes()
    figure = {"value": 0.25, "low": 0.2, "high": 0.3}
    (tmp_path / "new.json").write_text(
        json.dumps({"task": "zeroshot", "metrics": {"acc1": figure}, "data": {"name": "colors", "images": 16}})
    )
    type_(monkeypatch, "push", run, "me/model", "--results", tmp_path / "new.json", "--message", "More figures")
    card = ModelCard((there.revisions["main"] / "README.md").read_text())
    tasks = [result["task"]["type"] for result in card.data.to_dict()["model-index"][0]["results"]]
    assert set(tasks) == {"image-text-retrieval", "zero-shot-image-classification"}
    assert "The complete recipe" in card.text
    assert hub.commits[-1]["lines"][0]["value"]["summary"] == "More figures"
