"""Compare pairs of frozen towers: their closed-form start, training from it, and training from random projections.

The run with random projections reads the same layers. A tower runs once: a later run with it uses its stored outputs.
Without --validation, other images of --data are held out.

    python benchmarks/tower_pairs.py --data ../shared/flickr8k/train.csv --images 2000 --out runs/pairs \\
        lite0+minilm lite1+minilm lite0+mpnet
    python benchmarks/tower_pairs.py --data twemoji:en:train --validation twemoji:en:test --out runs/emoji lite0+minilm

A pair is the folder of an image tower, or a timm model as timm:NAME, then + and the folder of a text tower.
"""

import argparse
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

import clipkit
from clipkit.data import Pairs, read_pairs
from clipkit.recipe.layers import shortened

METRICS = ("image_retrieval_recall@1", "text_retrieval_recall@1", "mean_recall")
VISITS, STEPS = 20, 120
"""Times that each image is used, and steps, as in recipes/flickr8k_towers.yaml."""
LONGER = 2.5
"""Training from random projections takes this many times as many epochs, at a third of the learning rate."""
TITLES = ("towers", "image layers", "text layers", "ridge", "start", "trained", "random start, trained", "seconds")


def main() -> None:
    """Print a row per pair: R@1 text → image, R@1 image → text and mean recall, in percent."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", nargs="+", metavar="IMAGE+TEXT")
    parser.add_argument("--data", required=True, help="training data")
    parser.add_argument("--validation", help="other data; default: held-out images of --data")
    parser.add_argument("--images", type=int, help="number of training images; default: all")
    parser.add_argument("--held-out", type=int, default=1000, help="number of held-out images without --validation")
    parser.add_argument("--captions", type=int, default=5, help="captions of each image that are used")
    for side in ("image", "text"):
        parser.add_argument(
            f"--{side}-layers", type=lambda value: value.split(","), help="such as output,mean; default: auto"
        )
    parser.add_argument("--seed", type=int, default=0, help="seed of the runs; the images are the same with each seed")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    everything = read_pairs(args.data)
    order = np.random.default_rng(0).permutation(len(everything.images))
    held_out = np.sort(order[: 0 if args.validation else args.held_out])
    kept = np.sort(order[len(held_out) :][: args.images])
    train = first_captions(everything.take(kept), args.captions)
    validation = read_pairs(args.validation) if args.validation else everything.take(held_out)
    validation = first_captions(validation, args.captions)
    print(f"{len(train.images)} images, {len(train.captions)} captions; {len(validation.images)} held-out images")
    print(f"| {' | '.join(TITLES)} |\n|{' --- |' * len(TITLES)}", flush=True)
    epochs = max(1, round(VISITS * len(train.images) / len(train.captions)))
    longer = round(LONGER * epochs)
    from_random = {"model.start": "random", "model.embed_dim": 256, "optim.lr": 1e-3, "train.epochs": longer}
    for pair in args.pairs:
        image, _, text = pair.rpartition("+")
        recipe = {
            "model": {
                "image": {"name": image, "tune": "frozen", "layers": args.image_layers},
                "text": {"name": text, "tune": "frozen", "layers": args.text_layers},
            },
            "data": {"captions": "all"},
            "optim": {"lr": 3e-3, "warmup": 0.05},
            "train": {"epochs": epochs, "batch_size": max(2, len(train.captions) * epochs // STEPS), "seed": args.seed},
            "eval": {"every_epochs": epochs},
            "output": str(args.out / f"{Path(image).name}_{Path(text).name}_{args.seed}"),
        }
        began = time.process_time()
        start = clipkit.train(recipe, train=train, validation=validation)
        seconds = time.process_time() - began
        facts = start["settings"]["closed_form"]
        chosen, all_layers = facts["chosen"], [max(named(facts, side), key=len) for side in ("image", "text")]
        layers = dict(zip(("model.image.layers", "model.text.layers"), all_layers, strict=True))
        output = {"output": f"{recipe['output']}_random", "eval.every_epochs": longer}
        random = clipkit.train(recipe, {**from_random, **layers, **output}, train=train, validation=validation)
        cells = (
            f"{Path(image).name}, {Path(text).name}",
            *(shortened(chosen[f"{side}_layers"]) for side in ("image", "text")),
            f"{chosen['ridge']:g}",
            shown(facts["validation"]),
            *(shown({name: one["value"] for name, one in result["metrics"].items()}) for result in (start, random)),
            f"{seconds:.0f}",
        )
        print(f"| {' | '.join(cells)} |", flush=True)


def first_captions(pairs: Pairs, count: int) -> Pairs:
    """Return the first captions of each image."""
    return pairs.take_captions(np.sort(np.concatenate([rows[:count] for rows in pairs.captions_of_image])))


def named(facts: Mapping[str, Any], side: str) -> list[list[str]]:
    """Return the groups of layers that were compared."""
    return [row[f"{side}_layers"] for row in facts["compared"]]


def shown(metrics: Mapping[str, float]) -> str:
    """Return figures in percent."""
    return " ".join(f"{100 * metrics[name]:.1f}" for name in METRICS)


if __name__ == "__main__":
    main()
