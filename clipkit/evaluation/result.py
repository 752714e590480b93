"""What an evaluation gives, as written to a results JSON."""

import platform
from importlib.metadata import version
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from clipkit.metrics import interval


class Figure(TypedDict):
    """A metric: its value in [0, 1], its 95 % interval, and what chance would give. Undefined figures are None."""

    value: float | None
    low: float | None
    high: float | None
    chance: float | None


class Result(TypedDict):
    """An evaluation with everything needed to tell what was measured."""

    task: str
    model: str
    data: dict[str, Any]
    metrics: dict[str, Figure]
    settings: dict[str, Any]
    versions: dict[str, str]
    seconds: float
    examples: list[dict[str, Any]]
    """A few queries with their top answers, for the report."""


def figure(value: float | None, draws: NDArray[np.float64] | None, chance: float | None) -> Figure:
    """A metric with the interval of its bootstrap draws."""
    low, high = interval(draws) if draws is not None and value is not None else (None, None)
    return {"value": value, "low": low, "high": high, "chance": chance}


def versions() -> dict[str, str]:
    """The versions that can change a figure."""
    packages = {name: version(name) for name in ("torch", "transformers", "timm", "pillow")}
    return {"clipkit": version("clipkit-torch"), "python": platform.python_version()} | packages


def chosen_examples(count: int, of: int) -> list[int]:
    """Evenly spaced positions: examples that nobody picked for how they look."""
    return sorted({round(position) for position in np.linspace(0, of - 1, min(count, of))})
