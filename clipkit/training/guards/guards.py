"""A run's guards: findings from before its first step and from its logs, said once and kept in its folder."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from clipkit.files import write_whole
from clipkit.findings import Finding
from clipkit.training.guards.watch import Facts, Watch, replay

FINDINGS_FILE = "findings.json"
_TIMED = 5
"""Steps after which a run tells how long it will take: the first one fetches and compiles."""


class Guards:
    """Looks at what a run logs, on the first process.

    Args:
        folder: the run's.
        say: where a finding is told, a line each.
    """

    def __init__(self, folder: Path, say: Callable[[str], None]) -> None:
        self.file = folder / FINDINGS_FILE
        self.say = say
        self.before: list[Finding] = []
        self.watch: Watch | None = None
        self._seconds: list[float] = []

    @property
    def found(self) -> list[Finding]:
        """All so far."""
        return [*self.before, *(self.watch.found if self.watch is not None else [])]

    def begin(
        self,
        before: Sequence[Finding],
        facts: Facts,
        metrics: Sequence[Mapping[str, Any]] = (),
        speeds: Sequence[Mapping[str, Any]] = (),
        evaluations: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        """What was found before the first step, and, in a run that goes on, the logs so far."""
        self.before = list(before)
        self.watch = Watch(facts)
        list(replay(self.watch, metrics, speeds, evaluations))
        for finding in before:
            self.say(finding.line())
        self._write()

    def step(self, row: Mapping[str, Any], speed: Mapping[str, Any], memory: int) -> None:
        """A logged step."""
        assert self.watch is not None
        self._tell(self.watch.step(row, speed))
        if len(self._seconds) < _TIMED + 1:
            self._seconds.append(speed["step_seconds"] + speed["data_wait_seconds"])
            if len(self._seconds) == _TIMED + 1:
                self._say_how_long(row["step"], memory)

    def evaluation(self, row: Mapping[str, Any]) -> None:
        """A line of evaluations.jsonl."""
        assert self.watch is not None
        self._tell(self.watch.evaluation(row))

    def stopped(self, finding: Finding) -> None:
        """Why a run could not go on."""
        self.before.append(finding)
        self._write()

    def _tell(self, new: Sequence[Finding]) -> None:
        for finding in new:
            self.say(finding.line())
        if new:
            self._write()

    def _say_how_long(self, step: int, memory: int) -> None:
        assert self.watch is not None
        typical = sorted(self._seconds[1:])[_TIMED // 2]
        left = (self.watch.facts.steps - step) * typical
        end = time.strftime("%H:%M" if left < 86400 else "%d %B, %H:%M", time.localtime(time.time() + left))
        self.say(
            f"a step takes {typical:.3g} s and {memory / 1e9:.1f} GB of memory so far; without evaluations the rest "
            f"takes {_duration(left)}, until {end}"
        )

    def _write(self) -> None:
        assert self.watch is not None
        content = {"facts": asdict(self.watch.facts), "findings": [own.to_dict() for own in self.found]}
        write_whole(self.file, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def read_findings(folder: Path) -> tuple[Facts, list[Finding]] | None:
    """What a run's guards left; None where there is nothing that can be read."""
    try:
        content = json.loads((folder / FINDINGS_FILE).read_text(encoding="utf-8"))
        known = {own.name for own in fields(Facts)}
        values = {name: value for name, value in content["facts"].items() if name in known}
        facts = Facts(**values | {"sides": tuple(values["sides"])})
        # Runs of earlier versions have `level` in place of `severity`.
        rows = [{"severity": own.pop("level", None), **own} for own in content["findings"]]
        return facts, [Finding(**own | {"examples": tuple(own.get("examples", ()))}) for own in rows]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} minutes"
    return f"{seconds / 3600:.1f} hours"
