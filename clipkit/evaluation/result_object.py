"""Result of an evaluation as an object: a dict with attributes, a table to read, data frames and plots."""

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
        """Name, counts and hash of the data."""
        return dict(self["data"])

    @property
    def metrics(self) -> dict[str, Figure]:
        """Metrics by name: value, low and high end of the 95 % interval, chance."""
        return dict(self["metrics"])

    @property
    def settings(self) -> dict[str, Any]:
        """Settings that determine the metrics, in addition to the model and the data."""
        return dict(self["settings"])

    @property
    def findings(self) -> list[Any]:
        """Findings of a run, or lines about the data of an evaluation."""
        return list(self.get("findings", self["data"].get("findings", ())))

    def value(self, metric: str) -> float | None:
        """Return the value of a metric.

        Raises:
            DataError: the result has no such metric.
        """
        if metric not in self["metrics"]:
            raise DataError(f"{metric!r} is not a metric of this result; use one of {', '.join(self['metrics'])}")
        value: float | None = self["metrics"][metric]["value"]
        return value

    def to_frame(self, part: str = "metrics") -> Any:
        """Return a pandas DataFrame.

        Args:
            part: "metrics": one row per metric; "predictions": one row per query, with its rank, or with its class and
                the predicted class; "classes" or "prompts": one row per class or prompt, if the result has them.

        Raises:
            DataError: the result has no such part.
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
        """Draw the result, and return the axes.

        Args:
            kind: "metrics": values with intervals and chance; "recall" (retrieval): recall at every rank; "confusion"
                and "calibration" (zero-shot classification). None: "recall" for retrieval, otherwise "metrics".
            ax: matplotlib axes to draw in; None: new ones.

        Raises:
            DataError: the result has no data for this kind.
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
        """Return the table for a notebook."""
        head, *rows = [[html.escape(cell) for cell in row] for row in self.table()]
        body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
        header = "".join(f"<th>{cell}</th>" for cell in head)
        caption = f"<caption>{html.escape(self._title())}</caption>"
        return f"<table>{caption}<thead><tr>{header}</tr></thead><tbody>{body}</tbody></table>"

    def _title(self) -> str:
        data = named_data(self.get("data", {}))
        return f"{self.get('task')} of {self.get('model')}" + (f" on {data}" if data else "")

    def table(self) -> list[list[str]]:
        """Return the cells of the table of metrics, the header first."""
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
