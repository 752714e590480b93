"""Results of a suite as one flat row per model and dataset, for leaderboards and data frames."""

from typing import Any

from clipkit.evaluation.result import versions
from clipkit.evaluation.suites.run import SuiteResult
from clipkit.tasks import hub_name_of

FORMAT = "clipkit-suite-1"
"""Version of the keys: a key of this version keeps its meaning; further keys may be added."""


def leaderboard(result: SuiteResult) -> dict[str, Any]:
    """Return the results of a suite as one flat row per model and dataset, with stable keys.

    Returns:
        A dict with these keys:

        - format: version of the keys.
        - suite: name of the suite.
        - rows: one dict per model and dataset, with `model`, `dataset`, `title`, `task`, `task_type` (the Hub's name of
          the task), `metric` (name of the main metric), its `value`, `low`, `high` and `chance`, `metrics` (values of
          all metrics), `images`, `captions`, `data_sha256`, `captions_cut` (share of truncated captions) and `seconds`.
          Unknown values are None.
        - means: mean of each model over the datasets, if the suite has a mean.
        - missing: reason for each missing result, keyed by dataset or model.
        - versions: versions of the installed packages.

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
