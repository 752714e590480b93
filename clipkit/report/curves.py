"""Plots as SVG, by matplotlib."""

import html
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

# Stands for the page's own grey, which differs on a light and on a dark one.
_INK = "#808890"
_WORDS = "#808891"
_SIZE = (4.8, 2.9)  # inches: on a phone its words are as large as the page's
_LINES = ("#3b7dd8", "#d8743b", "#3ba272", "#a24fb5")
CATEGORIES = (
    "#3b7dd8", "#d8743b", "#3ba272", "#a24fb5", "#c9a227", "#d84a6f", "#2aa6b8", "#8a6d4b", "#7a86d6", "#6d9b34",
)  # fmt: skip


@dataclass
class _Drawing:
    axes: Any
    said: str = ""
    """What the chart shows, for who cannot see it."""
    svg: str = ""


def line_chart(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    x_label: str,
    y_label: str,
    reference: tuple[str, float] | None = None,
) -> str:
    """An SVG of lines by name, each (x, y), with an optional dotted level, as chance."""
    with _drawing(x_label, y_label) as drawing:
        axes = drawing.axes
        for (name, (x, y)), colour in zip(series.items(), _LINES, strict=False):
            axes.plot(x, y, label=name, color=colour, linewidth=1.6, marker="o" if len(x) < 40 else None, markersize=3)
        if reference is not None and math.isfinite(reference[1]):
            axes.axhline(reference[1], color=_INK, linewidth=1, linestyle=":", label=reference[0])
        axes.grid(alpha=0.25)
        if len(series) > 1 or reference is not None:
            _legend(axes)
        axes.ticklabel_format(axis="y", scilimits=(-3, 5))
        axes.yaxis.get_offset_text().set_color(_WORDS)
        courses = [f"{name} from {y[0]:.4g} to {y[-1]:.4g}" for name, (_, y) in series.items() if len(y)]
        ends = next(((x[0], x[-1]) for x, _ in series.values() if len(x)), ("–", "–"))
        drawing.said = f"{'; '.join(courses)}, between {x_label} {ends[0]} and {ends[1]}"
    return drawing.svg


def bar_chart(bars: Mapping[str, float], x_label: str, reference: tuple[str, float] | None = None) -> str:
    """Horizontal bars in percent, each below its name, the first on top, with an optional dotted level."""
    values = {name: 100 * value for name, value in bars.items()}
    level = 0.0 if reference is None else 100 * reference[1]
    low, high = min(0.0, *values.values()), max(0.0, level, *values.values())
    width = high - low or 1.0
    with _drawing(x_label, "", (_SIZE[0], 0.9 + 0.42 * len(bars))) as drawing:
        axes = drawing.axes
        axes.barh(range(len(values)), list(values.values()), color=_LINES[0], height=0.3)
        _name_rows(axes, list(values), low)
        for place, value in enumerate(values.values()):
            axes.text(max(0.0, value) + 0.01 * width, place, _signed(value), fontsize=9, color=_WORDS, va="center")
        if reference is not None:
            axes.axvline(level, color=_INK, linewidth=1, linestyle=":", label=reference[0])
            axes.legend(
                frameon=False, labelcolor=_WORDS, fontsize=9, loc="lower right", bbox_to_anchor=(1, 1), borderpad=0
            )
        axes.set_xlim(low - (0.02 * width if low < 0 else 0), high + 0.14 * width)
        drawing.said = "; ".join(f"{name}: {value:.1f}" for name, value in values.items())
    return drawing.svg


def interval_chart(rows: Mapping[str, tuple[float, float, float]], x_label: str) -> str:
    """For each name a value between the ends of its interval, the first on top, and a line at 0."""
    lows, highs = min(0.0, *(low for _, low, _ in rows.values())), max(0.0, *(high for _, _, high in rows.values()))
    width = highs - lows or 1.0
    with _drawing(x_label, "", (_SIZE[0], 0.7 + 0.42 * len(rows))) as drawing:
        axes = drawing.axes
        axes.axvline(0, color=_INK, linewidth=1)
        for place, (value, low, high) in enumerate(rows.values()):
            colour = _LINES[0] if low > 0 or high < 0 else _INK
            axes.plot([low, high], [place, place], color=colour, linewidth=2.4)
            axes.plot([value], [place], color=colour, marker="o", markersize=6)
        _name_rows(axes, list(rows), lows - 0.05 * width)
        axes.set_xlim(lows - 0.06 * width, highs + 0.06 * width)
        drawing.said = "; ".join(
            f"{name}: {value:+.1f}, between {low:+.1f} and {high:+.1f}" for name, (value, low, high) in rows.items()
        )
    return drawing.svg


