"""What losses and objectives there are, by their files, unimported: for --help, the recipe and the documentation.

python -m clipkit.catalogue > docs/losses.md
"""

import ast
import inspect
import textwrap
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_FILES = Path(__file__).parent / "losses"
_OBJECTIVES = Path(__file__).parent / "training" / "objectives"
_FIELDS = ("formula", "positives", "needs", "memory", "chance", "source", "take it")
# What a loss is given by the step, not by the recipe.
_GIVEN = ("image_ids", "caption_ids", "rows")


@dataclass(frozen=True)
class Entry:
    """A loss, as its docstring states it."""

    name: str
    summary: str
    fields: dict[str, str]
    options: tuple[str, ...]
    """Keys of the recipe's loss section that it heeds."""
    explanation: str
    """The docstring up to its arguments, without the part "In short"."""


@cache
def losses() -> dict[str, Entry]:
    """Every file of `clipkit/losses` with a function of its name whose docstring has a part "In short"."""
    found = {}
    for file in sorted(_FILES.glob("*.py")):
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and node.name == file.stem:
                entry = _entry(node)
                if entry is not None:
                    found[entry.name] = entry
    return found


@cache
def objectives() -> tuple[str, ...]:
    """Names that a recipe's objective may have: the files of `clipkit/training/objectives`."""
    return ("captions", "views")


def _entry(node: ast.FunctionDef) -> Entry | None:
    text = ast.get_docstring(node) or ""
    before, short, after = text.partition("In short:\n")
    if not short:
        return None
    block, _, rest = after.partition("\n\n")
    lines = [line.strip().partition(": ") for line in block.splitlines()]
    fields = {name: value for name, _, value in lines}
    more = "" if rest.startswith("Args:") else rest.partition("\n\nArgs:")[0]
    own = [argument.arg for argument in node.args.kwonlyargs if argument.arg not in _GIVEN]
    teacher = any(argument.arg.startswith("teacher") for argument in node.args.args)
    options = (*own, "teacher") if teacher else tuple(own)
    summary, _, explanation = before.strip().partition("\n\n")
    return Entry(node.name, " ".join(summary.split()), fields, options, "\n\n".join(filter(None, (explanation, more))))


def table() -> str:
    """A few lines a loss, for a terminal."""
    rows = []
    for entry in losses().values():
        head = f"{entry.name}: {entry.summary}"
        facts = [f"{name}: {entry.fields[name]}" for name in _FIELDS[:-1]]
        options = [f"options: {', '.join(entry.options)}"] if entry.options else []
        body = textwrap.wrap("; ".join([*facts, *options]), 96)
        rows.append("\n".join([*textwrap.wrap(head, 98), *(f"  {line}" for line in body)]))
    return "\n\n".join(rows)


def markdown() -> str:
    """The page of the documentation."""
    names = ("formula", "positives", "needs", "memory", "chance", "source")
    lines = [
        "# Losses",
        "",
        "`loss.name` in a recipe chooses one, or a weighted sum: `loss: {name: [{name: infonce}, {name: "
        "within_consistency, weight: 0.25}]}`.",
        "Each is a function in `clipkit.losses`, of unit-length features; G pairs in the global batch, D their width.",
        "`duplicates` says what other pairs with the same image or caption are: `positive`, `ignore` (left out) or",
        "`negative`. This page is made from the code by `python -m clipkit.catalogue`.",
        "",
        f"| loss | {' | '.join(names)} |",
        f"| --- |{' --- |' * len(names)}",
        *(f"| [{e.name}](#{e.name}) | {' | '.join(e.fields[name] for name in names)} |" for e in losses().values()),
    ]
    for entry in losses().values():
        options = ", ".join(f"`{option}`" for option in entry.options) or "none"
        lines += ["", f"## {entry.name}", "", entry.summary, "", _with_formula(entry.explanation), ""]
        lines += [f"Take it {entry.fields['take it']}. Options: {options}."]
    return "\n".join(lines) + "\n"


def _with_formula(text: str) -> str:
    """`.. math::` as a block that Markdown readers know."""
    parts = []
    for part in text.split("\n\n"):
        if part.startswith(".. math::"):
            formula = inspect.cleandoc(part.removeprefix(".. math::"))
            parts.append(f"```math\n{formula}\n```")
        else:
            parts.append(part)
    return "\n\n".join(parts)


if __name__ == "__main__":
    print(markdown(), end="")
