"""Write a hash of the start features of a recipe's pairs, on each process of a launch."""

import hashlib
import sys
from pathlib import Path

from clipkit.recipe import Recipe
from clipkit.training import start_features as module
from clipkit.training.plan import make_plan

BLOCK = 5  # the last block has a single image


def write(file: Path) -> None:
    plan = make_plan(Recipe.from_yaml(file))
    features = module.start_features(plan.model, plan.data.train.pairs, {}, plan.processes)
    digest = hashlib.sha256(features.image.numpy().tobytes() + features.text.numpy().tobytes())
    name = f"{plan.processes.index}-of-{plan.processes.count}.txt"
    (file.parent / name).write_text(digest.hexdigest())


if __name__ == "__main__":
    module._BLOCK = BLOCK
    write(Path(sys.argv[1]))
