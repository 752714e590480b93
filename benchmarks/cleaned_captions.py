"""Measure the gain in retrieval from dropping wrong captions that cross-fitting found, as JSON lines.

    python benchmarks/pretrained_towers.py towers
    python benchmarks/cleaned_captions.py recipes/flickr8k_towers.yaml ../shared/flickr8k/dev.csv [--seeds 3]

A share of the training captions is dealt to other images at random. Two models, each trained on half of the corrupted
images, rate the captions of the other half (`clipkit.search.doubts`); captions are dropped down to an estimated
precision of 90 %. Then models are trained on the corrupted and on the cleaned captions, and retrieve the second data,
which nothing was chosen on. `gain` has 95 % intervals over its images, with shared draws.

The two frozen towers run once over all data. To take minutes, their outputs are reduced to 1,000 principal components
each (without the pairs), and projections are trained by a closed form and four epochs in a few lines of torch, as in
closed_form_starts.py. `clipkit data doubtful` does the same with full runs of a recipe.
"""

import argparse
import json
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from closed_form_starts import part_of, trained
from numpy.typing import NDArray
from torch import Tensor

from clipkit.metrics import retrieval_ranks
from clipkit.metrics.bootstrap import cluster_bootstrap, interval
from clipkit.metrics.canonical_correlation import PairSums, canonical_correlation
from clipkit.recipe import Recipe
from clipkit.search.doubts import Doubts, doubts_of, doubts_of_exchanged, wrong_among
from clipkit.training.folder.run_log import RunLog
from clipkit.training.opening import tower_inputs
from clipkit.training.plan import make_plan

COMPONENTS, WIDTH, RIDGE = 1000, 256, 0.75


def outputs_of(recipe: Recipe) -> tuple[Tensor, Tensor, NDArray[np.int64], list[str]]:
    """Return the outputs of both frozen towers for the training data, the image of each caption, and the captions."""
    plan = make_plan(recipe)
    stores, pairs = tower_inputs(plan, RunLog(False)).stores, plan.data.train.pairs
    return stores["image_features"], stores["text_features"], pairs.image_of_caption, list(pairs.captions)


