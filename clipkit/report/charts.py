"""Charts as SVG, drawn by matplotlib."""

import html
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import numpy as np

from clipkit.tasks import shortened

# Placeholders for CSS variables of the page, which are different grays in light and dark mode.
_AXIS = "#808890"
_TEXT = "#808891"
_SIZE = (4.8, 2.9)  # inches; text in a chart of this size is as large as other text of the page on a phone
_LINES = ("#3b7dd8", "#d8743b", "#3ba272", "#a24fb5")
CATEGORIES = (
    "#3b7dd8", "#d8743b", "#3ba272", "#a24fb5", "#c9a227", "#d84a6f", "#2aa6b8", "#8a6d4b", "#7a86d6", "#6d9b34",
)  # fmt: skip


@dataclass
class _Drawing:
    axes: Any
    description: str = ""
    """Text that a screen reader reads instead of the chart."""
    svg: str = ""


def line_chart(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    x_label: str,
    y_label: str,
    reference: tuple[str, float] | None = None,
) -> str:
    """Draw series as lines, and an optional dotted reference line, e.g. the chance level. Return the SVG.

    `series` maps the label of a line to its x values and y values; `reference` is a name and a y value.
    """
    with _drawing(x_label, y_label) as drawing:
        axes = drawing.axes
        for (name, (x, y)), color in zip(series.items(), cycle(CATEGORIES), strict=False):
            axes.plot(x, y, label=name, color=color, linewidth=1.6, marker="o" if len(x) < 40 else None, markersize=3)
        if reference is not None and math.isfinite(reference[1]):
            axes.axhline(reference[1], color=_TEXT, linewidth=1, linestyle=":", label=reference[0])
        axes.grid(alpha=0.25)
        if len(series) > 1 or reference is not None:
            _legend(axes)
        axes.ticklabel_format(axis="y", scilimits=(-3, 5))
        axes.yaxis.get_offset_text().set_color(_TEXT)
        trends = [f"{name} from {y[0]:.4g} to {y[-1]:.4g}" for name, (_, y) in series.items() if len(y)]
        ends = next(((x[0], x[-1]) for x, _ in series.values() if len(x)), ("–", "–"))
        drawing.description = f"{'; '.join(trends)}, between {x_label} {ends[0]} and {ends[1]}"
    return drawing.svg


def bar_chart(bars: Mapping[str, float], x_label: str, reference: tuple[str, float] | None = None) -> str:
    """Draw horizontal bars, the first bar on top, and an optional dotted reference line. Return the SVG.

    `bars` maps the name of a bar to its value; 0.5 is drawn as 50 (percent). `reference` is a name and a value.
    """
    values = {name: 100 * value for name, value in bars.items()}
    level = 0.0 if reference is None else 100 * reference[1]
    low, high = min(0.0, *values.values()), max(0.0, level, *values.values())
    width = high - low or 1.0
    with _drawing(x_label, "", (_SIZE[0], 0.9 + 0.42 * len(bars))) as drawing:
        axes = drawing.axes
        axes.barh(range(len(values)), list(values.values()), color=_LINES[0], height=0.3)
        _name_rows(axes, list(values), low)
        for row, value in enumerate(values.values()):
            axes.text(max(0.0, value) + 0.01 * width, row, _signed(value), fontsize=9, color=_TEXT, va="center")
        if reference is not None:
            axes.axvline(level, color=_TEXT, linewidth=1, linestyle=":", label=reference[0])
            axes.legend(
                frameon=False, labelcolor=_TEXT, fontsize=9, loc="lower right", bbox_to_anchor=(1, 1), borderpad=0
            )
        axes.set_xlim(low - (0.02 * width if low < 0 else 0), high + 0.14 * width)
        drawing.description = "; ".join(f"{name}: {value:.1f}" for name, value in values.items())
    return drawing.svg


def interval_chart(rows: Mapping[str, tuple[float, float, float]], x_label: str) -> str:
    """Draw values with their intervals, the first on top, and a vertical line at 0. Return the SVG.

    `rows` maps the name of a row to its value and the lower and upper end of the interval.
    """
    lows, highs = min(0.0, *(low for _, low, _ in rows.values())), max(0.0, *(high for _, _, high in rows.values()))
    width = highs - lows or 1.0
    with _drawing(x_label, "", (_SIZE[0], 0.7 + 0.42 * len(rows))) as drawing:
        axes = drawing.axes
        axes.axvline(0, color=_AXIS, linewidth=1)
        for row, (value, low, high) in enumerate(rows.values()):
            color = _LINES[0] if low > 0 or high < 0 else _AXIS
            axes.plot([low, high], [row, row], color=color, linewidth=2.4)
            axes.plot([value], [row], color=color, marker="o", markersize=6)
        _name_rows(axes, list(rows), lows - 0.05 * width)
        axes.set_xlim(lows - 0.06 * width, highs + 0.06 * width)
        drawing.description = "; ".join(
            f"{name}: {value:+.1f}, between {low:+.1f} and {high:+.1f}" for name, (value, low, high) in rows.items()
        )
    return drawing.svg


