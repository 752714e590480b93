"""Result of an evaluation: a dict that can also be shown as a table, a data frame or a plot."""

import html
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from clipkit.errors import DataError
from clipkit.evaluation.figures import Figure
from clipkit.tasks import named_data, number, readable, shown_metrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_PARTS = ("metrics", "predictions", "classes", "prompts")


class Result(dict[str, Any]):
    """Result of an evaluation or a run: the content of a result JSON, with attributes, a table and plots.

    Example:
        >>> figure = {"value": 0.5, "low": 0.4, "high": 0.6, "chance": 0.1}
        >>> data = {"name": "d", "images": 90}
        >>> result = Result(task="zeroshot", model="me/clip", data=data, metrics={"acc1": figure})
        >>> result.value("acc1"), result.metrics["acc1"]["chance"]
        (0.5, 0.1)
        >>> result
        zeroshot of me/clip on d (90 images)
                           value    95 % interval  chance
        top-1 accuracy    50.0 %  40.0 % – 60.0 %  10.0 %
        >>> result.to_frame().loc["acc1", "low"]
        np.float64(0.4)
    """

    @property
    def task(self) -> str:
        """Name of the task."""
        return str(self["task"])

    @property
    def model(self) -> str:
        """Name of the model."""
        return str(self["model"])

    @property
    def data(self) -> dict[str, Any]:
        """Description of the data: name, counts and hash."""
        return dict(self["data"])

    @property
    def metrics(self) -> dict[str, Figure]:
        """Metrics by name. Each metric is a dict with `value`, `low` and `high` (95 % interval), and `chance`."""
        return dict(self["metrics"])

    @property
    def settings(self) -> dict[str, Any]:
        """Other settings on which the metrics depend, e.g. the prompts."""
        return dict(self["settings"])

    @property
    def findings(self) -> list[Any]:
        """Notes and warnings about a training run, or (as strings) about the data of an evaluation."""
        return list(self.get("findings", self["data"].get("findings", ())))

    def value(self, metric: str) -> float | None:
        """Return the value of a metric; None if it is undefined.

        Raises:
            DataError: the result has no such metric.
        """
        if metric not in self["metrics"]:
            raise DataError(f"{metric!r} is not a metric of this result; use one of {', '.join(self['metrics'])}")
        value: float | None = self["metrics"][metric]["value"]
        return value

    def to_frame(self, part: str = "metrics") -> Any:
        """Return one part of the result as a pandas DataFrame.

        Args:
            part: "metrics": one row per metric. "predictions": one row per query, with its rank, or with its class and
                the predicted class. "classes" or "prompts": one row per class or prompt.

        Raises:
            DataError: the result does not contain the part.
        """
        if part == "metrics":
            metrics = [{"metric": name, **figure} for name, figure in self["metrics"].items()]
            return _frame(metrics).set_index("metric")
        rows: Any = self._predictions() if part == "predictions" else self.get(part)
        if not rows:
            available = [name for name in _PARTS if name in self or (name == "predictions" and self.get("queries"))]
            raise DataError(f"{part!r} is not part of this result; use one of {', '.join(['metrics', *available[1:]])}")
        return _frame(rows)

    def _predictions(self) -> list[dict[str, Any]]:
        queries: Mapping[str, list[Any]] = self.get("queries") or {}
        if "image_rank" in queries:  # retrieval has two kinds of queries: texts and images
            kinds = (("text", "texts", "image_rank", "first_image"), ("image", "images", "text_rank", "first_text"))
            names = {"first_image": queries.get("images"), "first_text": queries.get("texts")}
            return [
                {"asks": kind, "query": query, "rank": rank} | ({} if found is None else {"first": found})
                for kind, asked, ranks, first in kinds
                for query, rank, found in zip(
                    queries.get(asked, range(len(queries[ranks]))),
                    queries[ranks],
                    _named(queries.get(first), names[first]) or [None] * len(queries[ranks]),
                    strict=True,
                )
            ]
        lengths = [len(values) for values in queries.values()]
        columns = {name: values for name, values in queries.items() if len(values) == max(lengths, default=0)}
        titles = [row["class"] for row in self.get("classes", ()) if "class" in row]
        for name in ("label", "predicted"):
            if name in columns and titles:
                columns[name] = _named(columns[name], titles) or []
        renamed = {"images": "image"}
        return [
            dict(zip((renamed.get(name, name) for name in columns), row, strict=True))
            for row in zip(*columns.values(), strict=True)
        ]

    def plot(self, kind: str | None = None, ax: "Axes | None" = None) -> "Axes":
        """Draw a plot of the result, and return its axes.

        Args:
            kind: "metrics": values with 95 % intervals and chance levels. "recall": recall at every rank, for
                retrieval. "confusion" and "calibration": for zero-shot classification. None: "recall" for retrieval,
                otherwise "metrics".
            ax: matplotlib axes to draw in. None: a new figure.

        Raises:
            DataError: the result lacks the data for this kind of plot.
        """
        from clipkit.evaluation.plots import plot

        return plot(self, kind, ax)

    def __repr__(self) -> str:
        rows = self.table()
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(cell.rjust(width) if place else cell.ljust(width + 2) for place, (cell, width) in enumerate(row))
            for row in (list(zip(cells, widths, strict=True)) for cells in rows)
        ]
        return "\n".join([self._title(), *(line.rstrip() for line in lines)])

    def _repr_html_(self) -> str:
        """Return the table of metrics as HTML, for notebooks."""
        head, *rows = [[html.escape(cell) for cell in row] for row in self.table()]
        body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
        header = "".join(f"<th>{cell}</th>" for cell in head)
        caption = f"<caption>{html.escape(self._title())}</caption>"
        return f"<table>{caption}<thead><tr>{header}</tr></thead><tbody>{body}</tbody></table>"

    def _title(self) -> str:
        data = named_data(self.get("data", {}))
        return f"{self.get('task')} of {self.get('model')}" + (f" on {data}" if data else "")

    def table(self) -> list[list[str]]:
        """Return the table of metrics as rows of cells. The first row is the header."""
        metrics: Mapping[str, Any] = self.get("metrics", {})
        rows = [["", "value", "95 % interval", "chance"]]
        for name in shown_metrics(metrics) if metrics else ():
            figure = metrics[name]
            low, high = (number(name, figure.get(end)) for end in ("low", "high"))
            interval = f"{low} – {high}" if figure.get("low") is not None else "–"
            rows.append([readable(name), number(name, figure["value"]), interval, number(name, figure.get("chance"))])
        return rows


def _named(positions: list[int] | None, names: Any) -> list[Any] | None:
    return None if positions is None or names is None else [names[position] for position in positions]


def _frame(rows: list[dict[str, Any]]) -> Any:
    import pandas as pd

    return pd.DataFrame(rows)
