"""A finding: what is wrong with data, how much of it, and what to do."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
_EXAMPLES = 10
# What concerns less than this share of the rows hardly moves a result.
FEW = 0.01


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    Args:
        name: what other programs know it by, as broken_images.
        severity: error: training fails or figures are false; warning: it costs quality; note: good to know.
        count: how many images or captions.
        share: of all of them, in [0, 1].
        message: what they are, as "captions that are file names".
        advice: what to do about it.
        examples: up to ten of them.

    Example:
        >>> Finding("empty_captions", "error", 1, 0.5, "empty captions", "drop them").severity
        'error'
    """

    name: str
    severity: Severity
    count: int
    share: float
    message: str
    advice: str
    examples: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As it stands in the JSON."""
        return {
            "name": self.name,
            "severity": self.severity,
            "count": self.count,
            "share": self.share,
            "message": self.message,
            "advice": self.advice,
            "examples": list(self.examples),
        }


def some(places: Sequence[int], shown: Callable[[int], str]) -> tuple[str, ...]:
    """The first ten of them, as they are shown."""
    return tuple(shown(int(place)) for place in places[:_EXAMPLES])


def counted(count: int, noun: str) -> str:
    """A number with its noun.

    Example:
        >>> counted(1, "image"), counted(2000, "image")
        ('1 image', '2,000 images')
    """
    return f"{count:,} {noun}" + "s" * (count != 1)


def by_severity(findings: Sequence[Finding | None]) -> list[Finding]:
    """Those that there are, errors first."""
    return sorted((one for one in findings if one is not None), key=lambda one: SEVERITIES.index(one.severity))


def finding_of(
    name: str,
    severity: Severity | None,
    places: NDArray[np.int64],
    total: int,
    message: str,
    shown: Callable[[int], str],
    advice: str,
) -> Finding | None:
    """What these positions have in common; None where there are none.

    Without a severity it is a warning, or a note where they are few.
    """
    if not len(places):
        return None
    share = len(places) / total
    severity = severity or ("warning" if share >= FEW else "note")
    return Finding(name, severity, len(places), share, message, advice, some(places.tolist(), shown))
