"""For tests that run recipes by the dozen."""

import pytest


@pytest.fixture(autouse=True)
def _charts_are_not_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of what so small a run takes; tests/report and tests/cli draw them. Here stands what they would say."""
    monkeypatch.setattr("clipkit.report.run.line_chart", lambda series, *said: f"<svg>{said}</svg>")
