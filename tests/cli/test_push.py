"""`clipkit push` and `clipkit train --push`, as far as they get without a Hub."""

import json
from collections.abc import Callable
from pathlib import Path

from tests.models.families import build


def test_what_a_user_gets_wrong_is_one_line(tmp_path: Path, said_here: Callable[..., str]) -> None:
    model = build("clip", tmp_path / "model")
    assert "log in with `hf auth login`" in said_here("push", model, "me/model")
    (tmp_path / "a.json").write_text(json.dumps({"task": "retrieval"}))
    assert "is no results JSON" in said_here("push", model, "me/model", "--results", tmp_path / "a.json")
    assert "is no results JSON" in said_here("push", model, "me/model", "--results", tmp_path / "none.json")


def test_a_run_that_cannot_be_pushed_does_not_begin(
    recipe_file: Path, tmp_path: Path, said_here: Callable[..., str]
) -> None:
    assert "log in with `hf auth login`" in said_here("train", recipe_file, "--push", "me/model")
    assert not (tmp_path / "run").exists()
