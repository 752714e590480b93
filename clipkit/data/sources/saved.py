"""Readers of datasets of the library `datasets`, from the Hugging Face Hub or from a folder."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from clipkit.data.sequences import Files, Items, Strings
from clipkit.data.sources import choice
from clipkit.data.sources.class_names import named, recorded_classes, whole_numbers
from clipkit.data.sources.columns import Rows, Wanted, name_revision_and_split
from clipkit.data.sources.content import content_keys
from clipkit.errors import DataError, UnreachedError, one_line
from clipkit.images import Stored

if TYPE_CHECKING:
    from datasets import Dataset


def is_saved(name: str) -> bool:
    """Return whether a folder was written by `save_to_disk` of the library `datasets`."""
    return (Path(name) / "state.json").is_file() or (Path(name) / "dataset_dict.json").is_file()


def read_saved(path: str, wanted: Wanted) -> Rows:
    """Read a folder written by `save_to_disk` of the library `datasets`.

    Raises:
        DataError: the folder cannot be read, or has several splits and the option `?split=` does not choose one.
    """
    import datasets

    with as_data_errors(path):
        saved = datasets.load_from_disk(path)
        if isinstance(saved, datasets.DatasetDict):
            saved = _split_of(path, saved, wanted.options.get("split"), f"{path}?split=")
        elif "split" in wanted.options:
            raise DataError(f"{path}: has no splits, so the option split has no effect; remove the option")
        return of_dataset(path, saved, wanted)


def read_hub(name: str, wanted: Wanted) -> Rows:
    """Read a dataset of the Hugging Face Hub, given as `hf:NAME[@REVISION][:SPLIT]`.

    Raises:
        DataError: the dataset has several splits and none is chosen.
        UnreachedError: the Hub cannot be reached or has no such dataset.
    """
    import datasets

    repository, revision, split = name_revision_and_split(name.removeprefix("hf:"))
    with as_data_errors(name):
        found = datasets.load_dataset(repository, revision=revision or None)
        dataset = _split_of(name, found, split or wanted.options.get("split"), f"hf:{repository}:")
        return of_dataset(name, dataset, wanted)


@contextmanager
def as_data_errors(name: str) -> Iterator[None]:
    """Context manager that replaces errors of `datasets` by DataError, or by UnreachedError for data on the Hub."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        cause = error.__cause__ or error
        kind = UnreachedError if name.startswith("hf:") else DataError
        raise kind(
            f"{name}: cannot be read ({type(cause).__name__}: {one_line(cause)}); check the name and the "
            "network, or download the dataset again"
        ) from None


def _split_of(name: str, splits: Any, split: str | None, prefix: str) -> "Dataset":
    if split is None and len(splits) == 1:
        split = next(iter(splits))
    if split not in splits:
        given = f"has no split {split}" if split else "has several splits"
        raise DataError(f"{name}: {given}; use one of {', '.join(prefix + str(name) for name in splits)}")
    return splits[split]


def of_dataset(name: str, dataset: "Dataset", wanted: Wanted, names: dict[str, str] | None = None) -> Rows:
    """Return the rows of a dataset of the library `datasets`.

    `name` is the name of the source, for messages. `names` maps each role to a column; None: find the columns by name.
    """
    if not len(dataset):
        raise DataError(f"{name}: has no rows; add at least one row")
    names = names or wanted.columns_among(name, dataset.column_names, choice.of_table(dataset.data.table))
    for column in names.values():
        # `datasets` does not check memory-mapped files; a wrong offset in them would crash the process.
        dataset.data.table.column(column).validate(full=True)
    arrow = dataset.with_format("arrow")
    texts: list[str] = [column for role, column in names.items() if role != "image"]
    table = arrow.select_columns(texts)[:] if texts else pa.table({})
    table = table.replace_schema_metadata(dataset.features.arrow_schema.metadata)
    if "image" not in names:
        return of_table(name, Path(), table, names)
    image = names["image"]
    column_of_images = arrow.select_columns([image])
    kind = column_of_images.features.arrow_schema.field(0).type
    if _is_string(kind):
        return of_table(name, Path(), table.append_column(image, column_of_images[:][image]), names)
    if not choice.has_bytes(kind):
        raise DataError(
            f"{name}: column {image} has the type {kind}, but must contain paths or images; give another column"
        )
    rows = of_table(name, Path(), table, {role: column for role, column in names.items() if role != "image"})
    # The row number of an image is unique only within its split and column.
    chosen = [f"{option}={wanted.options[option]}" for option in ("split", "image") if option in wanted.options]
    images = InTable.all_of("?".join([name, *(["&".join(chosen)] if chosen else [])]), column_of_images)
    return Rows(name, rows.columns, images, images.keys, names, classes=rows.classes)


