"""Search of an index with a Qdrant server, which several machines can share.

The features of the index are copied to a collection of the server. The name of the collection contains the checksum of
the features, so a reader of the index never searches other features. The scores of the candidates that Qdrant finds are
computed again, exactly. Rows and captions stay in the index, and filters are applied there.

The environment variable QDRANT_URL gives the address of the server. The index does not contain the address, so that an
index from another person cannot make clipkit connect to a server.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipkit.errors import DataError, UserError, one_line
from clipkit.extras import check_extra
from clipkit.search.engine import LEAST_ROWS
from clipkit.search.nearest import Exact, best_of, scores_of

NAME = "Qdrant"
_BATCH = 1024
_CANDIDATES = 200


def server() -> str | None:
    """Return the value of the environment variable QDRANT_URL, or None if it is not set.

    The value is the address of the server, or a folder for the local mode of the Qdrant client.
    """
    return os.environ.get("QDRANT_URL") or None


def check_qdrant() -> None:
    """Check that QDRANT_URL is set and the Qdrant client is installed.

    Raises:
        UserError: a check fails.
    """
    if server() is None:
        raise UserError(
            "--qdrant: the environment variable QDRANT_URL is not set; set QDRANT_URL, e.g. to http://localhost:6333"
        )
    check_extra("qdrant", ["qdrant_client"])


def copy_of(features: NDArray[np.float16], sha256: str) -> str:
    """Copy features to a collection of the Qdrant server, and return the name of the collection.

    If the server already has a complete collection of the features, nothing is copied.

    Args:
        features: (N, D) features of the images.
        sha256: checksum of the features.

    Raises:
        DataError: the client is not installed, or the server does not answer.
    """
    collection = f"clipkit-{sha256[:32]}"
    with _client() as client:
        from qdrant_client import models

        if client.collection_exists(collection):
            if client.count(collection).count == len(features):
                return collection
            client.delete_collection(collection)
        vectors = models.VectorParams(size=features.shape[1], distance=models.Distance.DOT, on_disk=True)
        client.create_collection(collection, vectors_config=vectors)
        for start in range(0, len(features), _BATCH):
            part = features[start : start + _BATCH].astype(np.float32)
            numbers = list(range(start, start + len(part)))
            client.upsert(collection, models.Batch(ids=numbers, vectors=part.tolist()), wait=True)
    return collection


def remove(collection: str) -> None:
    """Remove a collection from the Qdrant server, if it exists."""
    with _client() as client:
        client.delete_collection(collection)


@contextmanager
def _client() -> Iterator[Any]:
    where = server() or ""
    check_extra("qdrant", ["qdrant_client"], DataError)
    from qdrant_client import QdrantClient

    client = None
    try:
        if "://" in where:
            key = os.environ.get("QDRANT_API_KEY")
            client = QdrantClient(url=where, api_key=key, timeout=60, check_compatibility=False)
        else:
            client = QdrantClient(path=where)
        yield client
    except DataError:
        raise
    except Exception as error:  # errors of httpx, grpc, pydantic and portalocker have no common base
        raise DataError(
            f"{where}: Qdrant failed ({one_line(error)[:200]}); check QDRANT_URL, QDRANT_API_KEY and the server"
        ) from None
    finally:
        if client is not None:
            client.close()


class QdrantEngine:
    """Search with a Qdrant server, or exact search if `rows` selects fewer than 50,000 rows.

    Args:
        features: (N, D) features of the images.
        collection: name of the collection of the features, from `copy_of`.
    """

    name = NAME

    def __init__(self, features: NDArray[np.float16], collection: str) -> None:
        self.features = features
        self.collection = collection
        self.exact = Exact(features)

    def top(
        self, queries: NDArray[np.float32], count: int, rows: NDArray[np.int64] | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return the highest scores and their rows for each query, as specified by `Nearest.top`.

        Raises:
            DataError: the server does not answer, or has lost the collection.
        """
        candidates = max(_CANDIDATES, 4 * count)
        if (rows is not None and len(rows) < LEAST_ROWS) or candidates > len(self.features) or not len(queries):
            return self.exact.top(queries, count, rows)
        with _client() as client:
            from qdrant_client import models

            kept = None if rows is None else models.Filter(must=[models.HasIdCondition(has_id=rows.tolist())])
            requests = [models.QueryRequest(query=query, limit=candidates, filter=kept) for query in queries.tolist()]
            answers = client.query_batch_points(self.collection, requests=requests)
        found = [[point.id for point in answer.points] for answer in answers]
        if any(len(ids) < candidates for ids in found):
            return self.exact.top(queries, count, rows)
        near = np.sort(np.array(found, np.int64), axis=1)
        return best_of(scores_of(self.features, queries, near), near, count)
