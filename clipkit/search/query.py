"""Queries that combine weighted texts and images into one unit vector."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from clipkit.errors import DataError, UserError, check_text, one_line
from clipkit.images import ImageLike
from clipkit.search.nearest import unit_vectors

if TYPE_CHECKING:
    from numpy.typing import ArrayLike
    from torch import Tensor

_WEIGHTED = re.compile(r"\s*(\d+(?:\.\d+)?|\.\d+)\s*\*\s*(.*\S)\s*", re.DOTALL)


@dataclass(frozen=True)
class Term:
    """Part of a query with its weight. A negative weight means that results should not resemble the part."""

    what: str | ImageLike | int
    """A text, an image, or the row of an image in the index; `kind` tells which."""
    kind: str
    """text, image or row."""
    weight: float = 1.0


def weighted(text: str) -> tuple[str, float]:
    """Split a text such as "0.5 * snow" into the text and its weight, which is 1.0 by default.

    Example:
        >>> weighted("0.5 * snow"), weighted("two dogs")
        (('snow', 0.5), ('two dogs', 1.0))
    """
    found = _WEIGHTED.fullmatch(text)
    return (found[2], float(found[1])) if found else (text.strip(), 1.0)


def terms_of(
    texts: str | Sequence[str] | Mapping[str, float] | None,
    images: Sequence[ImageLike],
    minus: str | Sequence[str],
    rows: Iterable[int],
) -> list[Term]:
    """Return the parts of a query as terms.

    Args:
        texts, images, minus: as for `clipkit.Index.search`.
        rows: rows of images in the index that results should resemble.

    Raises:
        DataError: no part has a positive weight, a text is empty, or a weight is not a finite number.
    """
    given = [texts] if isinstance(texts, str) else texts or []
    taken = [minus] if isinstance(minus, str) else minus
    pairs = list(given.items()) if isinstance(given, Mapping) else [weighted(text) for text in given]
    terms = [Term(text, "text", float(weight)) for text, weight in pairs]
    terms += [Term(text, "text", -weight) for text, weight in map(weighted, taken)]
    terms += [Term(image, "image") for image in images]
    terms += [Term(row, "row") for row in rows]
    for term in terms:
        if isinstance(term.what, str) and term.kind == "text":
            check_text(term.what)
            if not term.what.strip():
                raise DataError("the query is an empty text; give words, an image or an image of the index")
        if not abs(term.weight) < 1e6:
            raise DataError(
                f"the weight {term.weight} of {str(term.what)[:80]!r} is not valid; give a number between -1e6 and 1e6"
            )
    if not any(term.weight > 0 for term in terms):
        raise DataError("the query has no part with a positive weight; give words, an image or an image of the index")
    return terms


def combined(features: NDArray[np.float32], weights: Sequence[float]) -> NDArray[np.float32]:
    """Return the (D,) unit vector of a weighted sum of features: q = Σ w_t f_t / |Σ w_t f_t|.

    Args:
        features: (T, D) features f_t of the terms.
        weights: weight w_t of each term.

    Raises:
        DataError: the terms cancel each other.
    """
    total = np.array(weights, np.float32) @ features
    if np.linalg.norm(total) < 1e-3 * sum(map(abs, weights)):
        raise DataError("the parts of the query cancel each other; change their weights")
    return unit_vectors(total)


def as_vectors(vectors: "ArrayLike | Tensor") -> NDArray[np.float32]:
    """Convert nested lists, an array, or a tensor on any device to an array in float32.

    Raises:
        DataError: the vectors are not numbers, or not all have the same length.
    """
    try:
        array = vectors.detach().float().cpu() if hasattr(vectors, "detach") else vectors
        with np.errstate(over="ignore"):  # `check_vectors` refuses infinite numbers
            return np.asarray(array, np.float32)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"vectors is not a matrix of numbers ({one_line(error)}); give an array or a tensor with a row of numbers "
            "for each query"
        ) from None


def check_vectors(vectors: NDArray[np.float32], width: int) -> None:
    """Check that query vectors have the right shape, are finite, and are not zero.

    Args:
        width: number of dimensions of the index's features.

    Raises:
        DataError: a check fails.
    """
    if vectors.ndim != 2 or vectors.shape[1] != width:
        raise DataError(f"vectors has the shape {tuple(vectors.shape)}; give a row of {width} numbers for each query")
    with np.errstate(over="ignore", invalid="ignore"):
        lengths = np.linalg.norm(vectors, axis=1)
    has_direction = np.isfinite(lengths) & (lengths > 0)
    if not has_direction.all():
        row = int(np.flatnonzero(~has_direction)[0])
        raise DataError(f"vectors[{row}] is zero or not finite; give features of unit length")


def check_limits(k: int, precision: float | None) -> None:
    """Check the maximum number of results and the requested precision of a search.

    Raises:
        UserError: `k` is less than 1, or `precision` is not between 0 and 1.
    """
    if k < 1:
        raise UserError(f"k is {k}, but at least 1 result is needed; give a larger k")
    if precision is not None and not 0 < precision < 1:
        raise UserError(f"precision {precision} is not between 0 and 1; give, for example, 0.9")


def single_text(terms: Sequence[Term]) -> list[str] | None:
    """Return the text of a query, in a list, if the query is a single text; otherwise None."""
    return [str(terms[0].what)] if len(terms) == 1 and terms[0].kind == "text" else None
