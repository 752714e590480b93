"""`--predictions F.parquet`: what each query got, with the scores from which every figure can be computed again."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from clipkit.errors import OutputError
from clipkit.metrics import RetrievalRanks, predicted_labels

_TOP = 10
_ROWS = 1024  # queries written at once


def write_retrieval_predictions(
    file: str | Path,
    ranks: RetrievalRanks,
    image_features: Float[Tensor, "N D"],
    text_features: Float[Tensor, "M D"],
    pictures: Sequence[Any],
    texts: Sequence[str],
) -> None:
    """One row a query, texts first: its right answers with rank and score, and the ten highest-scored answers.

    Answers are rows: of pictures where a text asks, of texts where a picture asks.
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
    with _Writer(file, schema) as writer:
        for kind, own, other, features, candidates, names, rank in (
            ("text", text, image, text_features, image_features, texts, ranks.among_images),
            ("image", image, text, image_features, text_features, pictures, ranks.among_texts),
        ):
            order = own.argsort(stable=True)
            starts = torch.searchsorted(own[order], torch.arange(len(features) + 1)).tolist()
            for first in range(0, len(features), _ROWS):
                scores = features[first : first + _ROWS] @ candidates.T
                top = scores.argsort(dim=1, descending=True, stable=True)[:, :_TOP]
                rows = range(first, first + len(scores))
                right = [order[starts[row] : starts[row + 1]] for row in rows]
                writer.write(
                    {
                        "asks": [kind] * len(rows),
                        "row": list(rows),
                        "query": [str(names[row]) for row in rows],
                        "right": [other[pairs].tolist() for pairs in right],
                        "right_ranks": [rank[pairs].tolist() for pairs in right],
                        "right_scores": [
                            scores[row - first, other[pairs]].tolist() for row, pairs in zip(rows, right, strict=True)
                        ],
                        "top": top.tolist(),
                        "top_scores": scores.gather(1, top).tolist(),
                    }
                )


def write_class_predictions(
    file: str | Path,
    pictures: Sequence[Any],
    scores: Float[Tensor, "N C"],
    labels: Int[Tensor, " N"] | Bool[Tensor, "N C"],
    classes: Sequence[str],
) -> None:
    """One row a picture: its class or classes, the predicted class, and the score of every class, in their order."""
    import pyarrow as pa

    several = labels.ndim == 2
    schema = pa.schema(
        {
            "image": pa.string(),
            "label": pa.list_(pa.string()) if several else pa.string(),
            "predicted": pa.string(),
            "scores": pa.list_(pa.float32()),
        },
        metadata={"classes": "\n".join(classes)},
    )
    with _Writer(file, schema) as writer:
        for first in range(0, len(scores), _ROWS):
            rows = slice(first, min(first + _ROWS, len(scores)))
            own = labels[rows]
            writer.write(
                {
                    "image": [str(picture) for picture in pictures[rows]],
                    "label": [
                        [classes[c] for c in row.nonzero()[:, 0].tolist()] if several else classes[int(row)]
                        for row in own
                    ],
                    "predicted": [classes[c] for c in predicted_labels(scores[rows]).tolist()],
                    "scores": scores[rows].tolist(),
                }
            )


def write_rows(file: str | Path, rows: Sequence[dict[str, Any]]) -> None:
    """Rows with the same keys as a table."""
    import pyarrow as pa

    table = pa.Table.from_pylist(list(rows))
    with _Writer(file, table.schema) as writer:
        writer.write(table.to_pydict())


class _Writer:
    """A Parquet file that has its name only when it is complete."""

    def __init__(self, file: str | Path, schema: Any) -> None:
        self.file = Path(file)
        self.aside = self.file.with_name(self.file.name + ".tmp")
        self.schema = schema

    def __enter__(self) -> "_Writer":
        from pyarrow.parquet import ParquetWriter

        try:
            self.writer = ParquetWriter(self.aside, self.schema, compression="zstd")
        except OSError as error:
            raise OutputError(f"{self.file}: cannot be written ({error.strerror}); give another place") from None
        return self

    def write(self, columns: dict[str, list[Any]]) -> None:
        import pyarrow as pa

        self.writer.write_table(pa.table(columns, schema=self.schema))

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.writer.close()
        if kind is None:
            self.aside.replace(self.file)
        else:
            self.aside.unlink(missing_ok=True)
