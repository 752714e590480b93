"""Examples in a result: queries with their top-ranked answers, for visual inspection."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor

from clipkit.errors import DataError
from clipkit.images import Stored, as_data_uri

Kind = Literal["image", "text"]
Item = str | Path | Stored


def shown(item: Item, side: int = 112) -> str:
    """Return the string that represents an item in an example.

    A text or a path is returned unchanged. An image in a tar file or in a table becomes a small data URI.

    Args:
        item: text or image.
        side: maximum width and height of the image in the data URI, in pixels.
    """
    if not isinstance(item, Stored):
        return str(item)
    try:
        return as_data_uri(item, side)
    except DataError:
        return str(item)


def answer(kind: Kind, item: Item, score: float | Tensor, right: bool) -> dict[str, Any]:
    """Return one answer to a query for the result JSON: the item, its score, and whether it is correct."""
    return {kind: shown(item), "score": round(float(score), 4), "right": right}


def example(kind: Kind, item: Item, answers: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return one example for the result JSON: a query and its answers."""
    return {"query": {kind: shown(item)}, "answers": list(answers)}


def top(scores: Float[Tensor, " N"], count: int) -> list[int]:
    """Return the positions of the `count` highest scores, best first. Ties go to the lower position."""
    return scores.argsort(descending=True, stable=True)[:count].tolist()
