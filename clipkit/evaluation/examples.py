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
    """Return an item for an example: a text or path unchanged, an image in a tar file or table as a small data URI."""
    if not isinstance(item, Stored):
        return str(item)
    try:
        return as_data_uri(item, side)
    except DataError:
        return str(item)


def answer(kind: Kind, item: Item, score: float | Tensor, right: bool) -> dict[str, Any]:
    """Return one answer to a query, as stored in a result: the item, its score, and whether it is correct."""
    return {kind: shown(item), "score": round(float(score), 4), "right": right}


def example(kind: Kind, item: Item, answers: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return one example: a query and its answers."""
    return {"query": {kind: shown(item)}, "answers": list(answers)}


def top(scores: Float[Tensor, " N"], count: int) -> list[int]:
    """Return the positions of the highest scores, best first; of equal scores the lower position first."""
    return scores.argsort(descending=True, stable=True)[:count].tolist()
