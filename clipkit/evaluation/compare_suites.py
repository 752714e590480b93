"""Comparison of two models on all datasets of a suite, with p-values that are corrected for multiple tests."""

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
"""Family-wise error rate: probability of at least one significant difference if the models do not differ."""


class DatasetDifference(TypedDict):
    """Main metric of one dataset for two models, and the difference (second − first) with its interval and p-value."""

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
    """p-value after Holm's correction. The difference is significant if it is below 0.05."""


class SuiteComparison(TypedDict):
    """Return type of `compare_suites`."""

    suite: str
    first: str
    second: str
    datasets: list[DatasetDifference]
    mean: dict[str, float]
    """Mean of the main metrics over the datasets for each model, and the difference with its 95 % interval."""
    skipped: dict[str, str]
    """Reasons why datasets are not compared."""
    sentence: str


def holm(p: Sequence[float]) -> list[float]:
    """Return the p-values after Holm's correction for multiple tests, in the same order.

    The method is from Holm 1979, "A simple sequentially rejective multiple test procedure".

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
    """Return True if the path is the results folder of a suite, or the file results.json in this folder."""
    return "rows" in read_object(path / "results.json" if path.is_dir() else path)


def compare_suites(first: Path, second: Path | None = None, models: Sequence[str] = ()) -> SuiteComparison:
    """Compare two models on all datasets of a suite.

    The difference on each dataset has a two-sided p-value. It assumes a normal distribution with the standard
    error of 1,000 paired bootstrap resamples of the images.

    Args:
        first: results folder of a suite, or its results.json.
        second: folder or results.json with the results of the second model. None: `first` contains both models.
        models: names of the two models; necessary if the results contain more than two.

    Raises:
        DataError: a file cannot be read, there are not exactly two models, or they have no dataset in common.

    Example:
        >>> compared = compare_suites(Path("suite_a"), Path("suite_b"))    # doctest: +SKIP
        >>> print(compared["sentence"])                                    # doctest: +SKIP
    """
    content = _content(first)
    contents = [content] if second is None else [content, _content(second)]
    names = _names(first, contents, models)
    rows, others = _rows(first, content, names[0]), _rows(second or first, contents[-1], names[1])
    skipped = dict.fromkeys(sorted(rows.keys() ^ others.keys()), "only one of the two models has a result")
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
                    f"{metric} is not a mean over images, so it has no paired difference; compare the two result "
                    "files of this dataset instead"
                )
        except DataError as error:
            skipped[name] = str(error)
            continue
        change = after[metric] - before[metric]
        low, high = interval(change)
        difference = two[metric] - one[metric]
        # The share of resampled differences below 0 would be too coarse: its smallest p-value is 0.002, which is too
        # large for many datasets.
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
        reasons = "; ".join(f"{name}: {why}" for name, why in skipped.items()) or "both results are empty"
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
    """Return the names of the two models to compare.

    Args:
        first: path that error messages show.
        contents: content of one or two results.json files.
        models: names that the user gave. Empty: the files must contain exactly two models.
    """
    measured = [list(dict.fromkeys(row["model"] for row in content["rows"])) for content in contents]
    if models:
        if len(models) != 2:
            raise DataError(f"--model was given {len(models)} times; give --model twice, once for each model")
        for name, of_source in zip(models, (measured[0], measured[-1]), strict=True):
            if name not in of_source:
                raise DataError(f"{name}: is not a model in the results; choose from {', '.join(of_source)}")
        return models[0], models[1]
    found = [name for of_source in measured for name in of_source]
    if len(found) != 2 or (len(measured) == 2 and not all(measured)):
        raise DataError(
            f"{first}: the models in the results are {', '.join(found)}, but a comparison needs two models; choose two "
            "models with --model A --model B, or give a second suite"
        )
    return found[0], found[1]


def _content(source: Path) -> dict[str, Any]:
    content = read_object(source / "results.json" if source.is_dir() else source)
    if not isinstance(content.get("rows"), list):
        raise DataError(f"{source}: is not the result of a suite; give a folder that clipkit eval suite … --out wrote")
    return content


def _rows(source: Path, content: Mapping[str, Any], model: str) -> dict[str, dict[str, Any]]:
    """Return the result rows of one model, keyed by dataset, each with the added key `path` of the result file."""
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
    """Summarize the comparison in one sentence, e.g. for a paper."""
    significant = [one["difference"] for one in compared if one["p_holm"] < LEVEL]
    better, worse = sum(one > 0 for one in significant), sum(one < 0 for one in significant)
    change = " to ".join(f"{100 * mean[end]:+.1f}" for end in ("low", "high"))
    count = f"{len(compared)} dataset{'s' * (len(compared) != 1)}"
    return (
        f"Over {count} of {suite}, {names[1]} is significantly better than {names[0]} on {better} and worse on {worse} "
        f"(paired bootstrap over images, Holm's correction, family-wise error rate {LEVEL:.0%}); the mean of the main "
        f"metrics changes by {100 * mean['difference']:+.1f} points (95 % interval {change})."
    )
