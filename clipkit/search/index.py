"""Index: search the images of a dataset by words, images and columns."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clipkit.errors import DataError, UserError
from clipkit.images import ImageLike, Stored
from clipkit.search.engine import is_installed, open_engine
from clipkit.search.hit import Hit, hits_of
from clipkit.search.images import IndexedImages
from clipkit.search.layout import check_content, damaged, file_of, open_array, open_table, read_manifest
from clipkit.search.location import row_at
from clipkit.search.nearest import Exact, Nearest, as_float32, unit_vectors
from clipkit.search.qdrant import QdrantEngine, server
from clipkit.search.query import Term, as_vectors, check_limits, check_vectors, combined, single_text, terms_of
from clipkit.search.query_encoder import QueryEncoder
from clipkit.search.relevance import DEPTH, Calibration, Nulls, calibrations_of, is_short
from clipkit.search.source import CONTENT, IMAGE, POSITION, RESERVED
from clipkit.search.where import rows_where

if TYPE_CHECKING:
    from numpy.typing import ArrayLike
    from PIL.Image import Image
    from torch import Tensor

    from clipkit.models import DualEncoder
    from clipkit.search.onnx_encoder import OnnxEncoder


_LONGEST = 1.01  # largest length of a unit vector after rounding to half precision, with a margin


class Index:
    """An index that `clipkit.embed` wrote.

    Args:
        path: folder of the index.
        model: model that encodes queries: a name, the folder of an ONNX export, or a model returned by `clipkit.load`.
            None: the model that made the index. The model is loaded for the first query.
        check: True: compare the checksums of whole files. False: compare only the first 32 MiB of each file.

    Raises:
        DataError: the folder is not a complete index, or a file is damaged.

    Example:
        >>> index = clipkit.Index("photos.index")                                          # doctest: +SKIP
        >>> index.search("two dogs in snow", minus="a person", where="year > 2020")[0].image   # doctest: +SKIP
        'images/12.jpg'
    """

    def __init__(
        self, path: str | Path, *, model: "str | Path | DualEncoder | None" = None, check: bool = False
    ) -> None:
        self.path = Path(path)
        self.manifest = read_manifest(self.path)
        check_content(self.path, self.manifest, whole=check)
        self.encoder = QueryEncoder(self.path, self.manifest, model)
        self.features: NDArray[np.float16] = open_array(
            self.path, self.manifest, "features", np.float16, (len(self), self.manifest["width"])
        )
        """(N, D) unit-length features of the images, memory-mapped."""

    def __len__(self) -> int:
        return int(self.manifest["rows"])

    @cached_property
    def nearest(self) -> Nearest:
        """Search engine of the index: Qdrant, FAISS or exact search.

        Qdrant is used if the index was copied to Qdrant and QDRANT_URL is set. Otherwise, FAISS is used if it is
        installed and the index has a FAISS file.
        """
        if server() and "collection" in (engine := self.manifest.get("engine") or {}):
            return QdrantEngine(self.features, str(engine["collection"]))
        if "engine" in self.manifest["files"] and is_installed():
            return open_engine(self.features, file_of(self.path, self.manifest, "engine"))
        return Exact(self.features)

    @cached_property
    def rows(self) -> pa.Table:
        """Table with one row per image.

        The columns are image (its location), content (SHA-256 of the file), position (in the source), captions, and all
        other columns of the source.

        Raises:
            DataError: the file is damaged.
        """
        return open_table(self.path, self.manifest, "rows", len(self), RESERVED)

    @cached_property
    def texts(self) -> list[str]:
        """Distinct captions of all images."""
        count = int(self.manifest.get("texts", 0))
        if not count:
            return []
        return list(
            open_table(self.path, self.manifest, "texts", count, {"text": pa.large_string()})["text"].to_pylist()
        )

    @cached_property
    def text_features(self) -> NDArray[np.float16]:
        """(T, D) unit-length features of `texts`, memory-mapped."""
        if not self.manifest.get("texts"):
            return np.zeros((0, self.features.shape[1]), np.float16)
        shape = (int(self.manifest["texts"]), self.features.shape[1])
        return open_array(self.path, self.manifest, "textfeatures", np.float16, shape)

    @property
    def model(self) -> "DualEncoder | OnnxEncoder":
        """The whole model that encodes queries.

        A search does not need the whole model, and loads only the tower that it needs. An ONNX export returns NumPy
        arrays instead of tensors.

        Raises:
            ModelError: the model cannot be loaded.
            DataError: the model is not the one that made the index.
        """
        return self.encoder.model

    def search(
        self,
        query: str | Sequence[str] | Mapping[str, float] | None = None,
        *,
        images: ImageLike | Sequence[ImageLike] = (),
        minus: str | Sequence[str] = (),
        like: str | int | Sequence[str | int] = (),
        where: str | None = None,
        k: int = 20,
        precision: float | None = None,
    ) -> list[Hit]:
        """Return the best images for a query, the best first.

        The query can combine texts and images. Its vector is the weighted sum of their features, scaled to unit length.

        Args:
            query: a text, several texts, or a dict from texts to weights. The text "0.5 * snow" has the weight 0.5.
            images: images that results should resemble.
            minus: texts that results should not match.
            like: images of the index that results should resemble, by location or row. These images are not returned.
            where: filter on columns (grammar: `clipkit.search.where`).
            k: maximum number of results.
            precision: share of the returned results that should be relevant, e.g. 0.9, averaged over many queries.
                Results that are probably not relevant are left out. None: return the best k images.

        Raises:
            DataError: the query is empty, an image cannot be read, or the filter is invalid.
            UserError: `k` or `precision` is not valid.
        """
        several = [images] if isinstance(images, str | Path | Stored) or not isinstance(images, Sequence) else images
        rows = [self.row_of(one) for one in ([like] if isinstance(like, str | int) else like)]
        terms = terms_of(query, several, minus, rows)
        words = single_text(terms)
        mask = self._check_options(where, k, precision, words)  # before the model is loaded, which takes seconds
        vector = self.vector_of(terms)
        return self._ranked(vector[None], mask, k, precision, rows, words)[0]

    def search_many(
        self, queries: Iterable[str], *, where: str | None = None, k: int = 20, precision: float | None = None
    ) -> list[list[Hit]]:
        """Return the best images for each of several texts. The other arguments are those of `search`."""
        several = [terms_of(query, (), (), ()) for query in queries]
        if not several:
            return []
        texts = [str(terms[0].what) for terms in several]
        mask = self._check_options(where, k, precision, texts)
        return self._ranked(self.encoder.encode_text(texts), mask, k, precision, (), texts)

    def search_vectors(
        self,
        vectors: "ArrayLike | Tensor",
        *,
        where: str | None = None,
        k: int = 20,
        precision: float | None = None,
        without: Sequence[int] = (),
        words: Sequence[str] | None = None,
    ) -> list[list[Hit]]:
        """Return the best images for each of several query vectors, e.g. features of texts or images.

        Args:
            vectors: (Q, D) features of the queries, as an array or a tensor.
            where: filter on columns, as for `search`.
            k: maximum number of results per query.
            precision: share of the returned results that should be relevant, as for `search`. It needs `words`.
            without: rows that are not returned.
            words: texts of the queries. With texts, each result has a probability of being relevant.

        Raises:
            DataError: the vectors are not a (Q, D) matrix of numbers, or a vector is zero or not finite.
            UserError: `k` or `precision` is not valid.
        """
        return self._ranked(
            as_vectors(vectors), self._check_options(where, k, precision, words), k, precision, without, words
        )

    def _ranked(
        self,
        vectors: NDArray[np.float32],
        mask: NDArray[np.bool_] | None,
        k: int,
        precision: float | None,
        without: Sequence[int],
        words: Sequence[str] | None,
    ) -> list[list[Hit]]:
        """Return the best images for each query vector; other arguments as for `search_vectors`.

        Args:
            mask: (N,) mask of the rows that are searched; None: all.
        """
        check_vectors(vectors, self.features.shape[1])
        if without:
            mask = np.ones(len(self), bool) if mask is None else mask
            mask[list(without)] = False
        allowed = None if mask is None else np.flatnonzero(mask)
        calibrations = self.calibrations if words is not None else {}
        deep = max(k, DEPTH) if calibrations else k
        scores, found = self.nearest.top(vectors, deep, allowed)
        self._check_lengths(np.abs(scores) / np.linalg.norm(vectors, axis=1, keepdims=True))
        results = []
        for number, (row_scores, rows) in enumerate(zip(scores, found, strict=True)):
            relevance, least = None, 0.0
            if calibrations and words is not None and len(rows):
                kind = "short" if is_short(words[number]) else "long"
                calibration = calibrations.get(kind) or next(iter(calibrations.values()))
                total = len(self) if allowed is None else len(allowed)
                null = self.nulls.of_query(vectors[number], allowed)
                relevance = calibration.probabilities(self.nulls.evidence(row_scores, rows, null, total))
                least = 0.0 if precision is None else calibration.threshold(precision)
            shown = [n for n in range(min(k, len(rows))) if relevance is None or relevance[n] >= least]
            results.append(hits_of(self.rows, row_scores, rows, relevance, shown))
        return results

    def _check_options(
        self, where: str | None, k: int, precision: float | None, words: Sequence[str] | None
    ) -> NDArray[np.bool_] | None:
        """Check the options of a search, and return a mask of the rows that pass the filter; None without a filter."""
        check_limits(k, precision)
        if precision is not None and (words is None or not self.calibrations):
            why = "works only for a query of a single text" if words is None else "needs more captions in the index"
            raise UserError(f"precision {precision} {why}; leave out precision")
        return None if where is None else rows_where(self.rows, where)

    def unit_features(self, rows: slice | NDArray[np.int64], kind: str = "features") -> NDArray[np.float32]:
        """Return (…, D) features of images or captions in float32, scaled to unit length.

        Args:
            rows: row numbers, of any shape, or a slice of the rows.
            kind: "features" for images, "textfeatures" for distinct captions.

        Raises:
            DataError: the features are damaged.
        """
        features = as_float32((self.features if kind == "features" else self.text_features)[rows])
        self._check_lengths(np.linalg.norm(features, axis=-1), kind)
        return unit_vectors(features)

    def _check_lengths(self, lengths: NDArray[np.float32], kind: str = "features") -> None:
        """Raise DataError if the norm of a feature is greater than 1. Such a feature would win many searches."""
        if not (lengths <= _LONGEST).all():
            raise damaged(
                file_of(self.path, self.manifest, kind),
                f"it contains a feature with norm {lengths.max():.3g} instead of 1",
            )

    @cached_property
    def calibrations(self) -> dict[str, Calibration]:
        """Models of the probability that a result is relevant, for "short" (one word) and "long" queries.

        The dict is empty if the index has few or no captions.
        """
        return calibrations_of(self.manifest) if "hubs" in self.manifest["files"] else {}

    @cached_property
    def nulls(self) -> Nulls:
        """Score distributions of images and texts that do not match, for computing the relevance of results."""
        return Nulls(self.features, open_array(self.path, self.manifest, "hubs", np.float32, (len(self), 2)))

    def vector_of(self, terms: Sequence[Term]) -> NDArray[np.float32]:
        """Encode the parts of a query, and combine them into one (D,) unit vector."""
        features = np.empty((len(terms), self.features.shape[1]), np.float32)
        encoders: dict[str, Callable[[list[Any]], NDArray[np.float32]]] = {
            "text": self.encoder.encode_short,
            "image": self.encoder.encode_image,
            "row": lambda rows: self.unit_features(np.array(rows)),
        }
        for kind, encode in encoders.items():
            positions = [position for position, term in enumerate(terms) if term.kind == kind]
            if positions:
                features[positions] = encode([terms[position].what for position in positions])
        return combined(features, [term.weight for term in terms])

    @cached_property
    def _images(self) -> IndexedImages:
        return IndexedImages(self.manifest["source"], str(self.path))

    def image(self, row: int) -> "Image":
        """Open the image of a row from its source, as an RGB PIL image.

        Raises:
            DataError: the image is missing or has changed, or the source was a stream or a Python object.
        """
        values = self.rows.slice(self.row_of(row), 1).to_pylist()[0]
        return self._images.open(values[IMAGE], values[POSITION], values[CONTENT])

    def export(self, to: str, out: str | Path) -> None:
        """Write the rows and features in the format of another library.

        Args:
            to: numpy, parquet or lancedb.
            out: path of the new Parquet file, or of the new folder for numpy and lancedb.

        Raises:
            UserError: the format is unknown, its library is missing, the index is damaged, or the path exists or is not
                writable.

        Example:
            >>> clipkit.Index("photos.index").export("parquet", "photos.parquet")    # doctest: +SKIP
        """
        from clipkit.search.export import export

        export(self, to, Path(out))

    def row_of(self, image: str | int) -> int:
        """Return the row of an image in the index.

        Args:
            image: location of the image in the index, the last part of this location, the path of a file with the same
                content, or the row itself.

        Raises:
            DataError: no image of the index matches, or several images match.
        """
        if isinstance(image, int):
            if not 0 <= image < len(self):
                raise DataError(f"{self.path}: has no row {image}; give a row from 0 to {len(self) - 1}")
            return image
        row = row_at(self.rows, image)
        if row is None:
            raise DataError(
                f"{self.path}: has no image with the location {image[:200]}; copy the location from a search result"
            )
        return row
