"""Two processes build one store together, and train as one process with whole towers does."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import clipkit
from clipkit.embedding.cached import stored_inputs
from tests.conftest import read_lines
from tests.forked import ENVIRONMENT, together
from tests.training import several_runs
from tests.training.stored.test_towers import LAST


@pytest.mark.slow
def test_two_processes_share_the_stores(recipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIPKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(ENVIRONMENT, "CLIPKIT_CACHE", str(tmp_path / "cache"))  # type: ignore[arg-type]
    common = {**LAST, "train.batch_size": 7, "data.validation": None}
    files = []
    for name, changes in (("built", {}), ("reused", {"train.micro_batch_size": 2})):
        file = tmp_path / f"{name}.yaml"
        file.write_text(recipe({**common, **changes, "output": str(tmp_path / name)}).to_yaml())
        files.append(str(file))
    together(2, several_runs.__file__, *files)
    assert [len(list(stored.folder.glob("*.activations.bin"))) for stored in stored_inputs()] == [2, 2]
    clipkit.train(recipe({**common, "data.store": None, "output": str(tmp_path / "whole")}))
    clipkit.train(recipe({**common, "output": str(tmp_path / "alone")}))  # reads what two processes stored
    assert "computed once" not in (tmp_path / "alone" / "log.txt").read_text()
    losses, weights = [], []
    for name in ("whole", "built", "reused", "alone"):
        losses.append(torch.tensor([row["loss"] for row in read_lines(tmp_path / name / "metrics.jsonl")]))
        weights.append(load_file(tmp_path / name / "model" / "model.safetensors"))
    for loss, weight in zip(losses[1:], weights[1:], strict=True):
        torch.testing.assert_close(loss, losses[0], rtol=0, atol=1e-5)
        assert all(torch.allclose(weight[name], value, rtol=0, atol=1e-5) for name, value in weights[0].items())
