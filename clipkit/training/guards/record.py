"""Reading and writing of findings.json.

The file contains the findings of a run, and the facts that the rules need in addition to the logs.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path

from clipkit.files import write_whole
from clipkit.findings import Finding
from clipkit.parsing import parse_json
from clipkit.run_files import RunFiles
from clipkit.training.guards.logs import Facts


def write_findings(folder: Path, facts: Facts, findings: Sequence[Finding]) -> None:
    """Write findings.json into a run folder."""
    content = {"facts": asdict(facts), "findings": [finding.to_dict() for finding in findings]}
    write_whole(RunFiles(folder).findings, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def read_findings(folder: Path) -> tuple[Facts, list[Finding]] | None:
    """Read findings.json of a run folder; return None if it is missing or unreadable."""
    try:
        content = parse_json(RunFiles(folder).findings.read_text(encoding="utf-8"))
        known = {field.name for field in fields(Facts)}
        values = {name: value for name, value in content["facts"].items() if name in known}
        facts = Facts(**values | {"sides": tuple(values["sides"])})
        # Earlier versions wrote `level` instead of `severity`.
        rows = [{"severity": row.pop("level", None), **row} for row in content["findings"]]
        return facts, [Finding(**row | {"examples": tuple(row.get("examples", ()))}) for row in rows]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
