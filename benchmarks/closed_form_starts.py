"""Compare starts and projections of two frozen towers on a held-out part of the training images.

A sixth of the training images, at most 1,000, is held out; the validation data of the recipe is not read. The towers
run once, or not at all if an earlier run of the recipe stored their outputs. Projections are trained as `clipkit train`
does it, in a few lines of torch on the stored outputs.

    python benchmarks/closed_form_starts.py recipes/flickr8k_towers.yaml --seeds 2
"""

import argparse
import math
import time
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from clipkit.losses import infonce
from clipkit.metrics import recalls, retrieval_ranks
from clipkit.metrics.canonical_correlation import PairSums, canonical_correlation
from clipkit.models.layers import columns
from clipkit.models.projections import linear_of, projection_of_coordinates
from clipkit.recipe import Recipe
from clipkit.training.closed_form import pair_sums, parts_of
from clipkit.training.folder.run_log import RunLog
from clipkit.training.opening import tower_inputs
from clipkit.training.optimizer import WarmupCosine
from clipkit.training.plan import make_plan

WIDTH, COORDINATES, BATCH, RATE = 256, 768, 1000, 3e-3

STARTS: dict[str, dict[str, Any]] = {
    "output only": {"layers": ["output"]},
    "all layers, as they are": {"scaled": False},
    "all layers but max, as they are": {"without": "max", "scaled": False},
    "all layers, scaled": {},
    "all layers, scaled, ridge 3": {"ridge": 3.0},
}
PROJECTIONS: dict[str, dict[str, Any]] = {
    "linear, one caption, 10 epochs": {},
    "linear, all captions, 4 epochs": {"captions": "all", "epochs": 4},
    "linear, 512 dimensions": {"dim": 512},
    "residual, dropout 0.3, 20 epochs": {"kind": "residual", "epochs": 20},
}


@dataclass
class Part:
    """Features of some images and their captions."""

    image: Tensor
    text: Tensor
    image_of_caption: Tensor

    def retrieval(self, image: Any, text: Any) -> Tensor:
        """Return R@1 in both directions and the mean recall with these projections."""
        with torch.no_grad():
            x, y = F.normalize(image(self.image), dim=1), F.normalize(text(self.text), dim=1)
        figures = recalls(retrieval_ranks(x, y, self.image_of_caption))
        names = ("image_retrieval_recall@1", "text_retrieval_recall@1", "mean_recall")
        return torch.tensor([figures[name] for name in names])


def part_of(image: Tensor, text: Tensor, image_of_caption: Tensor, rows: Tensor) -> Part:
    """Return the features of some images and of their captions."""
    position = torch.full((len(image),), -1)
    position[rows] = torch.arange(len(rows))
    captions = (position[image_of_caption] >= 0).nonzero()[:, 0]
    return Part(image[rows], text[captions], position[image_of_caption[captions]])


