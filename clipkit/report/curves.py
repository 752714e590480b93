"""Curves as SVG, by matplotlib."""

import io
import math
from collections.abc import Mapping, Sequence

# Readable on a light and on a dark page.
_INK = "#808890"
_LINES = ("#3b7dd8", "#d8743b", "#3ba272", "#a24fb5")


def line_chart(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    x_label: str,
    y_label: str,
    reference: tuple[str, float] | None = None,
) -> str:
    """An SVG of lines by name, each (x, y), with an optional dotted level, as chance."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.2), layout="constrained")
    axes = figure.add_subplot()
    for (name, (x, y)), colour in zip(series.items(), _LINES, strict=False):
        axes.plot(x, y, label=name, color=colour, linewidth=1.6, marker="o" if len(x) < 40 else None, markersize=3)
    if reference is not None and math.isfinite(reference[1]):
        axes.axhline(reference[1], color=_INK, linewidth=1, linestyle=":", label=reference[0])
    axes.set_xlabel(x_label, color=_INK)
    axes.set_ylabel(y_label, color=_INK)
    axes.tick_params(colors=_INK)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(_INK)
    axes.grid(alpha=0.25)
    if len(series) > 1 or reference is not None:
        axes.legend(frameon=False, labelcolor=_INK)
    drawn = io.StringIO()
    with rc_context({"svg.hashsalt": y_label}):  # the same results give the same page
        figure.savefig(drawn, format="svg", transparent=True, metadata={"Date": None})
    svg = drawn.getvalue()
    return svg[svg.index("<svg") :]