def _name_rows(axes: Any, names: Sequence[str], left: float) -> None:
    """Write each name above its bar or interval, so that a long name can use the full width of the chart."""
    for row, name in enumerate(names):
        label = axes.text(left, row - 0.2, shortened(name, 48), fontsize=9, color=_TEXT, va="bottom", parse_math=False)
        label.set_in_layout(False)
    axes.set_yticks([])
    axes.set_ylim(len(names) - 0.6, -0.9)
    axes.grid(alpha=0.25, axis="x")


def reliability_chart(confidence: Sequence[float], correct: Sequence[bool], bins: int = 15) -> str:
    """Draw accuracy against confidence in bins of equal width, and the number of images per bin as bars."""
    bin_of = (np.ceil(np.asarray(confidence) * bins).astype(int) - 1).clip(0, bins - 1)
    counts, sums, hits = (np.bincount(bin_of, weights, bins) for weights in (None, confidence, correct))
    filled = np.flatnonzero(counts)
    with _drawing("confidence", "accuracy", (_SIZE[0], 4.0)) as drawing:
        axes = drawing.axes
        heights = counts[filled] / counts.max() / 4
        label = "number of images (relative)"
        axes.bar((filled + 0.5) / bins, heights, width=0.9 / bins, color=_AXIS, alpha=0.3, label=label)
        axes.plot([0, 1], [0, 1], color=_TEXT, linewidth=1, linestyle=":", label="perfect calibration")
        means, accuracies = (totals[filled] / counts[filled] for totals in (sums, hits))
        axes.plot(means, accuracies, color=_LINES[0], linewidth=1.6, marker="o", markersize=4, label="this model")
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1.02)
        axes.grid(alpha=0.25)
        _legend(axes, "upper left")
        drawing.description = "; ".join(
            f"confidence {mean:.0%}: accuracy {accuracy:.0%} of {count}"
            for mean, accuracy, count in zip(means, accuracies, counts[filled], strict=True)
        )
    return drawing.svg


def confusion_chart(shares: Sequence[Sequence[float]], names: Sequence[str]) -> str:
    """Draw a confusion matrix: true classes as rows, predicted classes as columns; darker cells are more frequent."""
    from matplotlib.colors import to_rgb

    count = len(names)
    size = min(9.0, 2.0 + 0.42 * count) if count > 6 else 4.8
    with _drawing("predicted", "true", (size, size)) as drawing:
        axes = drawing.axes
        # A cell with share 0 is transparent. The exponent 0.7 makes cells with a small share easier to see.
        axes.imshow([[(*to_rgb(_LINES[0]), min(1.0, share) ** 0.7) for share in row] for row in shares])
        labels = [shortened(name, 18) for name in names]
        axes.set_xticks(range(count), labels, rotation=90, fontsize=9, parse_math=False)
        axes.set_yticks(range(count), labels, fontsize=9, parse_math=False)
        if count <= 12:
            for y, row in enumerate(shares):
                for x, share in enumerate(row):
                    if share >= 0.005:
                        color = "white" if share > 0.5 else _TEXT
                        axes.text(x, y, f"{100 * share:.0f}", ha="center", va="center", color=color, fontsize=9)
        drawing.description = "recall: " + "; ".join(
            f"{name} {row[index]:.0%}" for index, (name, row) in enumerate(zip(names, shares, strict=True))
        )
    return drawing.svg


def _legend(axes: Any, location: str = "best") -> None:
    axes.legend(frameon=False, labelcolor=_TEXT, fontsize=9, loc=location)


@contextmanager
def _drawing(x_label: str, y_label: str, size: tuple[float, float] = _SIZE) -> Iterator[_Drawing]:
    """Context manager that yields a drawing with empty axes; its `svg` is the chart after the block."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    # A constrained layout doubles the drawing time; the default size has margins that fit its labels.
    default = size == _SIZE
    figure = Figure(figsize=size, layout=None if default else "constrained")
    drawing = _Drawing(figure.add_axes((0.15, 0.17, 0.83, 0.75)) if default else figure.add_subplot())
    yield drawing
    axes = drawing.axes
    axes.set_xlabel(x_label, color=_TEXT)
    axes.set_ylabel(y_label, color=_TEXT)
    axes.tick_params(color=_AXIS, labelcolor=_TEXT)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(_AXIS)
    buffer = io.StringIO()
    # A fixed salt: the same results give the same page. Text stays text, for search and for screen readers.
    with rc_context({"svg.hashsalt": f"{x_label}{y_label}", "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].replace(_AXIS, "var(--axis)").replace(_TEXT, "var(--soft)")
    drawing.svg = svg.replace("<svg", f'<svg role="img" aria-label="{html.escape(drawing.description)}"', 1)


def _signed(value: float) -> str:
    return f"{value:.1f}".replace("-", "\N{MINUS SIGN}")
