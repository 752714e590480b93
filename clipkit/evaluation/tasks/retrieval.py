"""Zero-shot retrieval between images and captions."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from clipkit.data import Pairs, read_pairs
from clipkit.embedding.features import Cache, Features, content_hashes
from clipkit.errors import ModelError
from clipkit.evaluation.figures import Column, Columns, Means, Queries, figures
from clipkit.evaluation.predictions import write_retrieval_predictions
from clipkit.evaluation.result import INTERVAL, Result, chosen_examples, data_hash, shown, versions
from clipkit.metrics import RetrievalRanks, retrieval_chance, retrieval_ranks, top_answers
from clipkit.models import DualEncoder
from clipkit.models.absent import check_present

if TYPE_CHECKING:
    from clipkit.processes import Processes

KS = (1, 5, 10)
_EXAMPLES = 8
_EXTREMES = 6
_NAMED = 100_000  # queries whose names stand in the result too
_SCORED = 200_000_000  # scores up to which each query's first answer does


def retrieval(
    model: DualEncoder,
    data: str | Pairs,
    *,
    merge_captions: bool = False,
    batch_size: int = 64,
    cache: Cache = None,
    predictions: str | Path | None = None,
    processes: "Processes | None" = None,
    progress: bool = False,
) -> Result:
    """Recall, ranks and mean average precision both ways, over all images and captions of `data`.

    Args:
        model: what `clipkit.load` gives.
        data: a captions file, or pairs already read.
        merge_captions: make identical captions one query, which any of their images answers; else each is its own,
            as in CLIP_benchmark.
        batch_size: images in one forward; it does not change what is measured.
        cache: folder for features; None: the user's cache folder; False: none.
        predictions: a Parquet file to write each query's ranks, scores and top answers to.
        processes: share the images and captions; all get the result, the first writes.
        progress: show bars on the terminal.

    Raises:
        DataError: the data cannot be read.
        ModelError: a feature is not finite.

    Example:
        >>> result = retrieval(clipkit.load("runs/a"), "dev.csv")    # doctest: +SKIP
        >>> result["metrics"]["image_retrieval_recall@1"]["value"]   # doctest: +SKIP
        0.191
    """
    started = time.perf_counter()
    check_present(model.name, image=model.image, text=model.text)
    pairs = read_pairs(data) if isinstance(data, str) else data
    features = Features(model, batch_size=batch_size, cache=cache, processes=processes, progress=progress)
    hashes = features.content_hashes(pairs.images)
    asked = AskedPairs.of(pairs, merge_captions)
    result = retrieval_result(
        features.images(pairs.images, hashes).to(model.device),
        features.texts(asked.texts).to(model.device),
        pairs,
        model.name,
        time.perf_counter() - started,
        hashes=hashes,
        asked=asked,
        predictions=predictions if processes is None or processes.is_main else None,
        processes=processes,
        progress=progress and (processes is None or processes.is_main),
    )
    result["settings"]["features"] = {"computed": features.computed, "from_cache": features.from_cache}
    return result


class AskedPairs:
    """The texts that ask, and which images are right for each."""

    def __init__(self, texts: Sequence[str], image_of_text: np.ndarray[Any, np.dtype[np.int64]], merged: bool) -> None:
        self.texts = texts
        self.merged = merged
        self.image_of_text = torch.from_numpy(image_of_text)
        """(M,), or pairs (P, 2) where captions were merged."""

    @classmethod
    def of(cls, pairs: Pairs, merge_captions: bool) -> "AskedPairs":
        """Each caption by itself, or identical ones as one."""
        if not merge_captions:
            return cls(pairs.captions, pairs.image_of_caption, merged=False)
        place: dict[str, int] = {}
        text = np.array([place.setdefault(caption, len(place)) for caption in pairs.captions])
        return cls(list(place), np.stack([pairs.image_of_caption, text], axis=1), merged=True)

    def right_images(self, text: int) -> set[int]:
        """Images of a text."""
        if not self.merged:
            return {int(self.image_of_text[text])}
        return set(self.image_of_text[self.image_of_text[:, 1] == text, 0].tolist())


def retrieval_result(
    image_features: Float[Tensor, "N D"],
    text_features: Float[Tensor, "M D"],
    pairs: Pairs,
    model_name: str,
    seconds: float,
    *,
    hashes: Sequence[bytes] | None = None,
    asked: AskedPairs | None = None,
    predictions: str | Path | None = None,
    processes: "Processes | None" = None,
    progress: bool = False,
) -> Result:
    """The result of features that are already there. `seconds` is what making them took.

    Raises:
        ModelError: a feature is not finite.
    """
    started = time.perf_counter()
    if not (image_features.isfinite().all() and text_features.isfinite().all()):
        raise ModelError(f"{model_name}: its features of {pairs.name} are not finite, so nothing can be ranked by them")
    asked = AskedPairs.of(pairs, merge_captions=False) if asked is None else asked
    share = 1 if processes is None else processes.count
    total = len(image_features) * len(text_features) // share
    with tqdm(
        total=total, desc="scores", unit="", unit_scale=True, disable=None if progress else True, leave=False
    ) as bar:
        ranks = retrieval_ranks(
            image_features,
            text_features,
            asked.image_of_text,
            on_scores=bar.update,
            part=(0, 1) if processes is None else (processes.index, processes.count),
            summed=(lambda counts: counts) if processes is None else processes.sum,
        )
    image_features, text_features = image_features.cpu(), text_features.cpu()
    queries = {
        "image_rank": ranks.of_texts.tolist(),
        "text_rank": ranks.of_images.tolist(),
        "image_precision": ranks.precision_of_texts.tolist(),
        "text_precision": ranks.precision_of_images.tolist(),
        "image_of_text": first_image_of_text(ranks).tolist(),
    }
    if len(pairs.images) + len(asked.texts) <= _NAMED:
        queries |= {"images": [str(image) for image in pairs.images], "texts": list(asked.texts)}
        if len(image_features) * len(text_features) <= _SCORED:
            (_, images), (_, texts) = top_answers(image_features, text_features, 1)
            queries |= {"first_image": images[:, 0].tolist(), "first_text": texts[:, 0].tolist()}
    columns, means = retrieval_columns(queries)
    chance = retrieval_chance(len(image_features), len(text_features), asked.image_of_text, KS)
    if predictions is not None:
        write_retrieval_predictions(predictions, ranks, image_features, text_features, pairs.images, asked.texts)
    content = content_hashes(pairs.images) if hashes is None else hashes
    return {
        "task": "retrieval",
        "model": model_name,
        "data": {
            "name": pairs.name,
            "images": len(pairs.images),
            "captions": len(pairs.captions),
            "sha256": data_hash(content, pairs.captions, pairs.image_of_caption.tolist()),
        },
        "metrics": figures(columns, chance, means),
        "settings": {"ks": list(KS), "merge_captions": asked.merged, **INTERVAL},
        "versions": versions(),
        "seconds": round(seconds + time.perf_counter() - started, 2),
        "examples": [
            *_examples(image_features, text_features, pairs, asked),
            *_extremes(ranks, image_features, text_features, pairs, asked),
        ],
        "queries": queries,
    }


def first_image_of_text(ranks: RetrievalRanks) -> Tensor:
    """(M,) the cluster of each text: its image, of several the first; -1 for a text without one."""
    first = torch.full((ranks.texts,), -1)
    return first.scatter_reduce(0, ranks.pairs[:, 1], ranks.pairs[:, 0], "amin", include_self=False)


def retrieval_columns(queries: Mapping[str, Sequence[Any]]) -> tuple[Columns, Means]:
    """Every figure of retrieval, a row a query, from what a result holds of its queries.

    Images are the clusters of both directions, and all figures share the draws.
    """
    images = len(queries["text_rank"])
    columns, others, recalls = {}, {}, []
    for name, kind, clusters in (
        ("image_retrieval", "image", np.asarray(queries["image_of_text"])),
        ("text_retrieval", "text", np.arange(images)),
    ):
        rank = np.asarray(queries[f"{kind}_rank"])
        asked = rank > 0
        own = Queries(clusters[asked], among=images)
        for k in KS:
            recalls.append(f"{name}_recall@{k}")
            columns[recalls[-1]] = Column(own, (rank[asked] <= k).astype(np.float64))
        others[f"{name}_median_rank"] = Column(own, rank[asked].astype(np.float64), median=True)
        others[f"{name}_mean_rank"] = Column(own, rank[asked].astype(np.float64))
        others[f"{name}_map@r"] = Column(own, np.asarray(queries[f"{kind}_precision"])[asked])
    return columns | others, {"mean_recall": recalls}


def _examples(image_features: Tensor, text_features: Tensor, pairs: Pairs, asked: AskedPairs) -> list[dict[str, Any]]:
    found = []
    for text in chosen_examples(_EXAMPLES, len(asked.texts)):
        scores = image_features @ text_features[text]
        own = asked.right_images(text)
        answers = [
            {
                "image": shown(pairs.images[image]),
                "score": round(scores[image].item(), 4),
                "right": image in own,
            }
            for image in _top(scores, 5)
        ]
        found.append({"query": {"text": asked.texts[text]}, "answers": answers})
    for image in chosen_examples(_EXAMPLES, len(pairs.images)):
        scores = text_features @ image_features[image]
        answers = [
            {
                "text": asked.texts[text],
                "score": round(scores[text].item(), 4),
                "right": image in asked.right_images(text),
            }
            for text in _top(scores, 5)
        ]
        found.append({"query": {"image": shown(pairs.images[image])}, "answers": answers})
    return found


def _extremes(
    all_ranks: RetrievalRanks, image_features: Tensor, text_features: Tensor, pairs: Pairs, asked: AskedPairs
) -> list[dict[str, Any]]:
    """The captions whose image is found surest, and those whose image is found last."""
    found = []
    ranks = all_ranks.of_texts.cpu()
    asking = (ranks > 0).nonzero()[:, 0]
    images = first_image_of_text(all_ranks).cpu()[asking]
    own = (text_features[asking] * image_features[images]).sum(dim=1)
    first = asking[ranks[asking] == 1]
    surest = first[own[ranks[asking] == 1].argsort(descending=True, stable=True)[:_EXTREMES]]
    last = asking[ranks[asking].argsort(descending=True, stable=True)[:_EXTREMES]]
    for kind, texts in (("best", surest), ("worst", last)):
        for text in texts.tolist():
            scores = image_features @ text_features[text]
            right = asked.right_images(text)
            top = _top(scores, 5)
            if not right & set(top):
                top = [*top[:4], max(right, key=lambda image: float(scores[image]))]  # the right one, wherever it is
            answers = [
                {
                    "image": shown(pairs.images[image]),
                    "score": round(scores[image].item(), 4),
                    "right": image in right,
                }
                for image in top
            ]
            query = {"query": {"text": asked.texts[text]}, "answers": answers, "kind": kind, "rank": int(ranks[text])}
            if kind == "best" or ranks[text] > 1:
                found.append(query)
    return found


def _top(scores: Tensor, count: int) -> list[int]:
    return scores.argsort(descending=True, stable=True)[:count].tolist()
