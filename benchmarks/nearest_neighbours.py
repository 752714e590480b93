"""Compare a run's image tower with an untrained tower and with pixels, as JSON: nearest neighbors and a linear probe.

    python benchmarks/nearest_neighbours.py runs/simclr_images --labelled emoji/train_groups.csv \
        [--test emoji/held_out_groups.csv]

`clipkit.evaluate.probe` measures three image towers: the run's, the same tower before the first step (with the
recipe's seed), and the pixels themselves at 24 × 24. Differences are paired, with 95 % intervals over images (1,000
bootstrap draws). Without --test, a fifth of the labeled images is the test set.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from clipkit.data import read_labeled
from clipkit.evaluation import compare, probe
from clipkit.models import DualEncoder, ImageTower, load
from clipkit.models.absent import absent_text_tower
from clipkit.recipe import Recipe
from clipkit.training.model import model_of

_SIDE = 24  # pixels


class Pixels(nn.Module):
    """The input itself, downscaled and flattened."""

    def __init__(self) -> None:
        super().__init__()
        self.nothing = nn.Parameter(torch.zeros(()))

    def forward(self, pixel_values: Tensor) -> Tensor:
        return torch.nn.functional.adaptive_avg_pool2d(pixel_values, _SIDE).flatten(1)


def towers_of(run: Path) -> dict[str, DualEncoder]:
    """Return the run's model, the untrained model and the pixels."""
    trained = load(str(run))
    recipe = Recipe.from_yaml(run / "recipe.yaml")
    torch.manual_seed(recipe.train.seed)
    untrained = model_of(recipe).eval()
    untrained.name = "untrained"
    image = ImageTower(Pixels(), nn.Identity(), [], trained.image.preprocess)
    scale = nn.Parameter(torch.zeros(()))
    pixels = DualEncoder(image, absent_text_tower(), scale, None, trained.backend, "pixels").eval()
    return {"trained": trained, "untrained": untrained, "pixels": pixels}


def main() -> None:
    """Measure the three towers and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--labelled", required=True)
    parser.add_argument("--test")
    arguments = parser.parse_args()
    labeled = read_labeled(arguments.labelled)
    test = read_labeled(arguments.test) if arguments.test else None
    results: dict[str, Any] = {
        name: dict(probe(model, labeled, test=test, cache=False)) for name, model in towers_of(arguments.run).items()
    }
    names = ("knn_acc1", "lp_acc1")
    summary: dict[str, Any] = {"data": results["trained"]["data"]}
    summary |= {tower: {name: result["metrics"][name] for name in names} for tower, result in results.items()}
    for other in ("untrained", "pixels"):
        difference = compare(results[other], results["trained"])
        summary[f"trained - {other}"] = {name: difference["metrics"][name] for name in names}
    print(json.dumps(summary, indent=2))


if __name__ == "__main__":
    main()
