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


def test_what_a_user_gets_wrong_is_one_line(tmp_path: Path, said_here: Callable[..., str]) -> None:
    model = build("clip", tmp_path / "model")
    assert "log in with `hf auth login`" in said_here("push", model, "me/model")
    assert "model: is not a valid Hub repository name" in said_here("push", model, "model")
    file = tmp_path / "a.json"
    for content in (
        {"task": "retrieval"},
        {"task": "retrieval", "metrics": {"acc1": 0.5}, "data": {}, "model": "m", "settings": {}},
    ):
        file.write_text(json.dumps(content))
        assert "is not a result JSON" in said_here("push", model, "me/model", "--results", file)
    assert "none.json" in said_here("push", model, "me/model", "--results", tmp_path / "none.json")


def test_a_run_that_cannot_be_pushed_does_not_begin(
    recipe_file: Path, tmp_path: Path, said_here: Callable[..., str]
) -> None:
    assert "log in with `hf auth login`" in said_here("train", recipe_file, "--push", "me/model")
    assert "--private was given without --push" in said_here("train", recipe_file, "--private")
    assert not (tmp_path / "run").exists()


def test_train_and_push_and_push_again(
    hub: Hub, recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    hub.full = True  # which nobody knows before the run
    with pytest.raises(SystemExit) as ended:
        type_(monkeypatch, "train", recipe_file, "--push", "me/model", "--private")
    assert ended.value.code == 1  # it ran, and failed
    said = capsys.readouterr().err.splitlines()[-1]
    assert "Storage limit reached" in said
    assert said.endswith(f"upload it with: clipkit push {run} me/model --private")
    assert (run / "results.json").is_file()
    assert not hub.commits
    hub.full = False
    type_(monkeypatch, "push", run, "me/model", "--private")
    assert f"{hub.url}/me/model/commit/" in capsys.readouterr().out
    there = hub.repositories["me/model"]
    assert there.private
    assert len(hub.commits) == 1
    for own in (run / "model").rglob("*"):
        if own.is_file() and own.name != "README.md":
            assert (there.revisions["main"] / own.relative_to(run / "model")).read_bytes() == own.read_bytes()
    figure = {"value": 0.25, "low": 0.2, "high": 0.3}
    data = {"name": "colors", "images": 16}
    result = {"task": "zeroshot", "metrics": {"acc1": figure}, "data": data, "model": "m", "settings": {}}
    (tmp_path / "new.json").write_text(json.dumps(result))
    type_(monkeypatch, "push", run, "me/model", "--results", tmp_path / "new.json", "--message", "More figures")
    card = ModelCard((there.revisions["main"] / "README.md").read_text())
    tasks = [own["task"]["type"] for own in card.data.to_dict()["model-index"][0]["results"]]
    assert set(tasks) == {"image-text-retrieval", "zero-shot-image-classification"}
    assert "The complete recipe" in card.text
    assert hub.commits[-1]["lines"][0]["value"]["summary"] == "More figures"
