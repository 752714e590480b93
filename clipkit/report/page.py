"""The page that every report is: headline, tables, curves, and queries with their answers."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

import jinja2
from markupsafe import Markup, escape

from clipkit.errors import DataError
from clipkit.images import DATA_URI, as_data_uri
from clipkit.report.curves import CATEGORIES
from clipkit.tasks import number, readable

_THUMBNAIL = 112  # pixels


@dataclass(frozen=True)
class Table:
    """Rows of cells under a header; the first column names the row."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    strong: int | None = 1
    """The column to look at first."""
    words: Sequence[int] = ()
    """Columns that hold words, beside the first."""


@dataclass(frozen=True)
class Headline:
    """A figure to see before all others."""

    name: str
    value: str
    beside: Sequence[str] = ()
    """Its interval and chance, each on a line."""


@dataclass(frozen=True)
class Curve:
    """An SVG and what it shows."""

    title: str
    svg: str
    note: str = ""
    wide: bool = False
    """Of many parts: it takes the whole width, and is moved sideways on a phone."""


@dataclass(frozen=True)
class Grid:
    """Queries with their top answers, in the form of a result's `examples`."""

    title: str
    examples: Sequence[Mapping[str, Any]]
    note: str = ""
    small: bool = False
    """Little is said of each: more stand side by side."""


@dataclass(frozen=True)
class Sheet:
    """One image, as of augmented samples."""

    title: str
    image: str
    """A data URI."""
    note: str = ""


@dataclass(frozen=True)
class Page:
    """A report."""

    title: str
    lead: str
    headlines: Sequence[Headline] = ()
    findings: Sequence[Mapping[str, Any]] | None = None
    """In the form of a result's `findings`; None: nobody looked."""
    tables: Sequence[Table] = ()
    curves: Sequence[Curve] = ()
    curves_title: str = "Course of the run"
    tables_below: Sequence[Table] = ()
    """Behind the curves."""
    sheets: Sequence[Sheet] = ()
    grids: Sequence[Grid] = ()
    map: Sequence[Mapping[str, Any]] = ()
    """Where items lie in two dimensions, in the form of a result's `map`."""
    details: Mapping[str, str] = field(default_factory=dict)
    """Long texts to fold away, as the recipe."""
    credit: str = ""


def render(page: Page) -> str:
    """The page as one HTML file: images and curves are inside."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("clipkit.report", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["thumbnail"] = thumbnail
    environment.filters["unbroken"] = unbroken
    environment.filters["signed"] = lambda score: f"{score:.2f}".replace("-", "\N{MINUS SIGN}")
    environment.filters["file_name"] = lambda path: "" if path.startswith(DATA_URI) else PurePath(path).name
    environment.globals["colour_of"] = colours_of(page.map)
    environment.filters["svg"] = _inside
    return environment.get_template("page.html").render(page=page)


def colours_of(items: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """A colour for each of the commonest classes on a map; the others share a grey."""
    common = Counter(str(item["label"]) for item in items if item.get("label")).most_common(len(CATEGORIES))
    return {label: colour for (label, _), colour in zip(common, CATEGORIES, strict=False)}


def unbroken(text: str) -> Markup:
    """A figure's unit and what stands in its brackets are never on lines of their own."""
    bound = re.sub(r"(?<=\d) (?=%|points|GB|to )|(?<= to) ", "\N{NO-BREAK SPACE}", str(escape(text)))
    return Markup(re.sub(r"\([^()]{1,24}\)", r"<span>\g<0></span>", bound))


def _inside(svg: str, place: int) -> Markup:
    """The SVG with names of its own: a page that holds several has each name once."""
    return Markup(re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>c{place}-", svg))


def thumbnail(path: str, side: int = _THUMBNAIL) -> str:
    """An image as a data URI, at most so many pixels wide; an empty string where the file is gone."""
    if path.startswith(DATA_URI):  # an image out of a tar or a table is in the result itself
        return path
    try:
        return as_data_uri(path, side)
    except DataError:
        return ""


def headlines(metrics: Mapping[str, Mapping[str, Any]], names: Sequence[str]) -> list[Headline]:
    """Those of a result's metrics that it has, with interval and chance."""
    found = []
    for name in names:
        figure = metrics.get(name)
        if figure is None or figure["value"] is None:
            continue
        ends = [] if figure["low"] is None else [f"({_ends(name, figure)})"]
        chance = [] if figure["chance"] is None else [f"chance {number(name, figure['chance'])}"]
        found.append(Headline(readable(name), number(name, figure["value"]), [*ends, *chance]))
    return found


def _ends(name: str, figure: Mapping[str, Any]) -> str:
    low, high = (number(name, figure[end]).removesuffix(" %") for end in ("low", "high"))
    return f"{low} – {high}"


def standing(query: Mapping[str, Any], whose: str) -> str:
    """How a query of a comparison fared with the `first` or the `second` model, in words."""
    if f"{whose}_rank" in query:
        return f"place {query[f'{whose}_rank']:,}"
    share = query[f"{whose}_right"]
    return {0.0: "wrong", 1.0: "right"}.get(share, f"right in {100 * share:.0f} % of the draws")


def difference(name: str, value: float) -> str:
    """A difference of two figures: its sign, and points where the figures are in percent."""
    said = number(name, value)
    said = f"{said.removesuffix(' %')} points" if said.endswith(" %") else said
    return said.replace("-", "\N{MINUS SIGN}") if said.startswith("-") else f"+{said}"


def place_of(name: str) -> str:
    """Of a path the last two parts, which tell it from others in a heading; other names as they are."""
    parts = PurePath(name).parts
    return name if len(parts) < 3 else "/".join(parts[-2:])


def duration(seconds: float) -> str:
    """In the units that a reader expects."""
    if seconds < 1:
        return "less than a second"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


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
        cells = [_cell(name, metrics.get(name)) for metrics in results.values()]
        rows.append([readable(name), *cells, number(name, shown["chance"])])
    return Table(title, ["", *results, "chance"], rows, note)


def _cell(name: str, figure: Mapping[str, Any] | None) -> str:
    if figure is None or figure["value"] is None:
        return "–"
    if figure["low"] is None:
        return number(name, figure["value"])
    return f"{number(name, figure['value'])} ({_ends(name, figure)})"
