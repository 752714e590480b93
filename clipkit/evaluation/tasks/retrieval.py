"""Zero-shot retrieval between images and captions."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from clipkit.data import Pairs, read_pairs
from clipkit.data.sequences import evenly_spaced
from clipkit.embedding.bars import Bars
from clipkit.embedding.features import Cache, Features
from clipkit.embedding.hashes import content_hashes
from clipkit.errors import ModelError
from clipkit.evaluation.example_maps import (
    Explain,
    check_explainable,
    chosen_queries,
    explained_mistakes,
    explained_queries,
)
from clipkit.evaluation.examples import answer, example, top
from clipkit.evaluation.figures import Column, Columns, Means, Queries, figures
from clipkit.evaluation.predictions import write_retrieval_predictions
from clipkit.evaluation.result import build_result, data_hash
from clipkit.evaluation.result_object import Result
from clipkit.evaluation.tasks.task import Answers, Task
from clipkit.findings import FEW, Finding, percent
from clipkit.metrics import RetrievalRanks, retrieval_chance, retrieval_ranks, top_answers
from clipkit.models import DualEncoder
from clipkit.models.absent import check_present
from clipkit.models.token_counts import share_cut
from clipkit.processes import Processes

KS = (1, 5, 10)
_EXAMPLES = 8
_EXTREMES = 6
_LARGEST_NAMED = 100_000  # largest number of queries whose names the result contains
_LARGEST_ANSWERED = 200_000_000  # largest number of scores for which the result contains the first answer to each query


def retrieval(
    model: DualEncoder,
    data: object,
    *,
    merge_captions: bool = False,
    explain: Explain = False,
    batch_size: int | None = None,
    cache: Cache = None,
    predictions: str | Path | None = None,
    processes: Processes | None = None,
    progress: bool | Bars = False,
) -> Result:
    """Evaluate image-text retrieval in both directions: recall, ranks and average precision.

    Args:
        model: returned by `clipkit.load`.
        data: images with captions: a path, hf:NAME, a list of (image, caption) pairs or of dicts, a dict of columns, a
            DataFrame, a dataset of the library `datasets`, or pairs already read.
        merge_captions: True: identical captions are one query, for which several images are correct. False: each
            caption is a query, as in CLIP_benchmark.
        explain: examples with relevance maps to add to the result (see `clipkit.explain`). True: captions for which an
            incorrect image has a much higher score than the correct image. One or several texts: additionally, the
            images that match each text best.
        batch_size: images per forward pass; no effect on the metrics. None: chosen for the device.
        cache: folder for cached features. None: the user's cache folder. False: no cache.
        predictions: Parquet file to write, with the ranks, scores and top answers of every query.
        processes: processes that share the encoding. All return the result; only the main process writes files.
        progress: True for progress bars on the terminal, or a `Bars` object that creates them.

    Raises:
        DataError: the data cannot be read.
        ModelError: a feature is not finite, or `clipkit.explain` does not support the model.

    Example:
        >>> result = retrieval(clipkit.load("runs/a"), "dev.csv")    # doctest: +SKIP
        >>> result["metrics"]["image_retrieval_recall@1"]["value"]   # doctest: +SKIP
        0.191
    """
    features = Features(model, batch_size=batch_size, cache=cache, processes=processes, progress=progress)
    check_present(model.name, image=model.image, text=model.text)
    pairs = data if isinstance(data, Pairs) else read_pairs(data)
    chosen = chosen_queries(explain)
    if explain is True or chosen:
        check_explainable(model)
    hashes = features.content_hashes(pairs.images)
    queries = TextQueries.of(pairs, merge_captions)
    image_features = features.images(pairs.images, hashes).to(model.device)
    text_features = features.texts(queries.texts).to(model.device)
    result = retrieval_result(
        image_features,
        text_features,
        pairs,
        model.name,
        features.seconds,
        hashes=hashes,
        queries=queries,
        predictions=predictions if features.processes.is_main else None,
        processes=features.processes,
        progress=features.progress,
    )
    result["examples"] += explained_queries(features, chosen, pairs.images, image_features)
    if explain is True or chosen:
        ranks, both = result["queries"]["image_rank"], (text_features, image_features)
        result["examples"] += explained_mistakes(model, ranks, queries.right_images, queries.texts, pairs.images, *both)
    cut = share_cut(model, queries.texts)
    if cut >= FEW:
        result["data"]["findings"] = [*result["data"].get("findings", ()), _cut_captions(cut, model).line()]
    result["settings"] |= {"features": features.counts, "captions_cut": cut}
    return result


def _cut_captions(share: float, model: DualEncoder) -> Finding:
    context = model.text.tokenize.context_length
    message = (
        f"{percent(share)} of the captions are longer than the context of {context} tokens, so their ends were cut off"
    )
    return Finding(
        "cut_captions",
        "note",
        message,
        "compare this result only with results of models that have the same context length, or state both lengths",
    )


class TextQueries:
    """Text queries, with the correct images of each query.

    Args:
        texts: the M text queries.
        image_of_text: position of each text's image, of shape (M,); if `merged`, pairs (image position, text position)
            of shape (P, 2).
        merged: True if identical captions were merged.
    """

    def __init__(self, texts: Sequence[str], image_of_text: np.ndarray[Any, np.dtype[np.int64]], merged: bool) -> None:
        self.texts = texts
        self.merged = merged
        self.image_of_text = torch.from_numpy(image_of_text)

    @classmethod
    def of(cls, pairs: Pairs, merge_captions: bool) -> "TextQueries":
        """Create the text queries: one per caption or, with `merge_captions`, one per distinct caption."""
        if not merge_captions:
            return cls(pairs.captions, pairs.image_of_caption, merged=False)
        position: dict[str, int] = {}
        text = np.array([position.setdefault(caption, len(position)) for caption in pairs.captions])
        return cls(list(position), np.stack([pairs.image_of_caption, text], axis=1), merged=True)

    def right_images(self, text: int) -> set[int]:
        """Return the positions of the correct images of a text query."""
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
    queries: TextQueries | None = None,
    predictions: str | Path | None = None,
    processes: Processes | None = None,
    progress: bool = False,
) -> Result:
    """Compute the result of retrieval from features.

    Args:
        image_features, text_features: features of the images of `pairs`, and of the texts of `queries`.
        seconds: time that the computation of the features took.
        hashes: content hash of each image. None: computed here.
        queries: the text queries. None: every caption is a query.
        predictions: Parquet file to write.
        processes: processes that share the ranking. None: this process alone.

    Raises:
        ModelError: a feature is not finite.
    """
    started = time.perf_counter()
    processes = processes or Processes.alone()
    if not (image_features.isfinite().all() and text_features.isfinite().all()):
        raise ModelError(
            f"{model_name}: the features of {pairs.name} are not finite, so answers cannot be ranked; use "
            "--dtype fp32 (in Python: load the model with dtype float32)"
        )
    queries = queries or TextQueries.of(pairs, merge_captions=False)
    total = len(image_features) * len(text_features) // processes.count
    with tqdm(
        total=total, desc="scores", unit="", unit_scale=True, disable=None if progress else True, leave=False
    ) as bar:
        ranks = retrieval_ranks(
            image_features,
            text_features,
            queries.image_of_text,
            on_scores=bar.update,
            part=(processes.index, processes.count),
            summed=processes.sum,
        )
    image_features, text_features = image_features.cpu(), text_features.cpu()
    outcomes = {
        "image_rank": ranks.of_texts.tolist(),
        "text_rank": ranks.of_images.tolist(),
        "image_precision": ranks.precision_of_texts.tolist(),
        "text_precision": ranks.precision_of_images.tolist(),
        "image_of_text": first_image_of_text(ranks).tolist(),
    }
    if len(pairs.images) + len(queries.texts) <= _LARGEST_NAMED:
        outcomes |= {"images": [str(image) for image in pairs.images], "texts": list(queries.texts)}
        if len(image_features) * len(text_features) <= _LARGEST_ANSWERED:
            (_, images), (_, texts) = top_answers(image_features, text_features, 1)
            outcomes |= {"first_image": images[:, 0].tolist(), "first_text": texts[:, 0].tolist()}
    columns, means = retrieval_columns(outcomes)
    chance = retrieval_chance(len(image_features), len(text_features), queries.image_of_text, KS)
    for name, parts in means.items():
        chance[name] = sum(chance[part] or 0.0 for part in parts) / len(parts)
    if predictions is not None:
        write_retrieval_predictions(predictions, ranks, image_features, text_features, pairs.images, queries.texts)
    content = content_hashes(pairs.images) if hashes is None else hashes
    metrics = figures(columns, chance, means)
    return build_result(
        "retrieval",
        model_name,
        {
            "name": pairs.name,
            "images": len(pairs.images),
            "captions": len(pairs.captions),
            "sha256": data_hash(content, pairs.captions, pairs.image_of_caption.tolist()),
        },
        metrics,
        settings={"ks": list(KS), "merge_captions": queries.merged},
        examples=[
            *_examples(image_features, text_features, pairs, queries),
            *_extremes(ranks, image_features, text_features, pairs, queries),
        ],
        queries=outcomes,
        findings=pairs.findings,
        seconds=seconds + time.perf_counter() - started,
    )


def first_image_of_text(ranks: RetrievalRanks) -> Tensor:
    """Return the lowest position of a correct image for each text, of shape (M,); -1 if no image is correct."""
    first = torch.full((ranks.texts,), -1)
    return first.scatter_reduce(0, ranks.pairs[:, 1], ranks.pairs[:, 0], "amin", include_self=False)


def retrieval_columns(outcomes: Mapping[str, Sequence[Any]]) -> tuple[Columns, Means]:
    """Return the per-query values of each metric, and the metrics that average other metrics, e.g. `mean_recall`.

    Bootstrap resamples draw images with all their captions. The resamples are the same for both directions.

    Args:
        outcomes: the part `queries` of a retrieval result.
    """
    images = len(outcomes["text_rank"])
    columns, others, recalls = {}, {}, []
    for name, kind, clusters in (
        ("image_retrieval", "image", np.asarray(outcomes["image_of_text"])),
        ("text_retrieval", "text", np.arange(images)),
    ):
        rank = np.asarray(outcomes[f"{kind}_rank"])
        asked = rank > 0
        queries = Queries(clusters[asked], among=images)
        for k in KS:
            recalls.append(f"{name}_recall@{k}")
            columns[recalls[-1]] = Column(queries, (rank[asked] <= k).astype(np.float64))
        others[f"{name}_median_rank"] = Column(queries, rank[asked].astype(np.float64), median=True)
        others[f"{name}_mean_rank"] = Column(queries, rank[asked].astype(np.float64))
        others[f"{name}_map@r"] = Column(queries, np.asarray(outcomes[f"{kind}_precision"])[asked])
    first = [f"{name}_recall@{KS[0]}" for name in ("image_retrieval", "text_retrieval")]
    return columns | others, {"mean_recall": recalls, f"mean_recall@{KS[0]}": first}


def _answers(result: Mapping[str, Any]) -> list[Answers]:
    outcomes = result["queries"]
    images, texts = outcomes.get("images"), outcomes.get("texts")
    first_image = first_text = image_of_text = None
    if images is not None:
        image_of_text = [images[image] if image >= 0 else None for image in outcomes["image_of_text"]]
    if "first_image" in outcomes:
        first_image = [images[image] for image in outcomes["first_image"]]
        first_text = [texts[text] for text in outcomes["first_text"]]
    image_rank, text_rank = (np.asarray(outcomes[key], dtype=np.float64) for key in ("image_rank", "text_rank"))
    return [
        Answers("text", texts, image_rank, True, image_of_text, first_image, "image"),
        Answers("image", images, text_rank, True, images, first_text, "text"),
    ]


def _examples(
    image_features: Tensor, text_features: Tensor, pairs: Pairs, queries: TextQueries
) -> list[dict[str, Any]]:
    examples = []
    for text in evenly_spaced(len(queries.texts), _EXAMPLES):
        scores = image_features @ text_features[text]
        right = queries.right_images(text)
        answers = [answer("image", pairs.images[image], scores[image], image in right) for image in top(scores, 5)]
        examples.append(example("text", queries.texts[text], answers))
    for image in evenly_spaced(len(pairs.images), _EXAMPLES):
        scores = text_features @ image_features[image]
        answers = [
            answer("text", queries.texts[text], scores[text], image in queries.right_images(text))
            for text in top(scores, 5)
        ]
        examples.append(example("image", pairs.images[image], answers))
    return examples


def _extremes(
    all_ranks: RetrievalRanks, image_features: Tensor, text_features: Tensor, pairs: Pairs, queries: TextQueries
) -> list[dict[str, Any]]:
    """Return examples of captions whose image has rank 1 and the highest score, or whose image has the worst rank."""
    examples = []
    ranks = all_ranks.of_texts.cpu()
    asking = (ranks > 0).nonzero()[:, 0]
    images = first_image_of_text(all_ranks).cpu()[asking]
    right_scores = (text_features[asking] * image_features[images]).sum(dim=1)
    first = asking[ranks[asking] == 1]
    best = first[right_scores[ranks[asking] == 1].argsort(descending=True, stable=True)[:_EXTREMES]]
    worst = asking[ranks[asking].argsort(descending=True, stable=True)[:_EXTREMES]]
    for kind, texts in (("best", best), ("worst", worst)):
        for text in texts.tolist():
            if kind == "worst" and ranks[text] == 1:
                continue
            scores = image_features @ text_features[text]
            right = queries.right_images(text)
            chosen = top(scores, 5)
            if not right & set(chosen):  # always show a correct image
                chosen = [*chosen[:4], max(right, key=lambda image: float(scores[image]))]
            answers = [answer("image", pairs.images[image], scores[image], image in right) for image in chosen]
            examples.append(example("text", queries.texts[text], answers) | {"kind": kind, "rank": int(ranks[text])})
    return examples


TASK = Task(
    read=read_pairs,
    run=lambda model, data, options: retrieval(model, data.data, **options),
    columns=lambda result: retrieval_columns(result["queries"]),
    answers=_answers,
    texts=lambda data: data.data.captions,
)
