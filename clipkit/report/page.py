"""The page that every report is: headline, tables, curves, and queries with their answers."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jinja2
from markupsafe import Markup
from PIL import Image

from clipkit.errors import DataError
from clipkit.pictures import open_picture

_THUMBNAIL = 112  # pixels


@dataclass(frozen=True)
class Table:
    """Rows of cells under a header; the first column names the row."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


@dataclass(frozen=True)
class Curve:
    """An SVG and what it shows."""

    title: str
    svg: str


@dataclass(frozen=True)
class Grid:
    """Queries with their top answers, in the form of a result's `examples`."""

    title: str
    examples: Sequence[Mapping[str, Any]]
    note: str = ""


@dataclass(frozen=True)
class Page:
    """A report."""

    title: str
    lead: str
    tables: Sequence[Table] = ()
    curves: Sequence[Curve] = ()
    grids: Sequence[Grid] = ()
    details: Mapping[str, str] = field(default_factory=dict)
    """Long texts to fold away, as the recipe."""
    credit: str = ""


def render(page: Page) -> str:
    """The page as one HTML file: pictures and curves are inside."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("clipkit.report", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["thumbnail"] = thumbnail
    environment.filters["svg"] = Markup
    return environment.get_template("page.html").render(page=page)


def thumbnail(path: str) -> str:
    """A picture as a data URI; an empty one where the file is gone."""
    try:
        picture = open_picture(path)
    except DataError:
        picture = Image.new("RGB", (1, 1), "white")
    picture.thumbnail((_THUMBNAIL, _THUMBNAIL))
    encoded = io.BytesIO()
    picture.save(encoded, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(encoded.getvalue()).decode()


def metrics_table(results: Mapping[str, Mapping[str, Any]], title: str, note: str = "") -> Table:
    """One row a metric, one column a result, chance last.

    Args:
        results: for each column its heading and the `metrics` of its result.
        title: of the table.
        note: below the table.
    """
    first = next(iter(results.values()))
    rows = []
    for name, shown in first.items():
        cells = [_cell(metrics.get(name)) for metrics in results.values()]
        rows.append([readable(name), *cells, _percent(shown["chance"])])
    return Table(title, ["", *results, "chance"], rows, note)


def readable(name: str) -> str:
    """A metric's name in words."""
    words = {
        "acc1": "top-1 accuracy",
        "acc5": "top-5 accuracy",
        "mean_per_class_recall": "mean recall of the classes",
        "mean_recall": "mean of the recalls",
    }
    direction = {"image_retrieval_recall": "text → image R", "text_retrieval_recall": "image → text R"}
    kind, at, k = name.partition("@")
    return f"{direction[kind]}@{k}" if at else words.get(name, name)


def _cell(figure: Mapping[str, Any] | None) -> str:
    if figure is None or figure["value"] is None:
        return "–"
    interval = "" if figure["low"] is None else f" ({100 * figure['low']:.1f} – {100 * figure['high']:.1f})"
    return _percent(figure["value"]) + interval


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"
