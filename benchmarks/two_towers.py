"""Change one part of a recipe of two frozen towers at a time, and compare retrieval on held-out training images.

A sixth of the training images, at most 1,000, is held out; the validation data of the recipe is not read. The towers
run once, or not at all if an earlier run stored their outputs. Each row is a run of `clipkit train` on the other
images, once per seed. The result of each run is appended to `--out`, and runs that the file contains are not repeated.

    python benchmarks/two_towers.py recipes/flickr8k_towers.yaml --seeds 3
    python benchmarks/two_towers.py recipes/flickr8k_towers.yaml --only "mixup 1.0" "the recipe"
"""

import argparse
import hashlib
import json
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from clipkit.data import Pairs
from clipkit.embedding.shared import evaluating
from clipkit.metrics import recalls, retrieval_ranks
from clipkit.models.layers import Layered, columns, set_coordinates
from clipkit.models.projections import linear_of
from clipkit.recipe import Recipe
from clipkit.training import closed_form, layer_choice
from clipkit.training.closed_form import coordinates_of, layers_of, parts_of
from clipkit.training.folder.run_folder import RunFolder, claimed
from clipkit.training.folder.run_log import RunLog
from clipkit.training.given import Given
from clipkit.training.inputs import TowerInputs
from clipkit.training.opening import tower_inputs
from clipkit.training.plan import Plan, make_plan
from clipkit.training.run import run
from clipkit.training.stop import StopRequest

METRICS = ("image_retrieval_recall@1", "text_retrieval_recall@1", "mean_recall")
SIDES = ("image", "text")


@dataclass(frozen=True)
class Part:
    """Changes to the recipe."""

    changes: Mapping[str, Any] = field(default_factory=dict)
    ridges: tuple[float, ...] | None = None
    """Ridges from which the closed-form start chooses, instead of the default ones."""
    minimal: bool = False
    """Keep only the towers and the training data of the recipe: all other keys have their defaults."""


PARTS = {
    "the recipe": Part(),
    "mixup 1.0": Part({"data.mixup": 1.0}),
    "mixup 0.2": Part({"data.mixup": 0.2}),
    "EMA 0.95": Part({"train.ema": 0.95}),
    "dropout 0.2": Part({"model.dropout": 0.2}),
    "residual projection": Part({"model.projection": "residual"}),
    "residual projection, dropout 0.3": Part({"model.projection": "residual", "model.dropout": 0.3}),
    "one caption per epoch, 20 epochs": Part({"data.captions": "one", "train.epochs": 20}),
    "captions of one image as negatives": Part({"loss.duplicates": "negative"}),
    "closed-form start, not trained": Part({"optim.lr": 1e-9, "train.epochs": 1}),
    "no key set": Part(minimal=True),
    "no key set, but 3e-3": Part({"optim.lr": 3e-3}, minimal=True),
    "no key set, but one caption": Part({"data.captions": "one"}, minimal=True),
    "no key set, but 3e-3 and one caption": Part({"optim.lr": 3e-3, "data.captions": "one"}, minimal=True),
    "last layers only": Part({"model.image.layers": ["output"], "model.text.layers": ["output"]}),
    "random start, 30 epochs of one caption at 1e-3": Part(
        {"model.start": "random", "data.captions": "one", "train.epochs": 30, "optim.lr": 1e-3}
    ),
    "ridge 1": Part(ridges=(1.0,)),
}


