"""Findings: what is wrong with data or with a run, and what to do about it."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Generic, Literal, TypeVar

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
FEW = 0.01
"""Share of the rows below which a finding hardly changes a result."""
_MOST_EXAMPLES = 10
T = TypeVar("T")


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    Args:
        name: stable identifier, e.g. `broken_images`.
        severity: error: training fails or figures are wrong; warning: the result gets worse; note: good to know.
        message: the problem, with its figures.
        advice: what to do about it.
        step: training step at which it was seen; None: before the first step, or about the data or run as a whole.
        count: number of images or captions it applies to; None: not counted.
        share: `count` as a share of all of them, in [0, 1].
        examples: up to ten of them.

    Example:
        >>> Finding("data_wait", "warning", "34 % of the time is spent waiting", "raise data.workers", 60).line()
        'warning at step 60: 34 % of the time is spent waiting; raise data.workers'
    """

    name: str
    severity: Severity
    message: str
    advice: str
    step: int | None = None
    count: int | None = None
    share: float | None = None
    examples: tuple[str, ...] = ()

    def line(self) -> str:
        """Return the finding as one line for the terminal and the log."""
        step = "" if self.step is None else f" at step {self.step}"
        return f"{self.severity}{step}: {self.message}; {self.advice}"

    def to_dict(self) -> dict[str, Any]:
        """Return the finding as JSON values."""
        return asdict(self) | {"examples": list(self.examples)}


@dataclass(frozen=True)
class Rule(Generic[T]):
    """A row of a table of rules.

    Args:
        name: of its finding.
        find: what is examined -> a finding, or None.
        summary: when it reports something, as docs/guards.md lists it.
    """

    name: str
    find: Callable[[T], Finding | None]
    summary: str


def apply(rules: Iterable[Rule[T]], examined: T) -> list[Finding]:
    """Return the findings of all rules that report something."""
    return [finding for rule in rules if (finding := rule.find(examined)) is not None]


def most_severe_first(findings: Iterable[Finding]) -> list[Finding]:
    """Sort by severity, then by step; findings of equal rank keep their order."""
    return sorted(findings, key=lambda finding: (SEVERITIES.index(finding.severity), finding.step or 0))


def finding_about(
    rows: Sequence[int],
    total: int,
    *,
    name: str,
    what: str,
    advice: str,
    describe: Callable[[int], str],
    severity: Severity | None = None,
) -> Finding | None:
    """Return a finding about some of `total` rows, or None if there are no such rows.

    Args:
        rows: positions of the images or captions.
        total: number of rows that were examined.
        name: identifier of the finding.
        what: what the rows are, as a plural: "missing images".
        advice: what to do about them.
        describe: position -> text that identifies the row.
        severity: None: warning if they are 1 % or more, otherwise note.

    Example:
        >>> finding_about([3], 8, name="empty", what="empty captions", advice="drop them", describe=str).message
        'empty captions: 1 of 8 (12.5 %)'
    """
    if not len(rows):
        return None
    share = len(rows) / total
    return Finding(
        name,
        severity or ("warning" if share >= FEW else "note"),
        f"{what}: {len(rows):,} of {total:,} ({percent(share)})",
        advice,
        count=len(rows),
        share=share,
        examples=tuple(describe(int(row)) for row in rows[:_MOST_EXAMPLES]),
    )


def percent(share: float) -> str:
    """Format a share for people.

    Example:
        >>> percent(0.125), percent(0.00001)
        ('12.5 %', '< 0.01 %')
    """
    return "< 0.01 %" if 0 < share < 0.0001 else f"{100 * share:.3g} %"


def counted(count: int, noun: str) -> str:
    """Format a number with its noun.

    Example:
        >>> counted(1, "image"), counted(2000, "image")
        ('1 image', '2,000 images')
    """
    return f"{count:,} {noun}" + "s" * (count != 1)