def _name_rows(axes: Any, names: Sequence[str], left: float) -> None:
    """Each name above its row: long ones have the whole width."""
    for place, name in enumerate(names):
        said = axes.text(left, place - 0.2, _short(name, 48), fontsize=9, color=_WORDS, va="bottom", parse_math=False)
        said.set_in_layout(False)
    axes.set_yticks([])
    axes.set_ylim(len(names) - 0.6, -0.9)
    axes.grid(alpha=0.25, axis="x")


def reliability_chart(confidence: Sequence[float], right: Sequence[bool], bins: int = 15) -> str:
    """Share of right answers beside the confidence in them, in bins of equal width; their counts as bars below."""
    counts, sums, hits = [0] * bins, [0.0] * bins, [0] * bins
    for sure, hit in zip(confidence, right, strict=True):
        place = min(bins - 1, max(0, math.ceil(sure * bins) - 1))
        counts[place] += 1
        sums[place] += sure
        hits[place] += hit
    filled = [place for place in range(bins) if counts[place]]
    with _drawing("confidence", "share of right answers", (_SIZE[0], 4.0)) as drawing:
        axes = drawing.axes
        largest = max(counts)
        middles = [(place + 0.5) / bins for place in filled]
        shares = [counts[place] / largest / 4 for place in filled]
        axes.bar(middles, shares, width=0.9 / bins, color=_INK, alpha=0.3, label="images (relative)")
        axes.plot([0, 1], [0, 1], color=_INK, linewidth=1, linestyle=":", label="as sure as right")
        means = [sums[place] / counts[place] for place in filled]
        truths = [hits[place] / counts[place] for place in filled]
        axes.plot(means, truths, color=_LINES[0], linewidth=1.6, marker="o", markersize=4, label="this model")
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1.02)
        axes.grid(alpha=0.25)
        _legend(axes, "upper left")
        drawing.said = "; ".join(
            f"{mean:.0%} sure: {truth:.0%} right of {counts[place]}"
            for mean, truth, place in zip(means, truths, filled, strict=True)
        )
    return drawing.svg


def confusion_chart(shares: Sequence[Sequence[float]], names: Sequence[str]) -> str:
    """A square of colours: how often the row's class was taken for the column's, as shares of the row."""
    from matplotlib.colors import to_rgb

    count = len(names)
    size = min(9.0, 2.0 + 0.42 * count) if count > 6 else 4.8
    with _drawing("taken for", "is", (size, size)) as drawing:
        axes = drawing.axes
        # The page shows through where there is nothing; the root makes rare mistakes visible.
        cells = [[(*to_rgb(_LINES[0]), min(1.0, share) ** 0.7) for share in own] for own in shares]
        axes.imshow(cells)
        labels = [_short(name, 18) for name in names]
        axes.set_xticks(range(count), labels, rotation=90, fontsize=9, parse_math=False)
        axes.set_yticks(range(count), labels, fontsize=9, parse_math=False)
        if count <= 12:
            for row, own in enumerate(shares):
                for column, share in enumerate(own):
                    if share >= 0.005:
                        colour = "white" if share > 0.5 else _WORDS
                        axes.text(column, row, f"{100 * share:.0f}", ha="center", va="center", color=colour, fontsize=9)
        drawing.said = "share that is right: " + "; ".join(
            f"{name} {own[place]:.0%}" for place, (name, own) in enumerate(zip(names, shares, strict=True))
        )
    return drawing.svg


def _legend(axes: Any, where: str = "best") -> None:
    axes.legend(frameon=False, labelcolor=_WORDS, fontsize=9, loc=where)


@contextmanager
def _drawing(x_label: str, y_label: str, size: tuple[float, float] = _SIZE) -> Iterator[_Drawing]:
    """Axes to draw on; afterwards their SVG."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    # Measuring what labels need is half of drawing: charts of one size have margins that fit them.
    usual = size == _SIZE
    figure = Figure(figsize=size, layout=None if usual else "constrained")
    drawing = _Drawing(figure.add_axes((0.15, 0.17, 0.83, 0.75)) if usual else figure.add_subplot())
    yield drawing
    axes = drawing.axes
    axes.set_xlabel(x_label, color=_WORDS)
    axes.set_ylabel(y_label, color=_WORDS)
    axes.tick_params(color=_INK, labelcolor=_WORDS)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(_INK)
    written = io.StringIO()
    # The same results give the same page; words are words, which a reader can search and a screen reader can read.
    with rc_context({"svg.hashsalt": f"{x_label}{y_label}", "svg.fonttype": "none"}):
        figure.savefig(written, format="svg", transparent=True, metadata={"Date": None})
    svg = written.getvalue()
    svg = svg[svg.index("<svg") :].replace(_INK, "var(--axis)").replace(_WORDS, "var(--soft)")
    drawing.svg = svg.replace("<svg", f'<svg role="img" aria-label="{html.escape(drawing.said)}"', 1)


def _signed(value: float) -> str:
    return f"{value:.1f}".replace("-", "\N{MINUS SIGN}")


def _short(name: str, most: int) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"