@dataclass(frozen=True)
class Outputs:
    """Outputs of all layers of both frozen towers for the training data."""

    pairs: Pairs
    rows: Mapping[str, Tensor]
    layers: Mapping[str, Any]
    fitted: NDArray[np.int64]
    held_out: NDArray[np.int64]

    def of(self, images: NDArray[np.int64], layers: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return the outputs of these layers for some images and their captions, in the order of `Pairs.take`."""
        captions = np.concatenate([self.pairs.captions_of_image[image] for image in images.tolist()])
        taken = {}
        for side, positions in (("image", images), ("text", captions)):
            kept = columns(*self.layers[side], layers[side][0] if side in layers else ["output"])
            rows = self.rows[f"{side}_features"][torch.from_numpy(positions)]
            taken[f"{side}_features"] = rows if len(kept) == rows.shape[1] else rows[:, kept]
        return taken


def computed(recipe: Recipe) -> Outputs:
    """Compute the outputs of the towers for all training data, or read them from the cache."""
    plan = make_plan(recipe)
    inputs, pairs = tower_inputs(plan, RunLog(True)), plan.data.train.pairs
    parts = parts_of(len(pairs.images), inputs.bad, 0, plan.data.train.name)
    fitted, held_out = (part.numpy() for part in parts)
    return Outputs(pairs, inputs.stores, layers_of(plan.model), fitted, held_out)


class Starts:
    """Closed-form starts of earlier runs, for runs with the same layers and ridges: a start takes a minute or more.

    The layers and the ridge of a start are therefore chosen with seed 0.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        """Processor time of all starts so far."""
        self._known: dict[Any, Any] = {}
        self._fit = closed_form._fit

    def fit(self, plan: Plan, inputs: TowerInputs, image: Tensor, text: Tensor, log: RunLog) -> dict[str, Any]:
        """Set the projections of the model, as `closed_form._fit` does."""
        model = plan.model
        layers = {side: tower.trunk.layers for side, tower in model.sides.items() if isinstance(tower.trunk, Layered)}
        key = (*layers.values(), layer_choice._RIDGES)
        if key not in self._known:
            began = time.process_time()
            first = replace(plan, recipe=plan.recipe.override({"train.seed": 0}))
            facts = self._fit(first, inputs, image, text, log)
            self.seconds += time.process_time() - began
            weights = {side: linear_of(tower.head).weight.detach().clone() for side, tower in model.sides.items()}
            trunks = {side: (t.trunk.layers, t.trunk.coordinates) for side, t in model.sides.items()}
            self._known[key] = facts, trunks, weights
            return facts
        facts, trunks, weights = self._known[key]
        for side, tower in model.sides.items():
            names, coordinates = trunks[side]
            tower.trunk.choose(names)
            set_coordinates(tower.trunk, coordinates.mean, coordinates.matrix)
            linear_of(tower.head).weight.data.copy_(weights[side])
        if plan.learned.average is not None:
            plan.learned.average.load(dict(model.named_parameters()))
        return dict(facts)


def figures_of(recipe: Recipe, part: Part, outputs: Outputs, starts: Starts) -> dict[str, float]:
    """Train on the fitted images; return retrieval on the held-out images, and the processor time but for the start."""
    began = time.process_time() - starts.seconds
    train = replace(outputs.pairs.take(outputs.fitted), content="")
    with (
        tempfile.TemporaryDirectory() as name,
        mock.patch.object(layer_choice, "_RIDGES", part.ridges or layer_choice._RIDGES),
        mock.patch.object(closed_form, "_fit", starts.fit),
    ):
        plan = make_plan(recipe.override({"output": name}), given=Given(train=train))
        layers = layers_of(plan.model)
        plan = replace(plan, given=Given(train=train, outputs=outputs.of(outputs.fitted, layers)))
        with claimed(folder := RunFolder(name), plan.processes, False, False, []):
            run(plan, folder, StopRequest())
    seconds = time.process_time() - starts.seconds - began
    ranks = retrieval_ranks(*features(plan, outputs.of(outputs.held_out, layers), layers), position_of(outputs))
    found = recalls(ranks)
    return {metric: found[metric] for metric in METRICS} | {"seconds": seconds}


def features(plan: Plan, rows: dict[str, Tensor], layers: Mapping[str, Any]) -> list[Tensor]:
    """Return the features (N, D) and (M, D) of the trained model for stored outputs."""
    with torch.no_grad(), plan.learned.chosen(), evaluating(plan.model):
        made = coordinates_of(plan.model, rows, layers) if plan.recipe.start == "cca" else rows
        return [F.normalize(plan.model.sides[side].head(made[f"{side}_features"]), dim=1) for side in SIDES]


def position_of(outputs: Outputs) -> Tensor:
    """Return for each held-out caption the position of its image among the held-out images."""
    return torch.from_numpy(outputs.pairs.take(outputs.held_out).image_of_caption)


def recipe_of(base: Recipe, part: Part, seed: int) -> Recipe:
    """Return the recipe of a part, without validation data."""
    towers = {side: {"name": getattr(base.model, side).name, "tune": "frozen"} for side in SIDES}
    whole = base
    if part.minimal:
        whole = Recipe.from_dict({"model": towers, "data": {"train": base.data.train}, "output": base.output})
    fixed = {"data.validation": None, "data.workers": 0, "train.seed": seed}
    return whole.override({**part.changes, **fixed})


def main() -> None:
    """Run the parts that are missing in `--out`, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--train", help="training data, instead of the recipe's")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--out", type=Path, default=Path("runs/two_towers.jsonl"))
    args = parser.parse_args()
    base = Recipe.from_yaml(args.recipe, {"data.train": args.train} if args.train else {})
    args.out.parent.mkdir(parents=True, exist_ok=True)
    known = [json.loads(line) for line in args.out.read_text().splitlines()] if args.out.exists() else []
    rows = {row["key"]: row for row in known}
    outputs, starts = None, Starts()
    keys: dict[str, list[str]] = {name: [] for name in args.only}
    for seed in range(args.seeds):
        for name in args.only:
            recipe = recipe_of(base, PARTS[name], seed)
            key = hashlib.sha256(f"{recipe.to_yaml()} {PARTS[name].ridges}".encode()).hexdigest()
            keys[name].append(key)
            if key not in rows:
                outputs = outputs or computed(recipe_of(base, Part(), 0))
                rows[key] = {"part": name, "seed": seed, "key": key}
                rows[key] |= figures_of(recipe, PARTS[name], outputs, starts)
                with args.out.open("a") as file:
                    file.write(json.dumps(rows[key]) + "\n")
    print("| part | text → image R@1 | image → text R@1 | mean recall | processor seconds |\n|---|---|---|---|---|")
    for name in args.only:
        every = [[rows[key][metric] for key in keys[name]] for metric in METRICS]
        seconds = sum(rows[key]["seconds"] for key in keys[name]) / args.seeds
        print(f"| {name} | {' | '.join(map(shown, every))} | {seconds:.0f} |", flush=True)
    if starts.seconds:
        print(f"\nThe closed-form starts took {starts.seconds:.0f} processor seconds.")


def shown(values: list[float]) -> str:
    """Return the mean and, in parentheses, the lowest and the highest value in percent."""
    mean, low, high = (100 * value for value in (sum(values) / len(values), min(values), max(values)))
    return f"{mean:.1f} % ({low:.1f} – {high:.1f})"


if __name__ == "__main__":
    main()
