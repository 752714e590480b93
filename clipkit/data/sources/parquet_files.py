"""Reader of Parquet files: one file, the files of a pattern, or all files in a folder."""

import hashlib
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any
from uuid import uuid4

import pyarrow as pa
from pyarrow import parquet

from clipkit.data.sources.choice import PEEKED, Peek, has_bytes, values_of
from clipkit.data.sources.columns import Rows, Wanted, exists
from clipkit.data.sources.parts import parts_of_split
from clipkit.data.sources.saved import as_data_errors, of_dataset, of_table
from clipkit.data.sources.walk import matching
from clipkit.errors import DataError, one_line
from clipkit.files import cache_folder
from clipkit.opening import check_file


def read_parquet_folder(path: str, wanted: Wanted) -> Rows:
    """Read all Parquet files of a folder or, with `?split=NAME`, the files whose names contain NAME.

    Raises:
        DataError: as for `read_parquet`, or the file names contain several splits and none is chosen.
    """
    return _read(path, parts_of_split(path, ".parquet", wanted), wanted)


def read_parquet(path: str, wanted: Wanted) -> Rows:
    """Read Parquet files that contain image paths or the bytes of the images.

    `path` is a file, or a pattern such as part-*.parquet. The type of a column may differ between files. The library
    `datasets` copies image bytes once to its cache, and maps the cache into memory.

    Raises:
        DataError: a file is missing or damaged, or a column is missing.
    """
    found = [] if exists(path) else matching(Path(path))
    return _read(path, found or [Path(path)], wanted)


def _read(path: str, files: Sequence[Path], wanted: Wanted) -> Rows:
    folder = files[0].parent
    try:
        for file in files:
            check_file(file)
        schemas = [parquet.read_schema(file) for file in files]
        names = wanted.columns_among(path, schemas[0].names, _peek(files[0], schemas[0]), folder)
        columns = list(dict.fromkeys(names.values()))
        for file, schema in zip(files, schemas, strict=True):
            missing = next((name for name in columns if name not in schema.names), None)
            if missing is not None:
                raise DataError(
                    f"{path}: {file.name} has no column {missing}, which {files[0].name} has; add this column"
                )
            parquet.ParquetFile(file).close()  # check each file before `datasets` opens it
        unified = _unified(path, schemas, columns)
        if "image" not in names or not any(has_bytes(schema.field(names["image"]).type) for schema in schemas):
            tables = [parquet.read_table(file, columns=columns).cast(unified) for file in files]
            return of_table(path, folder, pa.concat_tables(tables), names)
        local = [_plain_file(file.resolve(), schema, columns) for file, schema in zip(files, schemas, strict=True)]
    except FileNotFoundError:
        raise DataError(f"{path}: file not found; paths are relative to the working directory") from None
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:  # a column name may not be UTF-8
        raise DataError(
            f"{path}: cannot be read as Parquet ({one_line(error)}); download or create the file again"
        ) from None
    from datasets import Dataset, Features, Image

    with as_data_errors(path):
        recorded = Features.from_arrow_schema(unified)
        features = Features({name: Image() if name == names["image"] else recorded[name] for name in columns})
        return of_dataset(path, Dataset.from_parquet(local, columns=columns, features=features), wanted, names)


def _peek(file: Path, schema: pa.Schema) -> Peek:
    def peek(name: str) -> Sequence[Any]:
        if has_bytes(schema.field(name).type):
            return [b""]
        with parquet.ParquetFile(file) as opened:
            batch = next(opened.iter_batches(PEEKED, columns=[name]), None)
        return [] if batch is None else values_of(batch.column(0))

    return peek


def _unified(path: str, schemas: Sequence[pa.Schema], columns: Sequence[str]) -> pa.Schema:
    """Return a schema to which the columns of all files can be cast, with the metadata of the first file."""
    try:
        plain = [pa.schema([(name, _plain_type(schema.field(name).type)) for name in columns]) for schema in schemas]
        if all(part == plain[0] for part in plain):
            return plain[0].with_metadata(schemas[0].metadata)
        # Images may be bytes in some files and structs with bytes and path in others; `datasets` converts both.
        others = [pa.schema([field for field in part if not has_bytes(field.type)]) for part in plain]
        unified = pa.unify_schemas(others, promote_options="permissive")
    except pa.ArrowException as error:
        raise DataError(
            f"{path}: the files have columns of different types ({one_line(error)}); use the same types in all files"
        ) from None
    fields = [unified.field(name) if name in unified.names else plain[0].field(name) for name in columns]
    return pa.schema(fields, schemas[0].metadata)


def _plain_type(kind: pa.DataType) -> pa.DataType:
    """Return the plain Arrow type for a type that `datasets` does not support: dictionary, view or fixed size."""
    if pa.types.is_dictionary(kind):
        return _plain_type(kind.value_type)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return pa.large_string()
    if has_bytes(kind) and not pa.types.is_struct(kind):
        return pa.large_binary() if _reads_large_binary() else pa.binary()
    return kind


@cache
def _reads_large_binary() -> bool:
    """Return whether the installed `datasets` can read image bytes of the Arrow type large_binary."""
    from datasets import Image

    try:
        Image().cast_storage(pa.array([b""], pa.large_binary()))
    except pa.ArrowException:
        return False
    return True


def _plain_file(file: Path, schema: pa.Schema, columns: Sequence[str]) -> str:
    """Return the path of a file that `datasets` can read: the given file, a link to it, or a converted copy.

    A link avoids characters such as `*` and `:`, which `datasets` would read as a pattern or a URL. A copy avoids
    column types that `datasets` does not support.
    """
    kinds = [schema.field(name).type for name in columns]
    is_plain = all(kind in (_plain_type(kind), pa.string(), pa.binary()) for kind in kinds)
    if is_plain and not set("*?[]{}:!") & set(str(file)):
        return str(file)
    status = file.stat()
    state = "" if is_plain else f" {status.st_size} {status.st_mtime_ns} {columns}"
    copy = cache_folder() / "names" / f"{hashlib.sha256(f'{file}{state}'.encode()).hexdigest()[:32]}.parquet"
    copy.parent.mkdir(parents=True, exist_ok=True)
    if is_plain:
        with suppress(FileExistsError):
            copy.symlink_to(file)
    elif not copy.exists():
        _convert(file, columns, copy)
    return str(copy)


def _convert(file: Path, columns: Sequence[str], copy: Path) -> None:
    temporary = copy.with_name(f"{copy.name}.{uuid4().hex}")
    try:
        with parquet.ParquetFile(file) as opened:
            schema = opened.schema_arrow
            plain = pa.schema([(name, _plain_type(schema.field(name).type)) for name in columns], schema.metadata)
            with parquet.ParquetWriter(temporary, plain) as writer:
                for batch in opened.iter_batches(1000, columns=list(columns)):
                    writer.write_table(pa.Table.from_batches([batch]).select(columns).cast(plain))
        temporary.replace(copy)
    finally:
        temporary.unlink(missing_ok=True)
