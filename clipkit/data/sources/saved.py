"""Parquet files, and data sets of Hugging Face's `datasets`: by name, or saved in a folder."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pyarrow import parquet

from clipkit.data.sequences import Files, Strings
from clipkit.data.sources.columns import Rows, Wanted
from clipkit.errors import DataError, UnreachedError, one_line
from clipkit.images import Stored

if TYPE_CHECKING:
    from datasets import Dataset


def read_parquet(path: str, wanted: Wanted) -> Rows:
    """Rows of Parquet files, which hold image paths or the images' own bytes.

    Bytes are not read into memory: `datasets` lays them out once in its cache, from where they are mapped.

    Args:
        path: a file, or several as part-*.parquet.
        wanted: the roles.

    Raises:
        DataError: no such file, one is damaged, or a column is missing.
    """
    files = sorted(str(file) for file in Path(path).parent.glob(Path(path).name)) or [path]
    try:
        schema = parquet.read_schema(files[0])
        names = wanted.columns_among(path, schema.names)
        if "image" not in names or _is_string(schema.field(names["image"]).type):
            table = pa.concat_tables([parquet.read_table(file, columns=list(names.values())) for file in files])
            return _of_table(path, Path(files[0]).parent, table, names)
        for file in files:  # whole, before `datasets` meets them
            parquet.ParquetFile(file).close()
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file; paths are relative to the working directory") from None
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:  # the last from the name of a column
        raise DataError(f"{path}: cannot be read as Parquet ({one_line(error)}); fetch or write it again") from None
    from datasets import Dataset

    with _as_data_errors(path):
        return of_dataset(path, Dataset.from_parquet([str(Path(file).resolve()) for file in files]), wanted)


def read_saved(path: Path, wanted: Wanted) -> Rows:
    """Rows of a folder that `save_to_disk` wrote.

    Raises:
        DataError: it holds several splits and none was named as folder?split=train, or cannot be read.
    """
    import datasets

    with _as_data_errors(str(path)):
        saved = datasets.load_from_disk(str(path))
        if isinstance(saved, datasets.DatasetDict):
            saved = _split_of(str(path), saved, wanted.options.get("split"), f"{path}?split=")
        return of_dataset(str(path), saved, wanted)


def read_hub(name: str, wanted: Wanted) -> Rows:
    """Rows of `hf:NAME[:SPLIT]`.

    Raises:
        DataError: it is not there, cannot be reached, or holds several splits and none was named.
    """
    import datasets

    repository, _, split = name.removeprefix("hf:").partition(":")
    repository, _, revision = repository.partition("@")
    with _as_data_errors(name):
        found = datasets.load_dataset(repository, revision=revision or None)
        dataset = _split_of(name, found, split or wanted.options.get("split"), f"hf:{repository}:")
        return of_dataset(name, dataset, wanted)


class _as_data_errors:  # reads as what it does
    """What `datasets` raises for what a user gave, as one line."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Exception) and not isinstance(error, DataError):
            cause = error.__cause__ or error
            own = UnreachedError if self.name.startswith("hf:") else DataError
            raise own(f"{self.name}: cannot be read ({type(cause).__name__}: {one_line(cause)}); check the name, "
                      "the network, or fetch it again") from None  # fmt: skip


def _split_of(name: str, splits: Any, split: str | None, prefix: str) -> "Dataset":
    if split is None and len(splits) == 1:
        split = next(iter(splits))
    if split not in splits:
        given = f"has no split {split}" if split else "has several splits"
        raise DataError(f"{name}: {given}; take one of {', '.join(prefix + str(own) for own in splits)}")
    return splits[split]


