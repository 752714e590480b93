"""The HTML page of every report: headlines, tables, charts, and queries with their answers."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import PurePath
from typing import Any

import jinja2
from markupsafe import Markup, escape

from clipkit.errors import DataError, printable
from clipkit.images import DATA_URI, as_data_uri
from clipkit.report.charts import CATEGORIES
from clipkit.tasks import number, readable, shown_metrics

_THUMBNAIL = 112  # pixels
_PHONE = 46  # number of letters, in a table's font, that fit the width of a phone
CALIBRATION_NOTE = (
    "Calibration error: the mean difference between the model's confidence in its answers and the share of "
    "these answers that are correct; 0 is best. A model that is often confident and wrong has a large "
    "calibration error."
)
INTERVAL_NOTE = "95 % confidence intervals over images in parentheses."


@dataclass(frozen=True)
class Table:
    """A table with a header; the first column contains the names of the rows."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    strong: int | None = 1
    """Index of the most important column, set in bold."""
    words: Sequence[int] = ()
    """Indices of columns that hold text; the first column always does."""


@dataclass(frozen=True)
class Headline:
    """One of the few most important metrics, shown in large type at the top of a report."""

    name: str
    value: str
    notes: Sequence[str] = ()
    """Lines below the value: the confidence interval and the chance level."""


@dataclass(frozen=True)
class Chart:
    """A chart as SVG with its title."""

    title: str
    svg: str
    note: str = ""
    wide: bool = False
    """True if the chart uses the full width of the page, and scrolls sideways on a phone."""


@dataclass(frozen=True)
class Grid:
    """Queries with their top answers, in the format of a result's `examples`."""

    title: str
    examples: Sequence[Mapping[str, Any]]
    note: str = ""
    small: bool = False
    """Use narrow cards, for examples with little text."""


@dataclass(frozen=True)
class Sheet:
    """One large image, e.g. a sheet of augmented samples."""

    title: str
    image: str
    """Data URI."""
    note: str = ""


@dataclass(frozen=True)
class Page:
    """Content of a report."""

    title: str
    lead: str
    headlines: Sequence[Headline] = ()
    findings: Sequence[Mapping[str, Any]] | None = None
    """Problems, in the format of a result's `findings`; empty: none found; None: no section about them."""
    tables: Sequence[Table] = ()
    charts: Sequence[Chart] = ()
    charts_title: str = "Training curves"
    tables_below: Sequence[Table] = ()
    """Tables after the charts."""
    sheets: Sequence[Sheet] = ()
    grids_above: Sequence[Grid] = ()
    """Grids before everything else."""
    grids: Sequence[Grid] = ()
    map: Sequence[Mapping[str, Any]] = ()
    """Positions of items in two dimensions, in the format of a result's `map`."""
    details: Mapping[str, str] = field(default_factory=dict)
    """Long texts by title, e.g. the recipe; they are hidden until the reader clicks the title."""
    credit: str = ""
    """Sources and licenses of the data shown."""


def render(page: Page) -> str:
    """Return the page as one HTML file that contains all images and charts, and needs no network."""
    return _template().render(page=page, color_of=colors_of(page.map))


@cache
def _template() -> jinja2.Template:
    """Return the compiled template of a page."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("clipkit.report", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["thumbnail"] = thumbnail
    environment.filters["unbroken"] = unbroken
    environment.filters["signed"] = lambda score: f"{round(score, 2) + 0.0:.2f}".replace("-", "\N{MINUS SIGN}")
    environment.filters["file_name"] = lambda path: "" if path.startswith(DATA_URI) else PurePath(path).name
    environment.filters["is_wide"] = is_wide
    environment.filters["svg"] = _with_unique_ids
    return environment.get_template("page.html")


def colors_of(items: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return a color for each of the most common classes of an embedding map. Points of other classes are gray."""
    common = Counter(str(item["label"]) for item in items if item.get("label")).most_common(len(CATEGORIES))
    return {label: color for (label, _), color in zip(common, CATEGORIES, strict=False)}


def is_wide(table: Table) -> bool:
    """Return whether a table is wider than the screen of a phone.

    Each column is as wide as its longest part without a line break.
    """
    columns = zip(
        *([re.sub("<[^>]*>", "", unbroken(cell)) for cell in row] for row in (table.header, *table.rows)), strict=True
    )
    longest = [max(len(part) for cell in column for part in re.split(r" (?![^(]*\))|-", cell)) for column in columns]
    # Smallest widths of columns in the style sheet.
    least = [12 if index == 0 else 13 if index in table.words else 0 for index in range(len(longest))]
    return sum(map(max, longest, least)) + 2 * len(longest) > _PHONE


