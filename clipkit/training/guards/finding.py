"""A finding of a run: what seems to be wrong, since when, and what to do."""

from dataclasses import asdict, dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Finding:
    """One thing about a run that its owner should know.

    Args:
        name: what other programs know it by, as `loss_at_chance`.
        level: error: the run stopped or cannot learn; warning: the result suffers; note: good to know.
        message: what is the case, with the figures.
        advice: what to do about it.
        step: at which it was seen; None: before the first one, or of the run as a whole.

    Example:
        >>> Finding("data_wait", "warning", "34 % of the time goes into waiting", "raise data.workers", 60).line()
        'warning at step 60: 34 % of the time goes into waiting; raise data.workers'
    """

    name: str
    level: Literal["error", "warning", "note"]
    message: str
    advice: str
    step: int | None = None

    def line(self) -> str:
        """For the terminal and the log."""
        where = "" if self.step is None else f" at step {self.step}"
        return f"{self.level}{where}: {self.message}; {self.advice}"

    def to_dict(self) -> dict[str, Any]:
        """As it stands in results.json."""
        return asdict(self)
