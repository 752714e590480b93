"""Run `clipkit data check` and print its report."""

import json
import textwrap
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from clipkit.cli.output import check_writable, write_output
from clipkit.data import read_pairs
from clipkit.data.checks import Report, check, check_output_folder, fix
from clipkit.data.pairs import Pairs
from clipkit.errors import DataError
from clipkit.findings import counted, percent

_EXAMPLES = 3
_INDENT = " " * 9


def run_check(
    data: str,
    against: str | None,
    model: str | None,
    batch_size: int,
    json_file: Path | None,
    out: Path | None,
    workers: int | None,
) -> None:
    """Check the data, print the report, and write the JSON file and the cleaned copy if requested."""
    started = time.monotonic()
    check_writable(json_file, inputs=(data, against))
    if out is not None:
        check_output_folder(out, data)
    pairs = _read(data)
    other = None if against is None else _read(against)
    token_counts, context_length, image_size = None, None, None
    if model is not None:
        from clipkit.models import load
        from clipkit.models.token_counts import token_counter

        loaded = load(model, device="cpu")
        image_size = loaded.image.preprocess.image_size if pairs.has_images else None
        if pairs.has_captions:
            token_counts, context_length = token_counter(loaded), loaded.text.tokenize.context_length
    report = check(
        pairs,
        other,
        token_counts=token_counts,
        context_length=context_length,
        image_size=image_size,
        batch_size=batch_size,
        workers=workers,
    )
    print_report(report)
    if json_file is not None:
        settings = {"model": model, "batch_size": batch_size}
        found = report.to_dict() | {"settings": settings, "seconds": round(time.monotonic() - started, 1)}
        write_output(json_file, json.dumps(found, indent=2, ensure_ascii=False) + "\n", "findings")
    if out is not None:
        kept = fix(pairs, report, out)
        print(
            f"cleaned copy: {out / 'captions.csv'} ({counted(kept['images'], 'image')}, "
            f"{counted(kept['captions'], 'caption')}); dropped ({kept['dropped']:,}), with reasons: "
            f"{out / 'dropped.jsonl'}"
        )


def _read(source: str) -> Pairs:
    """Read images with captions; if the data has only images or only captions, read these."""
    broken = ("images", "captions")
    try:
        return read_pairs(source, broken=broken)
    except DataError as error:
        for images in (True, False):
            with suppress(DataError):
                return read_pairs(source, images=images, captions=not images, broken=broken)
        raise error from None


def print_report(report: Report) -> None:
    """Print the facts as a table, then each finding with examples and advice."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=120)  # output to a file has no terminal width
    console.print(Text(report.data + (f", against {report.against.name}" if report.against is not None else "")))
    for line in _summary(report.facts):
        console.print(Text(f"  {line}"))
    table = Table(box=None, padding=(0, 2))
    for heading in ("", "min", "median", "95 %", "max"):
        table.add_column(heading, justify="right" if heading else "left")
    for row in _quantile_rows(report.facts):
        table.add_row(*map(Text, row))
    console.print(table)
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
        console.print(Text(line), soft_wrap=True)


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
        parts.append(f"{counted(facts['captions'], 'caption')}, {facts['distinct_captions']:,} of them different")
    lines = [", ".join(parts)]
    if "share_smaller" in facts:
        lines.append(f"{percent(facts['share_smaller'])} of the images are smaller than {facts['input_size']} pixels")
    if "share_cut" in facts:
        context = f"the model's context of {facts['context_length']} tokens"
        lines.append(f"{percent(facts['share_cut'])} of the captions are longer than {context}")
    if "batch" in facts:
        batch = facts["batch"]
        captions = f"{batch['same_caption']:.3g} pairs with equal captions and " if "captions" in facts else ""
        lines.append(
            f"expected in a batch of {batch['size']:,}: {captions}{batch['same_image']:.3g} pairs of equal images"
        )
    return lines
