"""Zero-shot retrieval between pictures and captions."""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from clipkit.data import Pairs, read_pairs
from clipkit.evaluation.result import Figure, Result, chosen_examples, figure, versions
from clipkit.metrics import cluster_bootstrap, recalls, retrieval_chance, retrieval_ranks
from clipkit.metrics.bootstrap import DRAWS
from clipkit.models import DualEncoder

KS = (1, 5, 10)
_EXAMPLES = 8


def retrieval(model: DualEncoder, data: str | Pairs, *, batch_size: int = 64, progress: bool = False) -> Result:
    """Recall both ways over all pictures and captions of `data`.

    Args:
        model: what `clipkit.load` gives.
        data: a captions file, or pairs already read.
        batch_size: pictures in one forward; it does not change what is measured.
        progress: show bars on the terminal.

    Raises:
        DataError: the data cannot be read.

    Example:
        >>> result = retrieval(clipkit.load("runs/a"), "dev.csv")    # doctest: +SKIP
        >>> result["metrics"]["image_retrieval_recall@1"]["value"]   # doctest: +SKIP
        0.191
    """
    started = time.perf_counter()
    pairs = read_pairs(data) if isinstance(data, str) else data
    image_features = model.encode_image(pairs.pictures, batch_size, progress=progress)
    text_features = model.encode_text(pairs.captions, progress=progress)
    return retrieval_result(image_features, text_features, pairs, model.name, time.perf_counter() - started)


def retrieval_result(
    image_features: Float[Tensor, "N D"],
    text_features: Float[Tensor, "M D"],
    pairs: Pairs,
    model_name: str,
    seconds: float,
) -> Result:
    """The result of features that are already there. `seconds` is what making them took."""
    started = time.perf_counter()
    image_of_text = torch.from_numpy(pairs.image_of_caption)
    metrics = retrieval_metrics(image_features, text_features, image_of_text)
    examples = _examples(image_features, text_features, pairs)
    return {
        "task": "retrieval",
        "model": model_name,
        "data": {
            "name": pairs.name,
            "images": len(pairs.pictures),
            "captions": len(pairs.captions),
            "sha256": pairs.sha256,
        },
        "metrics": metrics,
        "settings": {"ks": list(KS), "bootstrap_draws": DRAWS, "bootstrap_seed": 0, "interval": 0.95},
        "versions": versions(),
        "seconds": round(seconds + time.perf_counter() - started, 2),
        "examples": examples,
    }


def retrieval_metrics(
    image_features: Float[Tensor, "N D"],
    text_features: Float[Tensor, "M D"],
    image_of_text: Int[Tensor, " M"],
    ks: Sequence[int] = KS,
) -> dict[str, Figure]:
    """Recalls and their mean, each with its interval and what chance gives.

    Images are resampled as clusters of their queries; the gallery stays whole, and all figures share the draws.
    """
    image_rank, text_rank = retrieval_ranks(image_features, text_features, image_of_text)
    values = recalls(image_rank, text_rank, ks)
    chance = retrieval_chance(len(image_features), image_of_text, ks)
    images = np.arange(len(text_rank))[text_rank.numpy() > 0]
    draws = {}
    for k in ks:
        hits = (image_rank <= k).double().numpy()
        draws[f"image_retrieval_recall@{k}"] = cluster_bootstrap(hits, image_of_text.numpy())
    for k in ks:
        hits = (text_rank[images] <= k).double().numpy()
        draws[f"text_retrieval_recall@{k}"] = cluster_bootstrap(hits, images)
    draws["mean_recall"] = np.mean(list(draws.values()), axis=0)
    return {name: figure(values[name], draws[name], chance[name]) for name in draws}


def _examples(image_features: Tensor, text_features: Tensor, pairs: Pairs) -> list[dict[str, Any]]:
    found = []
    for caption in chosen_examples(_EXAMPLES, len(pairs.captions)):
        scores = image_features @ text_features[caption]
        own = int(pairs.image_of_caption[caption])
        answers = [
            {
                "image": str(pairs.pictures[image]),
                "score": round(scores[image].item(), 4),
                "right": image == own,
            }
            for image in _top(scores, 5)
        ]
        found.append({"query": {"text": pairs.captions[caption]}, "answers": answers})
    for image in chosen_examples(_EXAMPLES, len(pairs.pictures)):
        scores = text_features @ image_features[image]
        answers = [
            {
                "text": pairs.captions[caption],
                "score": round(scores[caption].item(), 4),
                "right": bool(pairs.image_of_caption[caption] == image),
            }
            for caption in _top(scores, 5)
        ]
        found.append({"query": {"image": str(pairs.pictures[image])}, "answers": answers})
    return found


def _top(scores: Tensor, count: int) -> list[int]:
    return scores.argsort(descending=True, stable=True)[:count].tolist()
