"""Illustrations of an embedding: nearest neighbors of some items, and two-dimensional maps."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from clipkit.data.sequences import evenly_spaced
from clipkit.evaluation.examples import Item, Kind, answer, example, shown
from clipkit.metrics import first_columns

_EXAMPLES = 8
_NEIGHBORS = 5
_ON_THE_MAP = 240
_MAP_IMAGE_SIDE = 36  # pixels


def neighbor_examples(features: Float[Tensor, "N D"], items: Sequence[Item], kind: Kind) -> list[dict[str, Any]]:
    """Return some items, chosen at regular intervals, each with its nearest neighbors.

    Args:
        features: unit-length features of the items.
        items: images or texts.
        kind: kind of the items, image or text.
    """
    examples = []
    for row in evenly_spaced(len(items), _EXAMPLES):
        scores = features @ features[row]
        scores[row] = -torch.inf
        nearest, index = first_columns(scores[None], min(_NEIGHBORS, len(items) - 1))
        answers = [
            answer(kind, items[other], score, right=False)
            for score, other in zip(nearest[0].tolist(), index[0].tolist(), strict=True)
        ]
        examples.append(example(kind, items[row], answers) | {"neighbours": True})
    return examples


def embedding_map(
    features: Float[Tensor, "N D"],
    items: Sequence[Item],
    kind: Kind,
    labels: Sequence[str] | None = None,
) -> list[dict[str, Any]]:
    """Return the two-dimensional t-SNE positions of at most 240 items, chosen at regular intervals.

    t-SNE is from van der Maaten and Hinton 2008, "Visualizing data using t-SNE".

    Args:
        features: unit-length features of the items.
        items: images or texts.
        kind: kind of the items, image or text.
        labels: class of each item, if known.

    Returns:
        One dict per chosen item: its coordinates `x` and `y` in [0, 1], the item as `image` or `text`, and its `label`
        if known. The list is empty for fewer than four items.
    """
    from sklearn.manifold import TSNE

    rows = evenly_spaced(len(items), _ON_THE_MAP)
    if len(rows) < 4:
        return []
    positions = TSNE(
        perplexity=min(30, (len(rows) - 1) / 3), metric="cosine", init="random", random_state=0
    ).fit_transform(features[rows].numpy())
    return [
        {kind: shown(items[row], _MAP_IMAGE_SIDE), **position} | ({} if labels is None else {"label": labels[row]})
        for row, position in zip(rows, _scaled(torch.from_numpy(positions)), strict=True)
    ]


def map_of_classes(features: Float[Tensor, "N D"], labels: Sequence[str]) -> list[dict[str, Any]]:
    """Return the positions of at most 240 images, chosen at regular intervals, along their two principal components.

    Args:
        features: unit-length features of the images.
        labels: class of each image.

    Returns:
        One dict per chosen image: its coordinates `x` and `y` in [0, 1] and its `label`. The list is empty for fewer
        than four images.
    """
    rows = evenly_spaced(len(labels), _ON_THE_MAP)
    if len(rows) < 4:
        return []
    chosen = features[rows].double()
    centered = chosen - chosen.mean(dim=0)
    _, _, directions = torch.linalg.svd(centered, full_matrices=False)
    # The sign of a direction is arbitrary: making its largest component positive gives the same map every time.
    first = directions[:2]
    first = first * first.gather(1, first.abs().argmax(dim=1, keepdim=True)).sign()
    return [{**position, "label": labels[row]} for row, position in zip(rows, _scaled(centered @ first.T), strict=True)]


def _scaled(positions: Float[Tensor, "N 2"]) -> list[dict[str, float]]:
    low, high = positions.amin(dim=0), positions.amax(dim=0)
    scaled = (positions - low) / (high - low).clamp(min=1e-9)
    return [{"x": round(x, 4), "y": round(y, 4)} for x, y in scaled.tolist()]
