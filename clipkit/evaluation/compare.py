"""Comparison of two evaluation results on the same data, query by query."""

from collections.abc import Mapping
from typing import Any, TypedDict

import numpy as np

from clipkit.errors import DataError, one_line
from clipkit.evaluation.figures import Columns, Means, draws, values
from clipkit.evaluation.tasks.task import Answers, task_of
from clipkit.metrics import interval
from clipkit.metrics.bootstrap import DRAWS
from clipkit.tasks import named_data

_SHOWN = 5

Resampled = np.ndarray[Any, np.dtype[np.float64]]


class Difference(TypedDict):
    """Values of one metric in two results, and their difference (second − first).

    `low` and `high` are the ends of the 95 % interval of the difference. `p` is the two-sided p-value.
    """

    first: float
    second: float
    difference: float
    low: float
    high: float
    p: float


class Comparison(TypedDict):
    """Return type of `compare`."""

    task: str
    first: str
    second: str
    data: dict[str, Any]
    metrics: dict[str, Difference]
    disagreements: list[dict[str, Any]]


def compare(first: Mapping[str, Any], second: Mapping[str, Any]) -> Comparison:
    """Compare two results on the same data: return the difference of every metric, with its 95 % interval and p-value.

    The bootstrap is paired: each of its 1,000 resamples contains the same images for both results. `p` is two-sided:
    twice the share of resampled differences ≤ 0 or the share ≥ 0, whichever is smaller. The smallest `p` is 0.002.

    Args:
        first: a result of e.g. `clipkit.evaluate.retrieval`, or the content of a result JSON.
        second: another result of the same task on the same data.

    Raises:
        DataError: the results differ in task or data, or contain no values per query.

    Example:
        >>> comparison = compare(before, after)                     # doctest: +SKIP
        >>> comparison["metrics"]["mean_recall"]["difference"]      # doctest: +SKIP
        0.034
    """
    one, two, before, after = paired(first, second)
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
        "disagreements": _disagreements(first, second),
    }


def paired(
    first: Mapping[str, Any], second: Mapping[str, Any]
) -> tuple[dict[str, float], dict[str, float], dict[str, Resampled], dict[str, Resampled]]:
    """Return the metrics of two results, and their values on the same 1,000 bootstrap resamples.

    Returns:
        Four dicts keyed by metric: the values of the first and of the second result, and the resampled values of the
        first and of the second result.

    Raises:
        DataError: the results differ in task or data, or contain no values per query.
    """
    for result in (first, second):
        if not result.get("queries") or not result["data"].get("sha256"):
            raise DataError(
                f"{result.get('model')}: the result lacks the values per query (keys queries and data.sha256) that a "
                "comparison needs; evaluate the model again with --json"
            )
    _check_comparable(first, second)
    try:
        (columns, means), (second_columns, _) = columns_of(first), columns_of(second)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise DataError(
            f"one of the results lacks values per query that a comparison needs ({one_line(error)}); "
            "evaluate both models again with --json"
        ) from None
    return (
        values(columns, means), values(second_columns, means), draws(columns, means), draws(second_columns, means),
    )  # fmt: skip


def columns_of(result: Mapping[str, Any]) -> tuple[Columns, Means]:
    """Return the per-query values of each metric, and the metrics that average other metrics, e.g. `mean_recall`.

    Raises:
        DataError: results of this task cannot be compared.
    """
    return task_of(result["task"]).columns(result)


def _check_comparable(first: Mapping[str, Any], second: Mapping[str, Any]) -> None:
    if first["task"] == second["task"] and first["data"].get("sha256") != second["data"].get("sha256"):
        one, two = (named_data(result["data"]) for result in (first, second))
        data = f"the content of {one} differs" if one == two else f"{one} and {two}"
        raise DataError(f"the results were measured on different data: {data}; evaluate both models on the same data")
    for what, one, two in (
        ("task", first["task"], second["task"]),
        ("merge_captions", *(result["settings"].get("merge_captions") for result in (first, second))),
        ("number of classes", first["data"].get("classes"), second["data"].get("classes")),
        ("shots", first["settings"].get("shots"), second["settings"].get("shots")),
    ):
        if one != two:
            raise DataError(
                f"the results have different values of {what}: {one} and {two}; compare results of the same "
                "task on the same data with the same settings"
            )


def _two_sided(differences: np.ndarray[Any, np.dtype[np.float64]]) -> float:
    rarer = min((differences <= 0).mean(), (differences >= 0).mean())
    return float(min(1.0, max(2 * rarer, 2 / DRAWS)))


def _disagreements(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the queries whose outcomes differ most between two results: first improved ones, then deteriorated ones.

    Queries of different kinds (e.g. texts and images) are listed separately. Ranks are compared by their ratio, other
    values by their difference.
    """
    answers_of = task_of(first["task"]).answers
    rows = []
    for one, two in zip(answers_of(first), answers_of(second), strict=True):
        if one.are_ranks:
            worse = np.log(np.maximum(two.values, 1) / np.maximum(one.values, 1))
        else:
            worse = one.values - two.values
        rows += [_disagreement(one, two, row) for row in _furthest(worse)]
    return rows


def _furthest(worse: np.ndarray[Any, np.dtype[np.float64]]) -> list[int]:
    """Return the positions of the queries that improved most, then of the queries that deteriorated most.

    Args:
        worse: change of each query; negative if the query improved.
    """
    order = np.argsort(worse, kind="stable")
    fell, rose = order[worse[order] < 0][:_SHOWN], order[worse[order] > 0][::-1][:_SHOWN]
    return [int(row) for row in (*fell, *rose)]


def _disagreement(first: Answers, second: Answers, row: int) -> dict[str, Any]:
    disagreement: dict[str, Any] = {
        "asks": first.kind,
        "query": first.queries[row] if first.queries is not None else f"row {row}",
    }
    image = first.images[row] if first.images is not None else None
    if image is not None:
        disagreement["image"] = image
    if first.right is not None:
        disagreement["right"] = first.right[row]
    for name, answers in (("first", first), ("second", second)):
        value = answers.values[row]
        disagreement |= {f"{name}_rank": int(value)} if answers.are_ranks else {f"{name}_right": float(value)}
        if answers.answered is not None:
            disagreement[f"{name}_{answers.answered_kind}"] = answers.answered[row]
    return disagreement
