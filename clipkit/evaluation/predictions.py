"""Writing of the Parquet file of `--predictions`: the answers to every query, with their scores."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from clipkit.errors import OutputError, one_line
from clipkit.files import replacing
from clipkit.metrics import RetrievalRanks, top_answers

_TOP = 10
_ROWS = 1024  # queries per write


def write_retrieval_predictions(
    file: str | Path,
    ranks: RetrievalRanks,
    image_features: Float[Tensor, "N D"],
    text_features: Float[Tensor, "M D"],
    images: Sequence[Any],
    texts: Sequence[str],
) -> None:
    """Write a Parquet file with one row per query: first all text queries, then all image queries.

    A row contains the correct answers with their ranks and scores, and the ten answers with the highest scores. The
    answers to a text query are positions of images. The answers to an image query are positions of texts.
    """
    import pyarrow as pa

    schema = pa.schema(
        {
            "asks": pa.string(),
            "row": pa.int64(),
            "query": pa.string(),
            "right": pa.list_(pa.int64()),
            "right_ranks": pa.list_(pa.int64()),
            "right_scores": pa.list_(pa.float32()),
            "top": pa.list_(pa.int64()),
            "top_scores": pa.list_(pa.float32()),
        }
    )
    image, text = ranks.pairs.T
    of_texts, of_images = top_answers(image_features, text_features, _TOP)
    with _writing(file, schema) as write:
        for kind, query, answer, (top_scores, top), names, rank in (
            ("text", text, image, of_texts, texts, ranks.among_images),
            ("image", image, text, of_images, images, ranks.among_texts),
        ):
            order = query.argsort(stable=True)
            starts = torch.searchsorted(query[order], torch.arange(len(names) + 1)).tolist()
            for first in range(0, len(names), _ROWS):
                rows = range(first, min(first + _ROWS, len(names)))
                right = [order[starts[row] : starts[row + 1]] for row in rows]
                write(
                    {
                        "asks": [kind] * len(rows),
                        "row": list(rows),
                        "query": [_printable(names[row]) for row in rows],
                        "right": [answer[pairs].tolist() for pairs in right],
                        "right_ranks": [rank[pairs].tolist() for pairs in right],
                        "right_scores": [ranks.scores[pairs].tolist() for pairs in right],
                        "top": top[rows.start : rows.stop].tolist(),
                        "top_scores": top_scores[rows.start : rows.stop].tolist(),
                    }
                )


def write_class_predictions(
    file: str | Path,
    images: Sequence[Any],
    scores: Float[Tensor, "N C"],
    labels: Int[Tensor, " N"] | Bool[Tensor, "N C"],
    classes: Sequence[str],
) -> None:
    """Write a Parquet file with one row per image: the true and predicted classes, and all class scores.

    A class is stored as its position in `classes`, because several classes may have the same name. The class names are
    stored as JSON in the metadata of the schema.
    """
    import pyarrow as pa

    several = labels.ndim == 2
    schema = pa.schema(
        {
            "image": pa.string(),
            "label": pa.list_(pa.int64()) if several else pa.int64(),
            "predicted": pa.int64(),
            "scores": pa.list_(pa.float32()),
        },
        metadata={"classes": json.dumps(list(classes))},
    )
    with _writing(file, schema) as write:
        for first in range(0, len(scores), _ROWS):
            rows = slice(first, min(first + _ROWS, len(scores)))
            part = labels[rows]
            write(
                {
                    "image": [_printable(image) for image in images[rows]],
                    "label": [row.nonzero()[:, 0].tolist() for row in part] if several else part.tolist(),
                    "predicted": scores[rows].argmax(dim=1).tolist(),
                    "scores": scores[rows].tolist(),
                }
            )


def write_rows(file: str | Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write a Parquet file from a list of rows that have the same keys."""
    import pyarrow as pa

    table = pa.Table.from_pylist(list(rows))
    with _writing(file, table.schema) as write:
        write(table.to_pydict())


def write_columns(file: str | Path, columns: Mapping[str, Sequence[Any]], *names: str) -> None:
    """Write a Parquet file with some of the given columns, which must have equal lengths.

    Args:
        columns: all columns by name.
        names: names of the columns to write, in this order.
    """
    rows = zip(*(columns[name] for name in names), strict=True)
    write_rows(file, [dict(zip(names, row, strict=True)) for row in rows])


def _printable(name: object) -> str:
    """Return the name with backslash escapes for characters that UTF-8 cannot encode."""
    return str(name).encode(errors="backslashreplace").decode()


@contextmanager
def _writing(file: str | Path, schema: Any) -> Iterator[Callable[[dict[str, list[Any]]], None]]:
    """Context manager that yields a function for appending rows to a Parquet file.

    The function takes the rows as a dict of columns. The file is written only if the context ends without an error.

    Raises:
        OutputError: the file cannot be written.
    """
    import pyarrow as pa
    from pyarrow.parquet import ParquetWriter

    schema = schema.with_metadata({**(schema.metadata or {}), "clipkit": "predictions"})
    try:
        with replacing(Path(file)) as unfinished, ParquetWriter(unfinished, schema, compression="zstd") as writer:
            yield lambda columns: writer.write_table(pa.table(columns, schema=schema))
    except OSError as error:
        raise OutputError(f"{file}: cannot be written ({one_line(error)}); give another file") from None
