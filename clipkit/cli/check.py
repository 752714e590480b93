"""`clipkit data check`: run it, and show what it found."""

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
from clipkit.data.checks import Report, check, check_place, fix
from clipkit.data.checks.findings import counted
from clipkit.data.pairs import Pairs
from clipkit.errors import DataError

_SHOWN = 3


def run_check(
    data: str,
    against: str | None,
    model: str | None,
    batch_size: int,
    json_file: Path | None,
    out: Path | None,
    workers: int | None,
) -> None:
    """Read, check, print, and write what is asked for."""
    started = time.monotonic()
    check_writable(json_file, inputs=(data, against))
    if out is not None:
        check_place(out, data)
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
            f"{counted(kept['captions'], 'caption')}); what was dropped ({kept['dropped']:,}) and why: "
            f"{out / 'dropped.jsonl'}"
        )


def _read(source: str) -> Pairs:
    """Images with captions; where it has no captions images alone, where it has no images captions alone.

    Whatever is there is read each time, so that only its absence leads from one to the next.
    """
    broken = ("images", "captions")
    try:
        return read_pairs(source, broken=broken)
    except DataError as both:
        for images in (True, False):
            with suppress(DataError):
                return read_pairs(source, images=images, captions=not images, broken=broken)
        raise both from None


def print_report(report: Report) -> None:
    """Facts as a table, then each finding with examples and what to do."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=120)  # a file has no edge to wrap at
    console.print(Text(report.data + (f", against {report.against}" if report.against is not None else "")))
    for line in _more(report.facts):
        console.print(Text(f"  {line}"))
    table = Table(box=None, padding=(0, 2))
    for heading in ("", "min", "median", "95 %", "max"):
        table.add_column(heading, justify="right" if heading else "left")
    for row in _facts(report.facts):
        table.add_row(*map(Text, row))
    console.print(table)
    console.print()
    if not report.findings:
        console.print(Text("Nothing to mend was found."))
        return
    counts = report.to_dict()["counts"]
    console.print(
        Text(", ".join(f"{count} {severity}{'s' * (count != 1)}" for severity, count in counts.items() if count) + ":")
    )
    width = max(len(f"{one.count:,}") for one in report.findings)
    for one in report.findings:
        console.print()
        head = f"{one.severity:<8} {one.count:>{width},} ({_share(one.share)})  "
        _wrapped(console, head, f"{one.message}  [{one.name}]")
        shown = "; ".join(one.examples[:_SHOWN])
        if one.examples:
            _wrapped(console, " " * 9, shown + "; …" * (one.count > len(one.examples[:_SHOWN])))
        _wrapped(console, " " * 9, f"→ {one.advice}")


def _wrapped(console: Console, head: str, text: str) -> None:
    for line in textwrap.wrap(
        head + text, console.width, subsequent_indent=" " * 11, break_on_hyphens=False, drop_whitespace=True
    ):
        console.print(Text(line), soft_wrap=True)


def _facts(facts: dict[str, Any]) -> list[list[str]]:
    rows = []
    unit = facts.get("caption_length", {}).get("unit", "")
    for name, title, form in (
        ("captions_a_image", "captions an image", ".0f"),
        ("caption_length", f"{unit} a caption", ".0f"),
        ("width", "width in pixels", ".0f"),
        ("height", "height in pixels", ".0f"),
        ("aspect_ratio", "width / height", ".2f"),
    ):
        if name in facts:
            rows.append([title, *(f"{facts[name][at]:{form}}" for at in ("min", "median", "p95", "max"))])
    return rows


def _more(facts: dict[str, Any]) -> list[str]:
    parts = [counted(facts["images"], "image")] if facts["images"] else []
    if "bytes" in facts:
        parts[-1] += f" of {facts['bytes'] / 1e6:,.1f} MB"
    if "captions" in facts:
        parts.append(f"{counted(facts['captions'], 'caption')}, {facts['distinct_captions']:,} of them different")
    lines = [", ".join(parts)]
    if "share_smaller" in facts:
        lines.append(f"{_share(facts['share_smaller'])} of the images are smaller than {facts['input_size']} pixels")
    if "share_cut" in facts:
        lines.append(
            f"{_share(facts['share_cut'])} of the captions are longer than the model's {facts['context_length']} tokens"
        )
    if "batch" in facts:
        batch = facts["batch"]
        said = f"{batch['same_caption']:.3g} pairs with equal captions and " if "captions" in facts else ""
        lines.append(f"in a batch of {batch['size']:,} expect {said}{batch['same_image']:.3g} pairs of equal images")
    return lines


def _share(share: float) -> str:
    if 0 < share < 0.0001:
        return "< 0.01 %"
    return f"{100 * share:.3g} %"
