"""Steps of `clipkit data check`: read the data and print the report."""

import textwrap
from contextlib import suppress
from typing import Any

from rich.console import Console
from rich.text import Text

from clipkit.cli.tables import open_console, print_table
from clipkit.data import read_pairs
from clipkit.data.checks import Report
from clipkit.data.pairs import Pairs
from clipkit.errors import ColumnError, DataError, printable
from clipkit.findings import counted, percent

_EXAMPLES = 3
_INDENT = " " * 9


def read_for_check(source: str, only: str | None = None, *, may_lack: bool = False) -> Pairs:
    """Read the images and captions of a data source; one of the two kinds may be missing.

    Args:
        source: path or name of the data.
        only: "images" or "captions", to read only this kind; None: read all that the data contains.
        may_lack: True: accept a table without a column of images or of captions; False: raise an error for this table.

    Raises:
        DataError: the data is unreadable, or a table lacks a column that is required.
    """
    broken = ("images", "captions")
    if only is not None:
        return read_pairs(source, images=only == "images", captions=only == "captions", broken=broken)
    try:
        return read_pairs(source, broken=broken)
    except DataError as error:
        for part in ("images", "captions"):
            with suppress(DataError):
                pairs = read_for_check(source, part)
                break
        else:
            raise error from None
        if may_lack or not isinstance(error, ColumnError):
            return pairs
        raise ColumnError(f"{error}; to check only the {part}, add --only {part}") from None


def print_report(report: Report) -> None:
    """Print the facts as a table, then each finding with examples and advice."""
    console = open_console()
    console.print(Text(report.data + (f", against {report.against.name}" if report.against is not None else "")))
    for line in _summary(report.facts):
        console.print(Text(f"  {line}"))
    print_table(["", "min", "median", "95 %", "max"], _quantile_rows(report.facts))
    console.print()
    if not report.findings:
        console.print(Text("No problems found."))
        return
    counts = report.to_dict()["counts"]
    console.print(Text(", ".join(counted(count, severity) for severity, count in counts.items() if count) + ":"))
    for finding in report.findings:
        console.print()
        _print_wrapped(console, f"{finding.severity:<8} {finding.message}  [{finding.name}]")
        if finding.examples:
            more = "; …" if (finding.count or 0) > _EXAMPLES else ""
            _print_wrapped(console, _INDENT + "; ".join(finding.examples[:_EXAMPLES]) + more)
        _print_wrapped(console, f"{_INDENT}→ {finding.advice}")


def _print_wrapped(console: Console, text: str) -> None:
    for line in textwrap.wrap(text, console.width, subsequent_indent=" " * 11, break_on_hyphens=False):
        console.print(Text(printable(line)), soft_wrap=True)


def _quantile_rows(facts: dict[str, Any]) -> list[list[str]]:
    unit = facts.get("caption_length", {}).get("unit", "")
    titles = {
        "captions_per_image": ("captions per image", ".0f"),
        "caption_length": (f"{unit} per caption", ".0f"),
        "width": ("width in pixels", ".0f"),
        "height": ("height in pixels", ".0f"),
        "aspect_ratio": ("width / height", ".2f"),
    }
    return [
        [title, *(f"{facts[name][quantile]:{form}}" for quantile in ("min", "median", "p95", "max"))]
        for name, (title, form) in titles.items()
        if name in facts
    ]


def _summary(facts: dict[str, Any]) -> list[str]:
    parts = [counted(facts["images"], "image")] if facts["images"] else []
    if "bytes" in facts:
        parts[-1] += f", {facts['bytes'] / 1e6:,.1f} MB"
    if "captions" in facts:
        parts.append(f"{counted(facts['captions'], 'caption')}, {facts['distinct_captions']:,} of them distinct")
    lines = [", ".join(parts)]
    if "share_smaller" in facts:
        lines.append(f"{percent(facts['share_smaller'])} of the images are smaller than {facts['input_size']} pixels")
    if "share_cut" in facts:
        context = f"the model's context of {facts['context_length']} tokens"
        lines.append(f"{percent(facts['share_cut'])} of the captions are longer than {context}")
    if "batch" in facts:
        batch = facts["batch"]
        size = min(batch["size"], facts["images"])
        captions = (
            f"{batch['same_caption']:.3g} pairs of rows with the same caption and " if "captions" in facts else ""
        )
        lines.append(
            f"expected in a batch of {size:,}: {captions}{batch['same_image']:.3g} pairs of rows with the "
            "same image" + " (--batch-size is not given; 512 is the default of a recipe)" * batch["assumed"]
        )
    return lines
