"""Fixtures for tests with many runs."""

from typing import Any

import pytest


def not_drawn(series: Any, *labels: Any) -> str:
    """Return the labels of a chart instead of drawing it, which takes half the time of such a small run."""
    return f"<svg>{labels}</svg>"


@pytest.fixture(autouse=True)
def _charts_are_not_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clipkit.report.run.line_chart", not_drawn)
