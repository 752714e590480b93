"""Comparison of two models over a whole suite: paired differences per dataset, corrected for the number of datasets."""

from collections.abc import Mapping, Sequence
from math import erfc, sqrt
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from clipkit.errors import DataError
from clipkit.evaluation.compare import paired
from clipkit.evaluation.result import read_result
from clipkit.metrics import interval
from clipkit.run_files import read_object

LEVEL = 0.05
"""Family-wise error rate: probability of at least one false difference if no dataset differs."""


class DatasetDifference(TypedDict):
    """The main metric of a dataset for both models, and the difference second − first."""

    dataset: str
    title: str
    metric: str
    first: float
    second: float
    difference: float
    low: float
    high: float
    p: float
    p_holm: float
    """p after Holm's correction; below 0.05, the difference is significant among all datasets."""


class SuiteComparison(TypedDict):
    """The result of `compare_suites`."""

    suite: str
    first: str
    second: str
    datasets: list[DatasetDifference]
    mean: dict[str, float]
    """Mean over datasets of both models, their difference, and its 95 % interval."""
    skipped: dict[str, str]
    """Reasons why datasets are not compared."""
    sentence: str


def holm(p: Sequence[float]) -> list[float]:
    """Return p-values corrected for multiple tests (Holm 1979, "A simple sequentially rejective test procedure").

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    corrected = [0.0] * len(p)
    highest = 0.0
    for rank, k in enumerate(sorted(range(len(p)), key=lambda k: p[k])):
        highest = max(highest, min(1.0, (len(p) - rank) * p[k]))
        corrected[k] = highest
    return corrected


def is_suite(path: Path) -> bool:
    """Return whether a path is the folder of a suite or its results.json."""
    return "rows" in read_object(path / "results.json" if path.is_dir() else path)


def compare_suites(first: Path, second: Path | None = None, models: Sequence[str] = ()) -> SuiteComparison:
    """Compare two models over all datasets of a suite.

    p is two-sided. It is computed from the normal distribution with the standard error of 1,000 paired bootstrap draws
    of images. The share of draws below 0 would be too coarse: its smallest p, 0.002, is too large for many datasets.

    Args:
        first: folder of a suite, or its results.json.
        second: folder or results.json with the second model; None: both models are in `first`.
        models: names of both models, if a suite has several.

    Raises:
        DataError: a file cannot be read, there are not exactly two models, or no dataset was measured with both.

    Example:
        >>> compared = compare_suites(Path("suite_a"), Path("suite_b"))    # doctest: +SKIP
        >>> print(compared["sentence"])                                    # doctest: +SKIP
    """
    content = _content(first)
    contents = [content] if second is None else [content, _content(second)]
    names = _names(first, contents, models)
    rows, others = _rows(first, content, names[0]), _rows(second or first, contents[-1], names[1])
    skipped = dict.fromkeys(sorted(rows.keys() ^ others.keys()), "measured only with one of the two models")
    compared: list[DatasetDifference] = []
    changes = []
    for name in [name for name in rows if name in others]:
        row, other = rows[name], others[name]
        metric = row["metric"]
        try:
            results = [read_result(file) for file in (row["path"], other["path"])]
            if metric != other["metric"]:
                raise DataError(
                    f"the metric is {metric} in one suite and {other['metric']} in the other; evaluate both "
                    "suites with the same metric"
                )
            one, two, before, after = paired(*results)
            if metric not in one:
                raise DataError(
                    f"{metric} is not a mean over images, so suites cannot be compared by it; compare two single "
                    "results"
                )
        except DataError as error:
            skipped[name] = str(error)
            continue
        change = after[metric] - before[metric]
        low, high = interval(change)
        difference = two[metric] - one[metric]
        p = _normal_p(difference, float(change.std(ddof=1)))
        compared.append(
            {
                "dataset": name, "title": row["title"], "metric": metric, "first": one[metric], "second": two[metric],
                "difference": difference, "low": low, "high": high, "p": p,
                "p_holm": 1.0,
            }
        )  # fmt: skip
        changes.append(change)
    if not compared:
        reasons = "; ".join(f"{name}: {why}" for name, why in skipped.items()) or "both are empty"
        raise DataError(f"no dataset can be compared ({reasons}); evaluate both models on the same suite")
    for of_dataset, corrected in zip(compared, holm([one["p"] for one in compared]), strict=True):
        of_dataset["p_holm"] = corrected
    low, high = interval(np.mean(changes, axis=0))
    values = {kind: float(np.mean([one[kind] for one in compared])) for kind in ("first", "second", "difference")}
    mean = {**values, "low": low, "high": high}
    suite = str(content.get("title") or content["suite"])
    sentence = _sentence(suite, names, compared, mean)
    return {
        "suite": suite, "first": names[0], "second": names[1], "datasets": compared, "mean": mean, "skipped": skipped,
        "sentence": sentence,
    }  # fmt: skip


def _names(first: Path, contents: Sequence[Mapping[str, Any]], models: Sequence[str]) -> tuple[str, str]:
    """Return the names of both models, which are in one suite or in two."""
    measured = [list(dict.fromkeys(row["model"] for row in content["rows"])) for content in contents]
    if models:
        if len(models) != 2:
            raise DataError(f"--model was given {len(models)} times; give it twice, once for each model to compare")
        for name, of_source in zip(models, (measured[0], measured[-1]), strict=True):
            if name not in of_source:
                raise DataError(f"{name}: is not a model of the suite; choose from {', '.join(of_source)}")
        return models[0], models[1]
    found = [name for of_source in measured for name in of_source]
    if len(found) != 2 or (len(measured) == 2 and not all(measured)):
        raise DataError(f"{first}: contains the models {', '.join(found)}; choose two of them with --model A --model B")
    return found[0], found[1]


def _content(source: Path) -> dict[str, Any]:
    content = read_object(source / "results.json" if source.is_dir() else source)
    if not isinstance(content.get("rows"), list):
        raise DataError(f"{source}: is not a suite; give a folder that clipkit eval suite … --out wrote")
    return content


def _rows(source: Path, content: Mapping[str, Any], model: str) -> dict[str, dict[str, Any]]:
    """Return the rows of a model by dataset, and add the path of the result file to each row as `path`."""
    folder = source if source.is_dir() else source.parent
    rows = [row for row in content["rows"] if row["model"] == model]
    return {row["dataset"]: {**row, "path": folder / row["file"]} for row in rows}


def _normal_p(difference: float, error: float) -> float:
    if difference == 0:
        return 1.0
    return erfc(abs(difference) / (error * sqrt(2))) if error > 0 else 0.0


def _sentence(
    suite: str, names: tuple[str, str], compared: Sequence[DatasetDifference], mean: Mapping[str, float]
) -> str:
    """Return the outcome as one sentence that a paper can quote."""
    significant = [one["difference"] for one in compared if one["p_holm"] < LEVEL]
    better, worse = sum(one > 0 for one in significant), sum(one < 0 for one in significant)
    change = " to ".join(f"{100 * mean[end]:+.1f}" for end in ("low", "high"))
    count = f"{len(compared)} dataset{'s' * (len(compared) != 1)}"
    return (
        f"Over {count} of {suite}, {names[1]} is significantly better than {names[0]} on {better} and worse on {worse} "
        f"(paired bootstrap over images, Holm's correction, family-wise error rate {LEVEL:.0%}); the mean of the main "
        f"metrics changes by {100 * mean['difference']:+.1f} points (95 % interval {change})."
    )
