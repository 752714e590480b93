"""Findings: problems in data or in a run, each with advice."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Generic, Literal, TypeVar

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
FEW = 0.01
"""If a problem affects a smaller share of the rows, it has little effect on results."""
_MOST_EXAMPLES = 10
T = TypeVar("T")


@dataclass(frozen=True)
class Finding:
    """One problem in data or in a run, with advice.

    Args:
        name: stable identifier, e.g. `broken_images`.
        severity: "error" if training fails or metrics are wrong, "warning" if the result gets worse, or "note".
        message: description of the problem, with numbers.
        advice: action that solves the problem.
        step: training step at which the problem was detected; None: not at a particular step.
        count: number of affected images or captions; None: not counted.
        share: `count` divided by the number of all images or captions, in [0, 1].
        examples: up to ten affected images or captions.

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
        """Return the finding as a dict that JSON can represent."""
        return asdict(self) | {"examples": list(self.examples)}


@dataclass(frozen=True)
class Rule(Generic[T]):
    """Rule that checks an object, e.g. a run, and can report a finding.

    Args:
        name: name of the finding.
        find: function that returns a finding about the object, or None if there is no problem.
        summary: condition under which the rule reports a finding, as listed in docs/guards.md.
    """

    name: str
    find: Callable[[T], Finding | None]
    summary: str


def apply(rules: Iterable[Rule[T]], examined: T) -> list[Finding]:
    """Apply all rules to an object, and return the findings."""
    return [finding for rule in rules if (finding := rule.find(examined)) is not None]


def most_severe_first(findings: Iterable[Finding]) -> list[Finding]:
    """Sort findings by severity, then by step; ties keep their order."""
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
    """Return a finding about some of `total` rows, or None if no row is affected.

    Args:
        rows: positions of the affected images or captions.
        total: number of rows that were examined.
        name: stable identifier of the finding.
        what: plural noun for the affected rows, e.g. "missing images".
        advice: action that solves the problem.
        describe: function that returns a text for a position, e.g. the path of the image.
        severity: severity of the finding; None: a warning if at least 1 % of the rows are affected, otherwise a note.

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
    """Format a share as a percentage.

    Example:
        >>> percent(0.125), percent(0.00001)
        ('12.5 %', '< 0.01 %')
    """
    return "< 0.01 %" if 0 < share < 0.0001 else f"{100 * share:.3g} %"


def duration(seconds: float) -> str:
    """Format a number of seconds as seconds, minutes or hours.

    Example:
        >>> duration(75), duration(600), duration(7200)
        ('75 s', '10 minutes', '2.0 hours')
    """
    if seconds < 90:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"


def counted(count: int, noun: str) -> str:
    """Format a number with its noun, in the plural if needed.

    Example:
        >>> counted(1, "image"), counted(2000, "image"), counted(2, "class"), counted(2, "query")
        ('1 image', '2,000 images', '2 classes', '2 queries')
    """
    plural = f"{noun}es" if noun.endswith("s") else f"{noun[:-1]}ies" if noun.endswith("ry") else f"{noun}s"
    return f"{count:,} {noun if count == 1 else plural}"
