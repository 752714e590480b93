"""Plots of evaluation results with matplotlib."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from clipkit.errors import DataError
from clipkit.tasks import readable, shown_metrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BINS = 10
_MOST_CLASSES = 40  # largest number of classes whose names fit beside the confusion matrix


def plot(result: Mapping[str, Any], kind: str | None = None, ax: "Axes | None" = None) -> "Axes":
    """Draw a plot of a result, and return its axes. See `Result.plot` for the arguments.

    Raises:
        DataError: the result lacks the data for this kind of plot.
    """
    queries = result.get("queries") or {}
    drawn = {name: draw for name, (draw, needed) in KINDS.items() if all(column in queries for column in needed)}
    kind = kind or next(iter(drawn))
    if kind not in drawn:
        raise DataError(f"{kind!r} is not a plot of this result; use one of {', '.join(drawn)}")
    if ax is None:
        from matplotlib import pyplot

        _, ax = pyplot.subplots(figsize=(6, 4.5), layout="constrained")
    drawn[kind](result, ax)
    return ax


def _recall(result: Mapping[str, Any], ax: "Axes") -> None:
    queries = result["queries"]
    for kind, label, among in (
        ("image_rank", "text → image", len(queries["text_rank"])),
        ("text_rank", "image → text", len(queries["image_rank"])),
    ):
        ranks = np.asarray(queries[kind])
        ranks = ranks[ranks > 0]
        k = np.unique(np.geomspace(1, among, 200).round().astype(int))
        ax.plot(k, np.searchsorted(np.sort(ranks), k, side="right") / len(ranks), label=label)
    ax.set(xscale="log", xlabel="k", ylabel="recall@k", ylim=(0, 1.02), title=result["data"].get("name", ""))
    ax.legend()


def _metrics(result: Mapping[str, Any], ax: "Axes") -> None:
    shares = [
        name
        for name in shown_metrics(result["metrics"])
        if (value := result["metrics"][name]["value"]) is not None and not name.endswith("_rank") and 0 <= value <= 1
    ]
    for place, name in enumerate(reversed(shares)):
        figure = result["metrics"][name]
        ax.plot(figure["value"], place, "o", color="C0")
        if figure["low"] is not None:
            ax.hlines(place, figure["low"], figure["high"], color="C0")
        if figure.get("chance") is not None:
            ax.plot(figure["chance"], place, "|", color="gray", markersize=12)
    ax.set(xlim=(0, 1), xlabel="value with 95 % interval; |: chance", title=result["data"].get("name", ""))
    ax.set_yticks(range(len(shares)), [readable(name) for name in reversed(shares)])


def _confusion(result: Mapping[str, Any], ax: "Axes") -> None:
    titles = [row["class"] for row in result["classes"]]
    table = np.zeros((len(titles), len(titles)))
    np.add.at(table, (result["queries"]["label"], result["queries"]["predicted"]), 1)
    shares = table / np.maximum(table.sum(axis=1, keepdims=True), 1)
    image = ax.imshow(shares, vmin=0, vmax=1, cmap="Blues")
    ax.figure.colorbar(image, ax=ax, label="share of the class")
    ax.set(xlabel="predicted", ylabel="class")
    if len(titles) <= _MOST_CLASSES:
        ax.set_xticks(range(len(titles)), titles, rotation=90)
        ax.set_yticks(range(len(titles)), titles)


def _calibration(result: Mapping[str, Any], ax: "Axes") -> None:
    queries = result["queries"]
    confidence = np.asarray(queries["confidence"])
    right = np.asarray(queries["predicted"]) == np.asarray(queries["label"])
    bins = np.minimum((confidence * _BINS).astype(int), _BINS - 1)
    filled = np.flatnonzero(np.bincount(bins, minlength=_BINS))
    ax.plot([0, 1], [0, 1], color="gray", linestyle=":")
    ax.plot([confidence[bins == b].mean() for b in filled], [right[bins == b].mean() for b in filled], "o-")
    ax.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence", ylabel="accuracy", title=result["data"].get("name", ""))


KINDS: dict[str, tuple[Callable[[Mapping[str, Any], "Axes"], None], tuple[str, ...]]] = {
    "recall": (_recall, ("image_rank", "text_rank")),
    "metrics": (_metrics, ()),
    "confusion": (_confusion, ("label", "predicted")),
    "calibration": (_calibration, ("confidence", "label", "predicted")),
}
"""Kinds of plots, the default first, each with its function and the `queries` of a result that it needs."""
