"""Reader of CSV and TSV files with any common delimiter."""

import csv
import re
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import pyarrow as pa
from pyarrow import csv as arrow_csv

from clipkit.data.sequences import Files
from clipkit.data.sources.choice import PEEKED
from clipkit.data.sources.columns import LONGEST_TEXT, Rows, Wanted
from clipkit.errors import DataError, one_line
from clipkit.files import is_file
from clipkit.opening import open_file, open_text

csv.field_size_limit(max(csv.field_size_limit(), 1 << 30))
_DELIMITERS = {",": "a comma", ";": "a semicolon", "\t": "a tab", "|": "a vertical bar"}


def read_delimited(name: str | Path, wanted: Wanted) -> Rows:
    """Read a CSV or TSV file with commas, semicolons, tabs or vertical bars between its fields.

    Image paths are relative to the file.

    Raises:
        DataError: the file is missing, empty, not UTF-8 or malformed, or a column is missing; the message names the
            line.
    """
    path = Path(name)
    form = _Form(",")
    try:
        form = _form_of(path, wanted)
        header, *rows = _first_rows(path, form)
        try:
            names = wanted.columns_among(path, header, lambda name: _column(rows, header.index(name)), path.parent)
        except DataError:
            _check_header(path, header)
            raise
        as_strings = arrow_csv.ConvertOptions(
            include_columns=list(dict.fromkeys(names.values())),
            column_types=dict.fromkeys(names.values(), pa.large_string()),
            strings_can_be_null=False,
        )
        table = _parsed(path, form, as_strings).combine_chunks()
    except FileNotFoundError:
        raise DataError(f"{path}: file not found; paths are relative to the working directory") from None
    except UnicodeDecodeError:
        raise DataError(_first_problem(path, form) or f"{path}: is not UTF-8; save it as UTF-8") from None
    except (pa.ArrowException, csv.Error) as error:
        problem = _first_problem(path, form)
        raise DataError(problem or f"{path}: cannot be parsed ({one_line(error)}); fix the file") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the file and its permissions") from None
    if not len(table):
        raise DataError(f"{path}: has a header but no rows; add at least one row")
    columns = {role: _unchunked(table[name]) for role, name in names.items()}
    _check_quotes(path, form, columns)
    paths = columns.pop("image", None)
    images = None if paths is None else Files.of(path.parent, paths)
    return Rows(str(path), columns, images, paths, names)


def all_columns(path: Path, wanted: Wanted) -> pa.Table:
    """Return all columns of a CSV or TSV file as an Arrow table, with types inferred from the values."""
    return _parsed(path, _form_of(path, wanted))


@dataclass(frozen=True)
class _Form:
    """Format of a delimited file: the delimiter, and the number of lines before the header."""

    delimiter: str
    skipped: int = 0


def _parsed(path: Path, form: _Form, convert: arrow_csv.ConvertOptions | None = None) -> pa.Table:
    return arrow_csv.read_csv(
        path,
        read_options=arrow_csv.ReadOptions(skip_rows=form.skipped),
        parse_options=arrow_csv.ParseOptions(delimiter=form.delimiter, newlines_in_values=True),
        convert_options=convert,
    )


def _form_of(path: Path, wanted: Wanted) -> _Form:
    """Return the format of a file, with the delimiter that gives the most columns with names of roles, e.g. caption.

    Ties go to the delimiter that gives more columns, then to the usual delimiter of the file extension. A first line
    such as `sep=;`, which Excel writes, sets the delimiter.
    """
    with open_text(path, newline="") as file:
        first = file.readline()
    stated = re.fullmatch(r'"?sep=(.)"?\s*', first, re.IGNORECASE)
    if stated:
        return _Form(stated[1], 1)
    known = {name.lower() for role in wanted.roles for name in wanted.names[role]}
    known |= {value.lower() for role, value in wanted.options.items() if role in wanted.names}
    usual = "\t" if path.suffix.lower() == ".tsv" else ","

    def fit(delimiter: str) -> tuple[int, int]:
        header = next(iter(_first_rows(path, _Form(delimiter), 1)), [])
        return sum(name.strip().lower() in known for name in header), len(header)

    return _Form(max(dict.fromkeys((usual, *_DELIMITERS)), key=fit))


def _first_rows(path: Path, form: _Form, count: int = PEEKED + 1) -> list[list[str]]:
    """Return the first rows of a file, at most `count`, including the header.

    Raises:
        DataError: there is no header.
    """
    with open_text(path, newline="") as file:
        for _ in range(form.skipped):
            file.readline()
        rows = list(islice(csv.reader(file, delimiter=form.delimiter), count))
    if not rows or not rows[0]:
        raise DataError(f"{path}: is empty; its first line must name the columns, for example image,caption")
    return rows


def _check_header(path: Path, header: list[str]) -> None:
    """Raise an error if the first line contains an image path or URL: the file then has no header."""
    images = (name for name in header if "://" in name or (Path(name).suffix and is_file(path.parent / name)))
    image = next(images, None)
    if image is not None:
        raise DataError(
            f"{path}: has no header, because its first line is data ({image.strip()[:60]}); add a first line with the "
            "names of the columns, for example image,caption"
        )


def _column(rows: list[list[str]], number: int) -> list[str]:
    return [row[number] for row in rows if number < len(row)]


def _unchunked(column: pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)


def _check_quotes(path: Path, form: _Form, columns: dict[str, pa.Array]) -> None:
    """Raise an error if a quotation mark is never closed.

    Without this check, the rest of the file would be one field.
    """
    if any(len(column[len(column) - 1].as_py()) > 1000 or "\n" in column[len(column) - 1].as_py()
           for column in columns.values()):  # fmt: skip
        problem = _first_problem(path, form)
        if problem is not None:
            raise DataError(problem)


def _first_problem(path: Path, form: _Form) -> str | None:
    """Return a message about the first malformed line of a file, with its number; None if all lines are correct."""
    line = 0
    with open_file(path) as raw:
        for line, content in enumerate(raw, 1):
            try:
                content.decode("utf-8-sig")
            except UnicodeDecodeError as error:
                byte, position = content[error.start], error.start + 1
                return (
                    f"{path}: line {line} is not UTF-8 (byte {byte:#04x} at position {position}); save the file as "
                    "UTF-8"
                )
    with open_text(path, newline="") as file:
        for _ in range(form.skipped):
            file.readline()
        rows = csv.reader(file, delimiter=form.delimiter, strict=True)
        begins, width = 1 + form.skipped, None
        try:
            for row in rows:
                if row and width is not None and len(row) != width:
                    named = _DELIMITERS[form.delimiter] if form.delimiter in _DELIMITERS else repr(form.delimiter)
                    advice = (
                        f", e.g. put quotation marks around a field that contains {named}" if len(row) > width else ""
                    )
                    return (
                        f"{path}: line {begins} has {len(row)} fields, but the header has {width}; fix the line{advice}"
                    )
                longest = max(map(len, row), default=0)
                if longest > LONGEST_TEXT:
                    return (
                        f"{path}: line {begins} has a field of {longest:,} characters, more than the limit of "
                        f"{LONGEST_TEXT:,}; shorten the field"
                    )
                width = width or len(row)
                begins = rows.line_num + 1 + form.skipped
        except csv.Error as error:
            if "unexpected end of data" in str(error):
                return (
                    f"{path}: line {begins} has an opening quotation mark without a closing quotation mark; add or "
                    "remove a quotation mark"
                )
    return None
