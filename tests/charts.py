"""Replacement for the charts of reports, also in processes that must not import conftest and its cache folder."""

from typing import Any


def not_drawn(series: Any, *labels: Any) -> str:
    """Return the labels of a chart instead of drawing it, which takes half the time of a small run."""
    return f"<svg>{labels}</svg>"
