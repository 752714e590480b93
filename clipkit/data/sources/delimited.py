"""Reader of CSV and TSV files."""

import csv
from pathlib import Path

import pyarrow as pa
from pyarrow import csv as arrow_csv

from clipkit.data.sequences import Files
from clipkit.data.sources.columns import Rows, Wanted
from clipkit.errors import DataError, one_line
from clipkit.opening import open_file, open_text


def read_delimited(name: str | Path, wanted: Wanted) -> Rows:
    """Read a CSV file, or a TSV file if its name ends with .tsv. Image paths are relative to the file.

    Raises:
        DataError: the file is missing, empty, not UTF-8 or malformed, or a column is missing; the message names the
            line.
    """
    path = Path(name)
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    try:
        header = _header(path, delimiter)
        names = wanted.columns_among(path, header)
        table = arrow_csv.read_csv(
            path,
            parse_options=arrow_csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
            convert_options=arrow_csv.ConvertOptions(
                include_columns=list(dict.fromkeys(names.values())),
                column_types=dict.fromkeys(names.values(), pa.large_string()),
                strings_can_be_null=False,
            ),
        ).combine_chunks()
    except FileNotFoundError:
        raise DataError(f"{path}: file not found; paths are relative to the working directory") from None
    except UnicodeDecodeError:
        raise DataError(_first_problem(path, delimiter) or f"{path}: is not UTF-8; save it as UTF-8") from None
    except (pa.ArrowException, csv.Error) as error:
        problem = _first_problem(path, delimiter)
        raise DataError(problem or f"{path}: cannot be parsed ({one_line(error)}); fix the file") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the file and its permissions") from None
    if not len(table):
        raise DataError(f"{path}: has a header but no rows; add at least one row")
    columns = {role: _unchunked(table[name]) for role, name in names.items()}
    _check_quotes(path, delimiter, columns)
    paths = columns.pop("image", None)
    images = None if paths is None else Files.of(path.parent, paths)
    return Rows(str(path), columns, images, paths, names)


def _header(path: Path, delimiter: str) -> list[str]:
    with open_text(path, newline="") as file:
        header = next(csv.reader(file, delimiter=delimiter), None)
    if not header:
        raise DataError(f"{path}: is empty; its first line must name the columns, for example image,caption")
    return header


def _unchunked(column: pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)


def _check_quotes(path: Path, delimiter: str, columns: dict[str, pa.Array]) -> None:
    """Raise an error for a quotation mark that is never closed.

    Such a mark would turn the rest of the file into one field.
    """
    if any(len(column[len(column) - 1].as_py()) > 1000 or "\n" in column[len(column) - 1].as_py()
           for column in columns.values()):  # fmt: skip
        problem = _first_problem(path, delimiter)
        if problem is not None:
            raise DataError(problem)


def _first_problem(path: Path, delimiter: str) -> str | None:
    """Return a message about the first malformed line, found by a slow line-by-line reader."""
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
    csv.field_size_limit(max(csv.field_size_limit(), 1 << 30))
    with open_text(path, newline="") as file:
        rows = csv.reader(file, delimiter=delimiter, strict=True)
        begins, width = 1, None
        try:
            for row in rows:
                if row and width is not None and len(row) != width:
                    advice = "; put quotation marks around a field with a comma" if len(row) > width else ""
                    return f"{path}: line {begins} has {len(row)} fields, the header has {width}; fix it{advice}"
                width = width or len(row)
                begins = rows.line_num + 1
        except csv.Error as error:
            if "unexpected end of data" in str(error):
                return f"{path}: line {begins} opens a quotation mark that is never closed; close it"
    return None