def trained(
    part: Part,
    seed: int,
    width: int,
    *,
    captions: str = "one",
    epochs: int = 10,
    dim: int = WIDTH,
    kind: str = "linear",
) -> tuple[torch.nn.Module, torch.nn.Module]:
    """Train projections of coordinates from their start, with the optimizer of a recipe."""
    torch.manual_seed(seed)
    count = part.image.shape[1]
    heads = [projection_of_coordinates(count, dim, kind, 0.3) for _ in range(2)]
    for head in heads:
        torch.nn.init.eye_(linear_of(head).weight)
        linear_of(head).weight.data[width:] = 0
    scale = torch.nn.Parameter(torch.tensor(math.log(1 / 0.07)))
    weights = [p for head in heads for p in head.parameters()]
    groups = [
        {"params": [p for p in weights if p.ndim > 1], "weight_decay": 0.1},
        {"params": [p for p in weights if p.ndim < 2] + [scale], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), eps=1e-6)
    total, images = len(part.text), len(part.image)
    items = total if captions == "all" else images
    batch = min(BATCH, items)
    schedule = WarmupCosine(RATE, 0.05, epochs * (items // batch))
    by_image = part.image_of_caption.argsort(stable=True)
    first = torch.searchsorted(part.image_of_caption[by_image], torch.arange(images))
    many = torch.bincount(part.image_of_caption, minlength=images)
    step = 0
    for _ in range(epochs):
        order = torch.randperm(items)
        for rows in order[: items // batch * batch].split(batch):
            drawn = rows if captions == "all" else by_image[first[rows] + (torch.rand(batch) * many[rows]).long()]
            ids = part.image_of_caption[drawn]
            for group in optimizer.param_groups:
                group["lr"] = schedule(step)
            x, y = F.normalize(heads[0](part.image[ids]), dim=1), F.normalize(heads[1](part.text[drawn]), dim=1)
            optimizer.zero_grad()
            infonce(x, y, scale.exp(), image_ids=ids, caption_ids=drawn).backward()
            torch.nn.utils.clip_grad_norm_([*weights, scale], 1.0)
            optimizer.step()
            scale.data.clamp_(max=math.log(100))
            step += 1
    return heads[0].eval(), heads[1].eval()


def main() -> None:
    """Print one row per start and projection."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--train", help="training data, instead of the recipe's")
    parser.add_argument("--seeds", type=int, default=2)
    args = parser.parse_args()
    changes = {"data.validation": None, **({"data.train": args.train} if args.train else {})}
    plan = make_plan(Recipe.from_yaml(args.recipe).override(changes))
    inputs = tower_inputs(plan, RunLog(False))
    image, text = inputs.stores["image_features"], inputs.stores["text_features"]
    of_caption = torch.from_numpy(plan.data.train.pairs.image_of_caption).long()
    fitted, held_out = parts_of(len(image), inputs.bad, 0, plan.data.train.name)
    sums = pair_sums(image, text, of_caption, fitted, plan.processes)
    print(f"{len(fitted)} images, {len(held_out)} held out; text → image R@1, image → text R@1, mean recall")
    for name, start in STARTS.items():
        began = time.process_time()
        solution, chosen = solved(plan.model, sums, **start)
        maps = [
            (solution.x_mean.float(), (solution.x_map * solution.correlations).float()),
            (solution.y_mean.float(), (solution.y_map * solution.correlations).float()),
        ]
        sides = [
            (side[:, kept] - mean) @ matrix
            for side, kept, (mean, matrix) in zip((image, text), chosen, maps, strict=True)
        ]
        held = part_of(*sides, of_caption, held_out)
        first = held.retrieval(lambda rows: rows[:, :WIDTH], lambda rows: rows[:, :WIDTH])
        print(f"{name}: {shown(first)} ({(time.process_time() - began):.0f} processor seconds)", flush=True)
        learned_from = part_of(*sides, of_caption, fitted)
        for kind, options in PROJECTIONS.items():
            rows = [held.retrieval(*trained(learned_from, seed, WIDTH, **options)) for seed in range(args.seeds)]
            print(f"  {kind}: {'; '.join(map(shown, rows))}", flush=True)


def solved(
    model: Any,
    sums: PairSums,
    layers: list[str] | None = None,
    without: str | None = None,
    scaled: bool = True,
    ridge: float = 1.0,
) -> tuple[Any, list[Tensor]]:
    """Return the closed form with some layers, and the columns of these layers."""
    trunks = [model.image.trunk, model.text.trunk]
    names = [layers or [name for name in trunk.layers if name != without] for trunk in trunks]
    chosen = [columns(trunk.layers, trunk.widths, kept) for trunk, kept in zip(trunks, names, strict=True)]
    widths = [
        [dict(zip(t.layers, t.widths, strict=True))[n] for n in kept] for t, kept in zip(trunks, names, strict=True)
    ]
    blocks = {"x_blocks": widths[0], "y_blocks": widths[1]} if scaled else {}
    return canonical_correlation(sums.of(*chosen), ridge, ridge, COORDINATES, approximate=True, **blocks), chosen


def shown(figures: Tensor) -> str:
    """Return figures in percent."""
    return " ".join(f"{100 * value:.1f}" for value in figures.tolist())


if __name__ == "__main__":
    main()
