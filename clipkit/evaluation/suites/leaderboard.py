"""Results of a suite as flat rows, for leaderboards and data frames."""

from typing import Any

from clipkit.evaluation.result import versions
from clipkit.evaluation.suites.run import SuiteResult
from clipkit.tasks import hub_name_of

FORMAT = "clipkit-suite-1"
"""Version of the keys: a key of this version keeps its meaning; further keys may be added."""


def leaderboard(result: SuiteResult) -> dict[str, Any]:
    """Return one row per model and dataset, whose keys do not change between releases.

    Returns:
        `format`, `suite`, `rows`, `means` (by model, if the suite has a mean), `missing` (reasons by dataset or model)
        and `versions`. A row has `model`, `dataset`, `title`, `task`, `task_type` (the Hub's name), `metric` and
        `value` (the main metric), `low`, `high`, `chance`, `metrics` (all values by name), `images`, `captions`,
        `data_sha256`, `captions_cut` (share of captions that are truncated; null if unknown) and `seconds`.

    Example:
        >>> rows = leaderboard(run_suite(read_suite("offline"), ["runs/a"], Path("suite")))["rows"]   # doctest: +SKIP
        >>> pandas.DataFrame(rows).pivot(index="model", columns="dataset", values="value")           # doctest: +SKIP
    """
    names = ("model", "dataset", "title", "task")
    figures = ("metric", "value", "low", "high", "chance")
    counts = ("images", "captions", "data_sha256", "captions_cut", "seconds")
    return {
        "format": FORMAT,
        "suite": result.suite.name,
        "rows": [
            {
                **{name: row[name] for name in names},
                "task_type": hub_name_of(row["task"]),
                **{name: row[name] for name in figures},
                "metrics": row["metrics"],
                **{name: row.get(name) for name in counts},
            }
            for row in result.rows
        ],
        "means": result.mean,
        "missing": {**result.unreached, **result.failed},
        "versions": versions(),
    }