def components(rows: Tensor, widths: list[int]) -> tuple[Tensor, Tensor]:
    """Return the mean of rows, and the map to their principal components; layers are scaled to the same variance."""
    scale = torch.cat([part.var(dim=0).sum().rsqrt().expand(part.shape[1]) for part in rows.split(widths, dim=1)])
    mean = rows.mean(dim=0)
    sample = (rows[:: max(1, len(rows) // 5000)] - mean) * scale
    count = min(COMPONENTS, *sample.shape)
    return mean, scale[:, None] * torch.svd_lowrank(sample, count, niter=0)[2]


def fitted(image: Tensor, text: Tensor, of: NDArray[np.int64], images: NDArray[np.int64], seed: int) -> Any:
    """Return functions that map all images and captions to features, trained on some of the images."""
    position = np.full(len(image), -1)
    position[images] = np.arange(len(images))
    captions = np.flatnonzero(position[of] >= 0)
    sums = PairSums.zeros(image.shape[1], text.shape[1])
    sums.add(image[images], text[captions], torch.from_numpy(position[of[captions]]))
    solution = canonical_correlation(sums, RIDGE, RIDGE, 768, approximate=True)
    mean = solution.x_mean.float(), solution.y_mean.float()
    maps = [(side * solution.correlations).float() for side in (solution.x_map, solution.y_map)]
    x, y = (image - mean[0]) @ maps[0], (text - mean[1]) @ maps[1]
    part = part_of(x, y, torch.from_numpy(of), torch.from_numpy(images))
    heads = trained(part, seed, WIDTH, captions="all", epochs=4)

    def features(side: int, rows: Tensor) -> Tensor:
        with torch.no_grad():
            return F.normalize(heads[side]((rows - mean[side]) @ maps[side]), dim=1)

    return features


def rated(image: Tensor, text: Tensor, of: NDArray[np.int64], seed: int) -> tuple[Doubts, NDArray[np.float64]]:
    """Return the doubts of all captions by cross-fitting in two folds, and the doubts of exchanged captions."""
    fold_of = np.random.default_rng(seed).permutation(len(image)) % 2
    doubts, exchanged = Doubts(*(np.empty(len(of)) for _ in range(3))), []
    for fold in (0, 1):
        held = np.flatnonzero(fold_of == fold)
        features = fitted(image, text, of, np.flatnonzero(fold_of != fold), seed)
        captions = np.flatnonzero(fold_of[of] == fold)
        captions = captions[np.argsort(of[captions], kind="stable")]
        sides = features(0, image[held]).half().numpy(), features(1, text[captions]).half().numpy()
        given = (*sides, np.arange(len(captions)), np.searchsorted(held, of[captions]))
        made = doubts_of(*given)
        for name in ("scores", "fits", "agreements"):
            getattr(doubts, name)[captions] = getattr(made, name)
        exchanged.append(doubts_of_exchanged(*given, seed))
    return doubts, np.concatenate(exchanged)


def found(wrong: NDArray[np.bool_], totals: NDArray[np.float64], precision: float = 0.9) -> float:
    """Return the largest share of the wrong captions that any threshold finds with this precision."""
    right = np.cumsum(wrong[np.argsort(totals, kind="stable")])
    reached = np.flatnonzero(right / np.arange(1, len(wrong) + 1) >= precision)
    return float(right[reached[-1]] / right[-1]) if len(reached) else 0.0


def hits(features: Any, image: Tensor, text: Tensor, of: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
    """Return for each query whether the first result is right."""
    ranks = retrieval_ranks(features(0, image), features(1, text), torch.from_numpy(of))
    sides = {"text -> image R@1": ranks.of_texts, "image -> text R@1": ranks.of_images}
    return {name: (rank == 1).double().numpy() for name, rank in sides.items()}


def measure(
    outputs: Sequence[Tensor],
    others: Sequence[Tensor],
    of: NDArray[np.int64],
    other_of: NDArray[np.int64],
    strings: Sequence[str],
    share: float,
    seeds: Iterable[int],
) -> None:
    """Print one line per seed, then the gains: outputs of both towers for the training data and for other data."""
    image, text = outputs
    right = set(zip(of.tolist(), strings, strict=True))
    gains = []
    for seed in seeds:
        chosen = np.random.default_rng(seed).permutation(len(of))[: int(share * len(of))]
        dealt = of.copy()
        dealt[chosen] = np.roll(dealt[chosen], 1)
        wrong = np.array([pair not in right for pair in zip(dealt.tolist(), strings, strict=True)])
        doubts, exchanged = rated(image, text, dealt, seed)
        estimated, among = wrong_among(doubts.totals, exchanged)
        order = np.argsort(doubts.totals, kind="stable")
        enough = np.flatnonzero(among[order] >= 0.9)
        listed = order[: enough[-1] + 1] if len(enough) else order[:0]
        row = {
            "seed": seed,
            "wrong": int(wrong.sum()),
            "found": round(found(wrong, doubts.totals), 3),
            "found_by_fit": round(found(wrong, doubts.fits), 3),
            "estimated_share": round(estimated, 4),
            "dropped": len(listed),
            "precision": round(float(wrong[listed].sum() / max(1, len(listed))), 3),
            "recall": round(float(wrong[listed].sum() / max(1, wrong.sum())), 3),
        }
        print(json.dumps(row), flush=True)
        figures = {}
        for name, captions in (("with_wrong", order), ("cleaned", np.setdiff1d(order, listed))):
            images, positions = np.unique(dealt[captions], return_inverse=True)
            features = fitted(image[images], text[captions], positions, np.arange(len(images)), seed)
            figures[name] = hits(features, *others, other_of)
        shown = {
            name: {key: round(float(hit.mean()), 4) for key, hit in both.items()} for name, both in figures.items()
        }
        print(json.dumps({"seed": seed, **shown}), flush=True)
        gains.append({key: figures["cleaned"][key] - figures["with_wrong"][key] for key in figures["cleaned"]})
    for name in gains[0]:
        values = np.mean([gain[name] for gain in gains], axis=0)
        low, high = interval(cluster_bootstrap(values, other_of if "text ->" in name else np.arange(len(values))))
        print(
            json.dumps({name: {"gain": round(float(values.mean()), 4), "low": round(low, 4), "high": round(high, 4)}})
        )


def main() -> None:
    """Run the towers, reduce their outputs, and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("measured", help="data on which retrieval is measured")
    parser.add_argument("--train", help="training data, instead of the recipe's")
    parser.add_argument("--share", type=float, default=0.1)
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    recipe = Recipe.from_yaml(args.recipe).override({"data.validation": None})
    recipe = recipe.override({"data.train": args.train}) if args.train else recipe
    trunks = [tower.trunk for tower in make_plan(recipe).model.sides.values()]
    *outputs, of, strings = outputs_of(recipe)
    *others, other_of, _ = outputs_of(recipe.override({"data.train": args.measured}))
    for side, trunk in enumerate(trunks):
        mean, matrix = components(outputs[side], list(trunk.widths))
        outputs[side], others[side] = (outputs[side] - mean) @ matrix, (others[side] - mean) @ matrix
    measure(outputs, others, of, other_of, strings, args.share, range(args.seeds))


if __name__ == "__main__":
    main()