def of_table(name: str, folder: Path, table: pa.Table, names: dict[str, str]) -> Rows:
    """Return the rows of an Arrow table. Image paths are relative to `folder`."""
    classes = recorded_classes(table.schema.metadata, names.get("label"))
    if classes is not None and not _is_numeric(whole_numbers(table[names["label"]]).type):
        classes = None
    columns = {role: _texts(name, column, table[column]) for role, column in names.items() if role != "label"}
    if "label" in names:
        label = whole_numbers(table[names["label"]])
        texts = named(name, label, classes) if classes is not None else _texts(name, names["label"], label, None)
        columns["label"] = texts
    if not all(len(column) for column in columns.values()):
        raise DataError(f"{name}: has no rows; add at least one row")
    images = columns.pop("image", None)
    return Rows(name, columns, None if images is None else Files.of(folder, images), images, names, classes=classes)


def _texts(name: str, column_name: str, column: Any, default: str | None = "") -> pa.Array:
    """Return a column as strings or lists of strings; null strings become `default`."""
    kind = column.type
    try:
        column.validate(full=True)  # the reader of Parquet files does not check that strings are UTF-8
        column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
        if _is_string(kind) or pa.types.is_integer(kind) or pa.types.is_null(kind):
            texts = column.cast(pa.large_string())
            return texts if default is None else pc.fill_null(texts, default)
        lists = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
        if lists and _is_string(kind.value_type):
            return column.cast(pa.large_list(pa.large_string()))
    except pa.ArrowException as error:
        raise DataError(
            f"{name}: column {column_name} is damaged ({one_line(error)}); download or create the file again"
        ) from None
    raise DataError(
        f"{name}: column {column_name} has the type {kind}, but must contain texts or lists of texts; give "
        "another column"
    )


def _is_string(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):  # categories of pandas
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _is_numeric(kind: pa.DataType) -> bool:
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return bool(pa.types.is_integer(kind.value_type if is_list else kind))


class TableImages(Items[Stored | Path]):
    """Images in a column of a dataset, one per row; an image is read when it is accessed.

    Args:
        source: name of the dataset, for messages.
        column: dataset in Arrow format that contains only this column.
        names: names of the image files; "" if unknown.
        sizes: sizes in bytes; -1 for an image that is not stored in the table.
        keys: values that are equal for rows with the same image (see `content_keys`).
    """

    def __init__(self, source: str, column: Any, names: Strings, sizes: NDArray[np.int64], keys: pa.Array) -> None:
        self.source = source
        self.column = column
        self.names = names
        self.sizes = sizes
        self.keys = keys

    def __len__(self) -> int:
        return len(self.sizes)

    def _at(self, position: int) -> Stored | Path:
        if self.sizes[position] < 0 and self.names[position]:
            return Path(self.names[position])
        return InTable(self, position)


@dataclass(frozen=True, slots=True)
class InTable(Stored):
    """Image that is stored in a row of a table."""

    table: TableImages
    row: int

    @classmethod
    def all_of(cls, source: str, column: "Dataset") -> TableImages:
        """Return the images of all rows of a dataset in Arrow format that contains only the image column."""
        values = column[:][column.column_names[0]]
        if pa.types.is_struct(values.type):
            content = pc.struct_field(values, "bytes")
            paths = pc.struct_field(values, "path") if values.type.get_field_index("path") >= 0 else None
        else:
            content, paths = values, None
        if pa.types.is_null(content.type):  # no row has bytes
            content = content.cast(pa.binary())
        sizes = pc.fill_null(pc.binary_length(content), -1).to_numpy().astype(np.int64)
        file_names = [""] * len(sizes) if paths is None else pc.fill_null(paths, "").to_pylist()
        return TableImages(source, column, Strings.of(file_names), sizes, content_keys(content, file_names))

    @property
    def name(self) -> str:
        return Path(self.table.names[self.row]).name or f"row {self.row + 1}"

    @property
    def size(self) -> int:
        return int(self.table.sizes[self.row])

    def __str__(self) -> str:
        return f"{self.table.source}, row {self.row + 1}" + f" ({self.name})" * bool(self.table.names[self.row])

    def read_bytes(self) -> bytes:
        try:
            value = self.table.column[self.row].column(0)[0].as_py()
        except (pa.ArrowException, ValueError) as error:
            raise OSError(one_line(error)) from None
        content = value["bytes"] if isinstance(value, dict) else value
        if not isinstance(content, bytes):
            raise OSError("the row has no image")
        return content
