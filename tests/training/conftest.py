"""For tests that run recipes by the dozen."""

from typing import Any

import pytest


def not_drawn(series: Any, *said: Any) -> str:
    """In the place of a chart, half of what so small a run takes: what it would say. Elsewhere they are drawn."""
    return f"<svg>{said}</svg>"


@pytest.fixture(autouse=True)
def _charts_are_not_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clipkit.report.run.line_chart", not_drawn)
