"""docs/guards.md lists every rule of every table."""

import re
from pathlib import Path

from clipkit.data.checks.rules import RULES
from clipkit.training.guards.before import GUARDS
from clipkit.training.guards.doctor import FOLDER_RULES
from clipkit.training.guards.pretrained import SETTINGS_GUARDS
from clipkit.training.guards.watch import EVALUATION_RULES, STEP_RULES

PAGE = (Path(__file__).parents[3] / "docs" / "guards.md").read_text(encoding="utf-8")
SCOPES = {"quick": "all rows", "sampled": "a sample", "full": "–"}


def rows(section: str) -> list[tuple[str, ...]]:
    text = PAGE.partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    return [tuple(line.strip("| ").split(" | ")) for line in re.findall(r"^\| `.*$", text, re.MULTILINE)]


def test_page_lists_the_tables() -> None:
    assert rows("Data") == [(f"`{rule.name}`", rule.summary, SCOPES[rule.scope]) for rule in RULES]
    assert rows("Before the first step") == [(f"`{rule.name}`", rule.summary) for rule in GUARDS + SETTINGS_GUARDS]
    assert rows("Run folders") == [(f"`{rule.name}`", rule.summary) for rule in FOLDER_RULES]


def test_page_lists_the_rules_during_training() -> None:
    *during, last = rows("During training")
    assert during == [(f"`{rule.name}`", rule.summary) for rule in STEP_RULES + EVALUATION_RULES]
    assert last[0] == "`not_finite`"  # the loop itself reports it


def test_names_are_those_of_the_functions() -> None:
    for rule in (*RULES, *GUARDS, *SETTINGS_GUARDS, *STEP_RULES, *EVALUATION_RULES, *FOLDER_RULES):
        assert rule.find.__name__ == rule.name
