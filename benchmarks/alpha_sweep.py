"""Time an alpha sweep (WiSE-FT) of a tuned projection: on stored features, and by encoding all data at each alpha.

    python benchmarks/alpha_sweep.py ../shared/flickr8k/dev.csv [--model M] [--images 200] [--alphas 11]

Retrieval is measured on the data at each alpha between the model and the same model with other projections. With
`tune: head` on both towers, each trunk runs once over the data; a sweep of whole models encodes everything at each
alpha, of which only two are timed. Weights do not change the time, so those of open_clip:ViT-B-32, the default, are
random. The figures of both ways are compared at the alphas that both measured.
"""

import argparse
import json
import time
from collections.abc import Callable, Mapping

import numpy as np
import torch

from clipkit.data import read_pairs
from clipkit.models import DualEncoder, load
from clipkit.models.tuning import tune
from clipkit.processes import Processes, accelerator_of
from clipkit.training.interpolation import alphas_of, interpolated, start_of
from clipkit.training.measures.captions import CaptionValidation


def sweep(
    name: str, method: str, source: str, images: int, alphas: tuple[float, ...]
) -> tuple[list[dict[str, float]], dict[str, float]]:
    """Return the curve, and the seconds until the first figures and of the sweep."""
    model = load(name, device="cpu")
    for tower in model.sides.values():
        tune(tower, method)
    began = time.perf_counter()
    pairs = read_pairs(source)
    pairs = pairs.take(np.arange(min(images, len(pairs.images))))
    measure = CaptionValidation(model, pairs, Processes(accelerator_of("fp32", 10.0)))
    stored = time.perf_counter()
    start = {key: value for key, value in start_of(model).items() if ".head" in key}
    _move_heads(model)
    figures: Callable[[], Mapping[str, float]] = measure.figures
    rows, _ = interpolated(model, start, figures, {"target": "mean_recall"}, alphas)
    return rows, {"store": stored - began, "sweep": time.perf_counter() - stored}


def _move_heads(model: DualEncoder) -> None:
    """Change the projections, as tuning does; the seed is fixed."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".head" in name:
                parameter.add_(0.5 * parameter.std() * torch.randn_like(parameter))


def main() -> None:
    """Time both ways and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--model", default="open_clip:ViT-B-32")
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--alphas", type=int, default=11)
    given = parser.parse_args()
    alphas = alphas_of(given.alphas)
    torch.manual_seed(0)
    rows, seconds = sweep(given.model, "head", given.data, given.images, alphas)
    torch.manual_seed(0)
    again, whole = sweep(given.model, "full", given.data, given.images, (alphas[0], alphas[-1]))
    largest = max(abs(one["target"] - other["target"]) for one, other in zip([rows[0], rows[-1]], again, strict=True))
    per_alpha = whole["sweep"] / 2
    summary = {
        "model": given.model,
        "images": given.images,
        "alphas": given.alphas,
        "head on stored features": {name: round(value, 2) for name, value in seconds.items()},
        "whole model, per alpha": round(per_alpha, 2),
        "whole model, all alphas (extrapolated)": round(per_alpha * given.alphas, 1),
        "largest difference of mean recall": largest,
    }
    print(json.dumps(summary, indent=2))


if __name__ == "__main__":
    main()