def unbroken(text: str) -> Markup:
    """Escape a text, and prevent line breaks between a number and its unit and within short parentheses."""
    bound = re.sub(r"(?<=\d) (?=%|points|GB|s\b|to )|(?<= to) ", "\N{NO-BREAK SPACE}", str(escape(text)))
    return Markup(re.sub(r"\([^()]{1,24}\)", r"<span>\g<0></span>", bound))


def _with_unique_ids(svg: str, number: int) -> Markup:
    """Prefix all IDs in a chart with its number, because IDs must be unique within a page."""
    return Markup(re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>c{number}-", svg))


def thumbnail(path: str, side: int = _THUMBNAIL) -> str:
    """Return an image as a data URI, at most `side` pixels wide, or an empty string if the file is missing."""
    if path.startswith(DATA_URI):  # images from tar files and tables are already data URIs in the result
        return path
    try:
        return as_data_uri(path, side)
    except DataError:
        return ""


def headlines(metrics: Mapping[str, Mapping[str, Any]], names: Sequence[str]) -> list[Headline]:
    """Return a headline for each metric in `names` that was measured, with confidence interval and chance level."""
    shown = []
    for name in names:
        figure = metrics.get(name)
        if figure is None or figure["value"] is None:
            continue
        ends = [] if figure["low"] is None else [f"({_ends(name, figure)})"]
        chance = [] if figure["chance"] is None else [f"chance {number(name, figure['chance'])}"]
        shown.append(Headline(readable(name), number(name, figure["value"]), [*ends, *chance]))
    return shown


def _ends(name: str, figure: Mapping[str, Any]) -> str:
    low, high = (number(name, figure[end]).removesuffix(" %") for end in ("low", "high"))
    return f"{low} – {high}"


def standing(query: Mapping[str, Any], whose: str) -> str:
    """Return how well one of two compared models (`first` or `second`) answered a query, e.g. `rank 3` or `wrong`."""
    if f"{whose}_rank" in query:
        return f"rank {query[f'{whose}_rank']:,}"
    share = query[f"{whose}_right"]
    return {0.0: "wrong", 1.0: "correct"}.get(share, f"correct in {100 * share:.0f} % of the draws")


def difference(name: str, value: float) -> str:
    """Format the difference between two values of a metric with its sign, e.g. `+1.5 points` for 0.015."""
    text = number(name, value)
    text = f"{text.removesuffix(' %')} points" if text.endswith(" %") else text
    return text.replace("-", "\N{MINUS SIGN}") if text.startswith("-") else f"+{text}"


def short_name(name: str) -> str:
    """Return the last two parts of a path, for a heading."""
    parts = PurePath(name).parts
    return name if len(parts) < 3 else "/".join(parts[-2:])


def duration(seconds: float) -> str:
    """Format a duration in suitable units, e.g. `4 min 54 s`."""
    if seconds < 1:
        return "less than a second"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def metrics_table(results: Mapping[str, Mapping[str, Any]], title: str, note: str = "") -> Table:
    """Return a table with one row per metric, one column per result, and a last column for the chance level.

    `results` maps the heading of a column to the `metrics` of a result; `note` is the text below the table.
    """
    first = next(iter(results.values()))
    rows = []
    for name in shown_metrics(*results.values()):
        cells = [with_interval(name, metrics.get(name)) for metrics in results.values()]
        rows.append([readable(name), *cells, number(name, first[name]["chance"])])
    return Table(title, ["", *results, "chance"], rows, note)


def with_interval(name: str, figure: Mapping[str, Any] | None) -> str:
    """Return the value of a metric as text, with its confidence interval, if known, in parentheses."""
    if figure is None or figure["value"] is None:
        return "–"
    if figure["low"] is None:
        return number(name, figure["value"])
    return f"{number(name, figure['value'])} ({_ends(name, figure)})"


def markdown(table: Table) -> str:
    """Return a table in Markdown, without its title and note."""
    rows = [table.header, ["---"] * len(table.header), *table.rows]
    return "\n".join(f"| {' | '.join(map(in_markdown, row))} |" for row in rows)


def in_markdown(text: str) -> str:
    """Escape a text for a table or a line of Markdown."""
    return re.sub(r"([|\[\]`*\\])", r"\\\1", printable(" ".join(text.split()))).replace("<", "&lt;")
