"""Plots as SVG, by matplotlib."""

import io
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

# Readable on a light and on a dark page.
_INK = "#808890"
_HEIGHT = 3.2
_LINES = ("#3b7dd8", "#d8743b", "#3ba272", "#a24fb5")
CATEGORIES = (
    "#3b7dd8", "#d8743b", "#3ba272", "#a24fb5", "#c9a227", "#d84a6f", "#2aa6b8", "#8a6d4b", "#7a86d6", "#6d9b34",
)  # fmt: skip


def line_chart(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    x_label: str,
    y_label: str,
    reference: tuple[str, float] | None = None,
) -> str:
    """An SVG of lines by name, each (x, y), with an optional dotted level, as chance."""
    with _axes(x_label, y_label) as (axes, drawn):
        for (name, (x, y)), colour in zip(series.items(), _LINES, strict=False):
            axes.plot(x, y, label=name, color=colour, linewidth=1.6, marker="o" if len(x) < 40 else None, markersize=3)
        if reference is not None and math.isfinite(reference[1]):
            axes.axhline(reference[1], color=_INK, linewidth=1, linestyle=":", label=reference[0])
        axes.grid(alpha=0.25)
        if len(series) > 1 or reference is not None:
            axes.legend(frameon=False, labelcolor=_INK)
    return drawn[0]


def bar_chart(bars: Mapping[str, float], x_label: str, reference: tuple[str, float] | None = None) -> str:
    """Horizontal bars by name, the first on top, with an optional dotted level."""
    names = list(bars)
    with _axes(x_label, "", height=0.8 + 0.3 * len(names)) as (axes, drawn):
        axes.barh(range(len(names)), list(bars.values()), color=_LINES[0], height=0.7)
        axes.set_yticks(range(len(names)), [_short(name, 44) for name in names], fontsize=8)
        axes.invert_yaxis()
        if reference is not None:
            axes.axvline(reference[1], color=_INK, linewidth=1, linestyle=":", label=reference[0])
            axes.legend(frameon=False, labelcolor=_INK, fontsize=8, loc="lower right")
        axes.grid(alpha=0.25, axis="x")
    return drawn[0]


def reliability_chart(confidence: Sequence[float], right: Sequence[bool], bins: int = 15) -> str:
    """Share of right answers beside the confidence in them, in bins of equal width; their counts as bars below."""
    counts, sums, hits = [0] * bins, [0.0] * bins, [0] * bins
    for sure, hit in zip(confidence, right, strict=True):
        place = min(bins - 1, max(0, math.ceil(sure * bins) - 1))
        counts[place] += 1
        sums[place] += sure
        hits[place] += hit
    filled = [place for place in range(bins) if counts[place]]
    with _axes("confidence", "share of right answers") as (axes, drawn):
        largest = max(counts)
        middles = [(place + 0.5) / bins for place in filled]
        shares = [counts[place] / largest / 4 for place in filled]
        axes.bar(middles, shares, width=0.9 / bins, color=_INK, alpha=0.3, label="pictures (relative)")
        axes.plot([0, 1], [0, 1], color=_INK, linewidth=1, linestyle=":", label="as sure as right")
        means = [sums[place] / counts[place] for place in filled]
        truths = [hits[place] / counts[place] for place in filled]
        axes.plot(means, truths, color=_LINES[0], linewidth=1.6, marker="o", markersize=4, label="this model")
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1)
        axes.grid(alpha=0.25)
        axes.legend(frameon=False, labelcolor=_INK, fontsize=8, loc="upper left")
    return drawn[0]


def confusion_chart(shares: Sequence[Sequence[float]], names: Sequence[str]) -> str:
    """A square of colours: how often the row's class was taken for the column's, as shares of the row."""
    count = len(names)
    size = min(9.0, 2.2 + 0.3 * count)
    with _axes("taken for", "is", width=size, height=size) as (axes, drawn):
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        labels = [_short(name, 18) for name in names]
        axes.set_xticks(range(count), labels, rotation=90, fontsize=7)
        axes.set_yticks(range(count), labels, fontsize=7)
        if count <= 12:
            for row, own in enumerate(shares):
                for column, share in enumerate(own):
                    if share >= 0.005:
                        colour = "white" if share > 0.5 else "#1d2330"
                        axes.text(column, row, f"{share:.0%}", ha="center", va="center", fontsize=7, color=colour)
    return drawn[0]


@contextmanager
def _axes(x_label: str, y_label: str, width: float = 6.4, height: float = _HEIGHT) -> Iterator[tuple[Any, list[str]]]:
    """Axes to draw on, and a list in which their SVG is afterwards."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    # Measuring what labels need is half of drawing: charts of one size have margins that fit them.
    usual = height == _HEIGHT
    figure = Figure(figsize=(width, height), layout=None if usual else "constrained")
    axes = figure.add_axes((0.11, 0.15, 0.87, 0.82)) if usual else figure.add_subplot()
    drawn: list[str] = []
    yield axes, drawn
    axes.set_xlabel(x_label, color=_INK)
    axes.set_ylabel(y_label, color=_INK)
    axes.tick_params(colors=_INK)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(_INK)
    written = io.StringIO()
    # The same results give the same page; words are words, which a reader can search and a screen reader can read.
    with rc_context({"svg.hashsalt": f"{x_label}{y_label}", "svg.fonttype": "none"}):
        figure.savefig(written, format="svg", transparent=True, metadata={"Date": None})
    svg = written.getvalue()
    drawn.append(svg[svg.index("<svg") :])


def _short(name: str, most: int) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"
