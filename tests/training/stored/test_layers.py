"""Runs that tune the last blocks of towers whose output is several layers, from a closed-form start."""

from pathlib import Path
from typing import Any

import pytest

import clipkit
from tests.conftest import read_lines
from tests.training.test_closed_form import recipe_of


@pytest.mark.slow
def test_pooled_layers_below_the_cut_are_stored(shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIPKIT_CACHE", str(tmp_path / "cache"))
    changes: dict[str, Any] = {
        "model.image.tune": "last:1", "model.text.tune": "last:1", "data.augment": "none", "data.captions": "all",
        "model.image.layers": ["output", "mean:1"], "model.text.layers": ["output", "mean:0", "max"],
    }  # fmt: skip
    losses = []
    for name, more in (("whole", {"data.store": None}), ("stored", {})):
        clipkit.train(recipe_of(shapes, tmp_path / name, **changes, **more))
        losses.append([row["loss"] for row in read_lines(tmp_path / name / "metrics.jsonl")])
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)
    log = (tmp_path / "stored" / "log.txt").read_text()
    assert log.count("activations before") == 4  # of both towers, for training and for validation
    assert log.index("closed-form start") < log.index("activations before")
