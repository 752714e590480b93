"""The objective that docs/objectives.md shows works as it stands there: by itself, and beside captions."""

import math
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import clipkit
from clipkit.data import read_pairs
from clipkit.recipe import Recipe, terms
from clipkit.training.objectives import file_of
from tests.conftest import read_lines

PAGE = Path(__file__).parents[2] / "docs" / "objectives.md"
Build = Callable[..., Recipe]


@pytest.fixture(autouse=True)
def strong_captions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Add the file and the row of the page."""
    file, row = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)[-2:]
    assert len(file.splitlines()) <= 50
    module = ModuleType("clipkit.training.objectives.strong_captions")
    exec(file, module.__dict__)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    rows = eval("{" + row + "}", dict(vars(terms)))
    for name, own in rows.items():
        monkeypatch.setitem(terms.OBJECTIVES, name, own)


def test_its_values_over_slices_sum_to_the_whole(recipe: Build, tiny_clip: Path, shapes: Path) -> None:
    strong = recipe({"objective": "strong_captions"})
    model, pairs = clipkit.load(tiny_clip), read_pairs(str(shapes / "captions.csv"))
    (term,) = strong.terms
    objective = file_of(term).objective(term, strong, model, pairs, {})
    assert set(objective.encoded) == {"strong_features", "text_features"}
    x, y = (F.normalize(torch.randn(8, 24, dtype=torch.float64), dim=-1) for _ in range(2))
    gathered = {"strong_features": x, "text_features": y, "image_ids": torch.arange(8), "caption_ids": torch.arange(8)}
    scalars = {"scale": torch.tensor(5.0, dtype=torch.float64)}
    whole = objective.value(gathered, scalars, slice(0, 8))
    parts = sum(objective.value(gathered, scalars, rows) for rows in (slice(0, 3), slice(3, 8)))
    torch.testing.assert_close(parts, whole, rtol=1e-12, atol=0)
    at_chance = objective.value(gathered, {"scale": torch.tensor(0.0, dtype=torch.float64)}, slice(0, 8))
    assert at_chance.item() == math.log(8) == objective.chance


@pytest.mark.parametrize("objective", ["strong_captions", {"captions": 1.0, "strong_captions": 0.5}])
def test_a_run_trains_it_alone_and_beside_captions(recipe: Build, tmp_path: Path, objective: Any) -> None:
    result = clipkit.train(recipe({"objective": objective, "train.epochs": 1}))
    rows = read_lines(tmp_path / "run" / "metrics.jsonl")
    assert len(rows) == 2
    first = "image" if isinstance(objective, dict) else "strong"
    assert {"scale", f"{first}_accuracy", "text_accuracy"} <= set(rows[0])
    assert rows[0]["scale"] != rows[1]["scale"]
    assert result["settings"]["best"]["metric"] == "mean_recall"
    assert result["settings"]["loss_at_chance"] == pytest.approx(
        (1.5 if isinstance(objective, dict) else 1.0) * math.log(8)
    )
    assert [row["step"] for row in read_lines(tmp_path / "run" / "evaluations.jsonl")] == [2]


def test_it_trains_one_tower_while_the_other_is_frozen(recipe: Build, tmp_path: Path) -> None:
    clipkit.train(recipe({"objective": "strong_captions", "model.text.tune": "frozen", "train.epochs": 1}))
    before, after = clipkit.load(recipe().model.name).state_dict(), clipkit.load(tmp_path / "run").state_dict()
    changed = {name.split(".")[0] for name, value in after.items() if not torch.equal(value, before[name])}
    assert "image" in changed
    assert "text" not in changed
