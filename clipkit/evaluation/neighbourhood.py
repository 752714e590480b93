"""How an embedding lies: nearest neighbours to look at, and a map."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from clipkit.evaluation.result import chosen_examples, shown
from clipkit.images import Stored
from clipkit.metrics import first_columns

_EXAMPLES = 8
_NEIGHBOURS = 5
_ON_THE_MAP = 240
_SMALL = 36  # pixels of an image on the map

Kind = Literal["image", "text"]


def neighbour_examples(
    features: Float[Tensor, "N D"], items: Sequence[str | Path | Stored], kind: Kind
) -> list[dict[str, Any]]:
    """Evenly spaced items, and the others that are most similar to them.

    Args:
        features: unit length, of the items.
        items: images, or texts.
        kind: which of the two.
    """
    found = []
    for row in chosen_examples(_EXAMPLES, len(items)):
        scores = features @ features[row]
        scores[row] = -torch.inf
        nearest, index = first_columns(scores[None], min(_NEIGHBOURS, len(items) - 1))
        answers = [
            {kind: shown(items[place]), "score": round(score, 4), "right": False}
            for score, place in zip(nearest[0].tolist(), index[0].tolist(), strict=True)
        ]
        found.append({"query": {kind: shown(items[row])}, "answers": answers, "neighbours": True})
    return found


def embedding_map(
    features: Float[Tensor, "N D"],
    items: Sequence[str | Path | Stored],
    kind: Kind,
    labels: Sequence[str] | None = None,
) -> list[dict[str, Any]]:
    """Where at most 240 items, evenly spaced, lie in two dimensions (t-SNE, van der Maaten and Hinton 2008).

    Args:
        features: unit length.
        items: images, or texts.
        kind: which of the two.
        labels: the class of each, if known.

    Returns:
        Of each its kind and item, `x` and `y` in [0, 1], and `label`.
    """
    from sklearn.manifold import TSNE

    rows = chosen_examples(_ON_THE_MAP, len(items))
    if len(rows) < 4:
        return []
    places = TSNE(
        perplexity=min(30, (len(rows) - 1) / 3), metric="cosine", init="random", random_state=0
    ).fit_transform(features[rows].numpy())
    return [
        {kind: shown(items[row], _SMALL), **place} | ({} if labels is None else {"label": labels[row]})
        for row, place in zip(rows, _scaled(torch.from_numpy(places)), strict=True)
    ]


def map_of_classes(features: Float[Tensor, "N D"], labels: Sequence[str]) -> list[dict[str, Any]]:
    """Where at most 240 images, evenly spaced, lie along their two principal components.

    Args:
        features: unit length.
        labels: the class of each.

    Returns:
        Of each `x` and `y` in [0, 1], and `label`.
    """
    rows = chosen_examples(_ON_THE_MAP, len(labels))
    if len(rows) < 4:
        return []
    chosen = features[rows].double()
    centred = chosen - chosen.mean(dim=0)
    _, _, directions = torch.linalg.svd(centred, full_matrices=False)
    # A direction's sign is arbitrary: the largest part points up, so that an image is the same every time.
    first = directions[:2]
    first = first * first.gather(1, first.abs().argmax(dim=1, keepdim=True)).sign()
    return [{**place, "label": labels[row]} for row, place in zip(rows, _scaled(centred @ first.T), strict=True)]


def _scaled(places: Float[Tensor, "N 2"]) -> list[dict[str, float]]:
    low, high = places.amin(dim=0), places.amax(dim=0)
    scaled = (places - low) / (high - low).clamp(min=1e-9)
    return [{"x": round(x, 4), "y": round(y, 4)} for x, y in scaled.tolist()]
