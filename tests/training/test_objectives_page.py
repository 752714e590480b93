"""What docs/objectives.md shows works as it stands there."""

import math
import re
from pathlib import Path

import torch
import torch.nn.functional as F

import clipkit
from clipkit.data import read_pairs
from clipkit.recipe import Recipe
from clipkit.training.objectives.objective import Objective

PAGE = Path(__file__).parents[2] / "docs" / "objectives.md"
IMPORTS = """
import math
from torch import Tensor
from clipkit.data import Pairs, Policy, TextView
from clipkit.losses import infonce
from clipkit.models import DualEncoder
from clipkit.recipe import Recipe, steps_of
from clipkit.training.objectives.objective import Encoded, Gathered, Objective, Scalars
"""


def test_the_objective_of_the_page(recipe: object, tiny_clip: Path, shapes: Path) -> None:
    assert callable(recipe)
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(code.splitlines()) <= 30
    names: dict[str, object] = {}
    exec(IMPORTS + code, names)
    built = names["strong_captions"]
    assert callable(built)
    own: Recipe = recipe()
    model, pairs = clipkit.load(tiny_clip), read_pairs(str(shapes / "captions.csv"))
    objective = built(own, model, pairs)
    assert isinstance(objective, Objective)
    assert set(objective.encoded) == {"strong_features", "text_features"}
    x, y = (F.normalize(torch.randn(8, 24, dtype=torch.float64), dim=-1) for _ in range(2))
    gathered = {"strong_features": x, "text_features": y, "image_ids": torch.arange(8), "caption_ids": torch.arange(8)}
    scalars = {"scale": torch.tensor(5.0, dtype=torch.float64)}
    whole = objective.value(gathered, scalars, slice(0, 8))
    parts = sum(objective.value(gathered, scalars, rows) for rows in (slice(0, 3), slice(3, 8)))
    torch.testing.assert_close(parts, whole, rtol=1e-12, atol=0)
    at_chance = objective.value(gathered, {"scale": torch.tensor(0.0, dtype=torch.float64)}, slice(0, 8))
    assert at_chance.item() == math.log(8) == objective.chance
