"""Two results on the same data, query by query."""

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import numpy as np

from clipkit.errors import DataError, one_line
from clipkit.evaluation.figures import Columns, Means, draws, values
from clipkit.evaluation.tasks.compositional import compositional_columns
from clipkit.evaluation.tasks.probe import probe_columns
from clipkit.evaluation.tasks.retrieval import retrieval_columns
from clipkit.evaluation.tasks.zeroshot import classification_columns, several_columns
from clipkit.metrics import interval
from clipkit.metrics.bootstrap import DRAWS

_SHOWN = 5


class Difference(TypedDict):
    """The second's metric less the first's, with its 95 % interval and the two-sided p of the resampled differences."""

    first: float
    second: float
    difference: float
    low: float
    high: float
    p: float


class Comparison(TypedDict):
    """What `compare` finds."""

    task: str
    first: str
    second: str
    data: dict[str, Any]
    metrics: dict[str, Difference]
    disagreements: list[dict[str, Any]]


def compare(first: Mapping[str, Any], second: Mapping[str, Any]) -> Comparison:
    """The paired difference of every metric: both are resampled with the same draws of images.

    `p` is two-sided: twice the share of the 1,000 resampled differences on the rarer side of 0 (at least 0.002: what
    so many draws can tell).

    Args:
        first: a result, as `clipkit.evaluate.retrieval` gives or a results JSON holds.
        second: another one of the same task on the same data.

    Raises:
        DataError: they are of different tasks or data, or lack what their queries got.

    Example:
        >>> found = compare(before, after)                          # doctest: +SKIP
        >>> found["metrics"]["mean_recall"]["difference"]           # doctest: +SKIP
        0.034
    """
    for result in (first, second):
        if not result.get("queries") or not result["data"].get("sha256"):
            raise DataError(
                f"{result.get('model')}: this result does not hold what its queries got, so it cannot be compared; "
                "evaluate again with --json"
            )
    _same(first, second)
    try:
        (columns, means), (others, _) = columns_of(first), columns_of(second)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise DataError(
            f"a result lacks what its queries got ({one_line(error)}); evaluate again with --json"
        ) from None
    one, two = values(columns, means), values(others, means)
    before, after = draws(columns, means), draws(others, means)
    metrics: dict[str, Difference] = {}
    for name in one:
        low, high = interval(after[name] - before[name])
        metrics[name] = {
            "first": one[name],
            "second": two[name],
            "difference": two[name] - one[name],
            "low": low,
            "high": high,
            "p": _two_sided(after[name] - before[name]),
        }
    return {
        "task": first["task"],
        "first": first["model"],
        "second": second["model"],
        "data": first["data"],
        "metrics": metrics,
        "disagreements": [*_disagreements(first, second), *_turned(first, second)],
    }


def columns_of(result: Mapping[str, Any]) -> tuple[Columns, Means]:
    """A result's figures, a row a query.

    Raises:
        DataError: its task has none.
    """
    queries = result["queries"]
    match result["task"]:
        case "retrieval":
            return retrieval_columns(queries)
        case "zeroshot" if "precision" in queries:
            return several_columns(queries, result["data"]["classes"]), {}
        case "zeroshot":
            return classification_columns(queries, result["data"]["classes"]), {}
        case "probe":
            return probe_columns(queries, result["data"]["classes"]), {}
        case "compositional":
            return compositional_columns(queries), {}
        case task:
            raise DataError(f"{result['model']}: results of {task} cannot be compared")


def _same(first: Mapping[str, Any], second: Mapping[str, Any]) -> None:
    for what, one, two in (
        ("task", first["task"], second["task"]),
        ("data (its sha256)", first["data"].get("sha256"), second["data"].get("sha256")),
        ("merge_captions", *(result["settings"].get("merge_captions") for result in (first, second))),
        ("number of classes", first["data"].get("classes"), second["data"].get("classes")),
        ("shots", first["settings"].get("shots"), second["settings"].get("shots")),
    ):
        if one != two:
            raise DataError(
                f"the results differ in their {what}: {one} and {two}; compare results of one task on the same data"
            )


def _two_sided(differences: np.ndarray[Any, np.dtype[np.float64]]) -> float:
    rarer = min((differences <= 0).mean(), (differences >= 0).mean())
    return float(min(1.0, max(2 * rarer, 2 / DRAWS)))


def _disagreements(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The queries that moved most, both ways; ranks are compared as ratios."""
    found = []
    for kind, key, names in (
        ("text", "image_rank", "texts"),
        ("image", "text_rank", "images"),
        ("image", "true_rank", "images"),
    ):
        if key not in first["queries"]:
            continue
        one, two = (np.asarray(result["queries"][key], dtype=np.float64) for result in (first, second))
        ratio = np.log(np.maximum(two, 1) / np.maximum(one, 1))
        named = first["queries"].get(names)
        for row in _furthest(ratio):
            found.append(
                _moved(kind, row, named, one, two)
                | _image_of(first["queries"], key, row)
                | _answer("first", first, key, row)
                | _answer("second", second, key, row)
            )
            if key == "true_rank" and "classes" in first:
                found[-1]["right"] = first["classes"][first["queries"]["label"][row]]["class"]
    return found


def _turned(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Images of a probe or of near misses that one model has right and the other has not; of shots by their share."""
    queries = first["queries"]
    match first["task"]:
        case "probe":
            one, two = (np.asarray(result["queries"]["lp_top1"]) for result in (first, second))
            names = queries["images"]
            images = names
            right = [first["settings"]["classes"][label] for label in queries["label"]]
        case "compositional":
            one, two = (compositional_columns(result["queries"])["acc"].values for result in (first, second))
            names = [" | ".join(own) for own in queries["texts"]]
            images = [own[0] for own in queries["images"]]
            right = [own[0] for own in queries["texts"]]
        case _:
            return []
    return [
        {
            "asks": "image", "query": names[row], "image": images[row], "right": right[row],
            "first_right": float(one[row]), "second_right": float(two[row]),
        }
        for row in _furthest(one - two)
    ]  # fmt: skip


def _furthest(change: np.ndarray[Any, np.dtype[np.float64]]) -> list[int]:
    """The rows that fell most, then those that rose most."""
    order = np.argsort(change, kind="stable")
    fell, rose = order[change[order] < 0][:_SHOWN], order[change[order] > 0][::-1][:_SHOWN]
    return [int(row) for row in (*fell, *rose)]


def _moved(kind: str, row: int, names: Sequence[Any] | None, one: Any, two: Any) -> dict[str, Any]:
    query = names[row] if names is not None else f"row {row}"
    return {"asks": kind, "query": query, "first_rank": int(one[row]), "second_rank": int(two[row])}


def _image_of(queries: Mapping[str, Any], key: str, row: int) -> dict[str, str]:
    """The image that asks, or that a caption asks for."""
    if "images" not in queries:
        return {}
    place = queries["image_of_text"][row] if key == "image_rank" else row
    return {"image": queries["images"][place]} if place >= 0 else {}


def _answer(whose: str, result: Mapping[str, Any], key: str, row: int) -> dict[str, str]:
    """What a model puts first: an image, a caption or a class."""
    queries = result["queries"]
    match key:
        case "image_rank" if "first_image" in queries:
            return {f"{whose}_image": queries["images"][queries["first_image"][row]]}
        case "text_rank" if "first_text" in queries:
            return {f"{whose}_text": queries["texts"][queries["first_text"][row]]}
        case "true_rank" if "classes" in result:
            return {f"{whose}_text": result["classes"][queries["predicted"][row]]["class"]}
        case _:
            return {}