def of_dataset(name: str, dataset: "Dataset", wanted: Wanted) -> Rows:
    """Rows of an indexable data set."""
    from datasets import ClassLabel

    if not len(dataset):
        raise DataError(f"{name}: has no rows; there is nothing to read")
    names = wanted.columns_among(name, dataset.column_names)
    for own in names.values():
        # Its files are mapped as they are: one wrong offset in them would end the process.
        dataset.data.table.column(own).validate(full=True)
    arrow = dataset.with_format("arrow")
    texts: list[str] = [own for role, own in names.items() if role != "image"]
    label = names.get("label")
    classes = dataset.features[label] if label is not None else None
    table = arrow.select_columns(texts)[:] if texts else pa.table({})
    if label is not None and isinstance(classes, ClassLabel):
        numbers = table[label].to_pylist()
        table = table.set_column(table.column_names.index(label), label, pa.array([classes.names[n] for n in numbers]))
    if "image" not in names:
        return _of_table(name, Path(), table, names)
    column = arrow.select_columns([names["image"]])
    kind = column.features.arrow_schema.field(0).type
    if _is_string(kind):
        return _of_table(name, Path(), table.append_column(names["image"], column[:][names["image"]]), names)
    if not (_is_bytes(kind) or (pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0)):
        raise DataError(f"{name}: its column {names['image']} holds {kind}, neither paths nor images; name another")
    rows = _of_table(name, Path(), table, {role: own for role, own in names.items() if role != "image"})
    images = InTable.all_of(name, column)
    return Rows(name, rows.columns, images, images.keys, names)


def _of_table(name: str, folder: Path, table: pa.Table, names: dict[str, str]) -> Rows:
    columns = {role: _texts(name, own, table[own]) for role, own in names.items()}
    if not all(len(column) for column in columns.values()):
        raise DataError(f"{name}: has no rows; there is nothing to read")
    images = columns.pop("image", None)
    return Rows(name, columns, None if images is None else Files.of(folder, images), images, names)


def _texts(name: str, own: str, column: Any) -> pa.Array:
    kind = column.type
    try:
        column.validate(full=True)  # Parquet is read without a look at whether its strings are UTF-8
        column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
        if _is_string(kind) or pa.types.is_integer(kind):
            return pc.fill_null(column.cast(pa.large_string()), "")
        lists = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
        if lists and _is_string(kind.value_type):
            return column.cast(pa.large_list(pa.large_string()))
    except pa.ArrowException as error:
        raise DataError(f"{name}: its column {own} is damaged ({one_line(error)}); fetch or write it again") from None
    raise DataError(f"{name}: its column {own} holds {kind}, neither text nor lists of texts; name another")


def _is_string(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):  # as a table's categories are
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


class TableImages(Sequence[Stored | Path]):
    """The images in a column of a data set, a row each, read when they are asked for.

    Args:
        source: for messages.
        column: the data set of this column alone, in Arrow's format.
        names: of the images' files, "" where the data set does not say.
        sizes: in bytes; -1 where the file lies elsewhere.
    """

    def __init__(self, source: str, column: Any, names: Strings, sizes: NDArray[np.int64]) -> None:
        self.source = source
        self.column = column
        self.names = names
        self.sizes = sizes

    @property
    def keys(self) -> pa.Array:
        """Equal where name and size are; an image without a name is like no other."""
        return pa.array(
            f"{name}\0{size}" if name else f"\0{row}"
            for row, (name, size) in enumerate(zip(self.names, self.sizes.tolist(), strict=True))
        )

    def __len__(self) -> int:
        return len(self.sizes)

    @overload
    def __getitem__(self, place: int) -> Stored | Path: ...
    @overload
    def __getitem__(self, place: slice) -> list[Stored | Path]: ...
    def __getitem__(self, place: int | slice) -> Stored | Path | list[Stored | Path]:
        if isinstance(place, slice):
            return [self[row] for row in range(*place.indices(len(self)))]
        row = range(len(self))[int(place)]
        if self.sizes[row] < 0 and self.names[row]:
            return Path(self.names[row])
        return InTable(self, row)


@dataclass(frozen=True, slots=True)
class InTable(Stored):
    """An image in a row of a table."""

    table: TableImages
    row: int

    @classmethod
    def all_of(cls, source: str, column: "Dataset") -> TableImages:
        """Every row's image; `column` has one column, in Arrow's format."""
        values = column[:][column.column_names[0]]
        if pa.types.is_struct(values.type):
            content = pc.struct_field(values, "bytes")
            paths = pc.struct_field(values, "path") if values.type.get_field_index("path") >= 0 else None
        else:
            content, paths = values, None
        if pa.types.is_null(content.type):  # not one row has bytes
            content = content.cast(pa.binary())
        sizes = pc.fill_null(pc.binary_length(content), -1).to_numpy().astype(np.int64)
        named = [""] * len(sizes) if paths is None else pc.fill_null(paths, "").to_pylist()
        return TableImages(source, column, Strings.of(named), sizes)

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
