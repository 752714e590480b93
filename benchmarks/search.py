"""Compare search engines on an index's features, multiplied, as JSON: recall@10, latency, build time and memory.

    pip install faiss-cpu lancedb
    python benchmarks/search.py dev.index FOLDER [--rows 100000] [--engines exact,faiss-ivf]

Rows are made from the images of the index: sums of two random images, weighted 1 and 0 … 0.8, with noise of the
features' covariance at half of its size, of unit length and stored in half precision. Queries are the features of the
captions, one at a time. Recall is against exact search in float32 over the stored features. `rerank` means that the
engine gives 200 candidates, which are compared exactly. `cpu_p50_ms` is the processor time of a query, which other
work on the machine changes least. Each engine runs in a process of its own; `resident_mb` is
its peak without the memory-mapped features where the system tells them apart.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from clipkit.search import Index
from clipkit.search.nearest import Exact

_K, _CANDIDATES, _QUERIES = 10, 200, 200
_BLOCK = 50_000
ENGINES = ("exact", "exact-with-torch", "bits", "faiss-flat", "faiss-ivf", "lancedb")
Search = Callable[[NDArray[np.float32]], NDArray[np.int64]]


def make(index: Index, folder: Path, rows: int) -> None:
    """Write features.npy, queries.npy and answers.npy, unless they exist."""
    if (folder / "answers.npy").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    real = index.features.astype(np.float32)
    factor = np.linalg.cholesky(np.cov(real.T) + 1e-6 * np.eye(real.shape[1])).astype(np.float32).T
    file = folder / "features.npy"
    features = np.lib.format.open_memmap(file, "w+", np.float16, (rows, real.shape[1]))
    for start in range(0, rows, _BLOCK):
        count = min(_BLOCK, rows - start)
        first, second = generator.integers(0, len(real), (2, count))
        made = real[first] + generator.uniform(0, 0.8, (count, 1)).astype(np.float32) * real[second]
        made += 0.5 * generator.standard_normal((count, real.shape[1]), np.float32) @ factor
        features[start : start + count] = made / np.linalg.norm(made, axis=1, keepdims=True)
    features.flush()
    chosen = np.linspace(0, len(index.texts) - 1, _QUERIES).astype(int)
    queries = index.text_features[chosen].astype(np.float32)
    np.save(folder / "queries.npy", queries)
    np.save(folder / "answers.npy", Exact(features).top(queries, _K)[1])


def reranked(features: NDArray[np.float16], query: NDArray[np.float32], rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the best of the candidates by exact comparison."""
    rows = np.sort(rows[rows >= 0])
    return rows[np.argsort(-(features[rows].astype(np.float32) @ query), kind="stable")[:_K]]


def exact_with_torch(features: NDArray[np.float16], folder: Path) -> Search:
    """Return the exact search of `clipkit.search` without an engine, in a process that has imported torch."""
    import torch  # noqa: F401

    return exact(features, folder)


def exact(features: NDArray[np.float16], folder: Path) -> Search:
    """Return the exact search of `clipkit.search` in a process without torch, such as a query that needs no model."""
    engine = Exact(features)
    return lambda query: engine.top(query[None], _K)[1][0]


def bits(features: NDArray[np.float16], folder: Path) -> Search:
    """Return a scan of sign bits of centered features with exact reranking."""
    center = features[:: max(1, len(features) // 10_000)].astype(np.float32).mean(axis=0)
    codes = np.empty((len(features), features.shape[1] // 64), np.uint64)
    for start in range(0, len(features), _BLOCK):
        signs = features[start : start + _BLOCK].astype(np.float32) > center
        codes[start : start + _BLOCK] = np.packbits(signs, axis=1).view(np.uint64)

    def search(query: NDArray[np.float32]) -> NDArray[np.int64]:
        code = np.packbits(query > np.median(query)).view(np.uint64)
        distance = np.bitwise_count(codes ^ code).sum(axis=1, dtype=np.uint16)
        return reranked(features, query, np.argpartition(distance, _CANDIDATES)[:_CANDIDATES])

    return search


def faiss_flat(features: NDArray[np.float16], folder: Path) -> Search:
    """Return FAISS without compression, in memory."""
    import faiss

    flat = faiss.IndexFlatIP(features.shape[1])
    for start in range(0, len(features), _BLOCK):
        flat.add(features[start : start + _BLOCK].astype(np.float32))
    return lambda query: flat.search(query[None], _K)[1][0]


def faiss_ivf(features: NDArray[np.float16], folder: Path) -> Search:
    """Return the engine of `clipkit.search`."""
    from clipkit.search.engine import build, open_engine

    build(features, folder / "engine.faiss")
    engine = open_engine(features, folder / "engine.faiss")
    return lambda query: engine.top(query[None], _K)[1][0]


def lancedb(features: NDArray[np.float16], folder: Path) -> Search:
    """Return LanceDB with IVF_PQ, 64 bytes per vector, and refinement of 200 candidates."""
    import lancedb as lance
    import pyarrow as pa

    def batches() -> Any:
        for start in range(0, len(features), _BLOCK):
            part = features[start : start + _BLOCK].astype(np.float32)
            vectors = pa.FixedSizeListArray.from_arrays(pa.array(part.reshape(-1)), part.shape[1])
            yield pa.record_batch([vectors, pa.array(np.arange(start, start + len(part)))], ["vector", "row"])

    schema = pa.schema([("vector", pa.list_(pa.float32(), features.shape[1])), ("row", pa.int64())])
    table = lance.connect(folder / "lance").create_table("rows", batches(), schema=schema, mode="overwrite")
    table.create_index(metric="dot", num_partitions=max(16, len(features) // 2000), num_sub_vectors=64)

    def search(query: NDArray[np.float32]) -> NDArray[np.int64]:
        asked = table.search(query).metric("dot").nprobes(20).refine_factor(20).select(["row"])
        return asked.limit(_K).to_arrow()["row"].to_numpy()

    return search


def measure(engine: str, folder: Path) -> dict[str, Any]:
    """Build an engine and search one query after the other."""
    features = np.load(folder / "features.npy", mmap_mode="c")
    queries, answers = np.load(folder / "queries.npy"), np.load(folder / "answers.npy")
    before = psutil.Process().memory_info()
    began = time.perf_counter()
    search = globals()[engine.replace("-", "_")](features, folder)
    built = time.perf_counter() - began
    for query in queries[:5]:
        search(query)
    seconds, busy, right = [], [], 0
    for query, answer in zip(queries[: _QUERIES if not engine.startswith("exact") else 30], answers, strict=False):
        began, worked = time.perf_counter(), time.process_time()
        found = search(query)
        seconds.append(time.perf_counter() - began)
        busy.append(time.process_time() - worked)
        right += len(set(found[:_K].tolist()) & set(answer.tolist()))
    after = psutil.Process().memory_info()
    private = (after.rss - getattr(after, "shared", 0)) - (before.rss - getattr(before, "shared", 0))
    return {
        "engine": engine,
        "build_seconds": round(built, 1),
        "recall@10": round(right / (_K * len(seconds)), 4),
        "p50_ms": round(1e3 * float(np.median(seconds)), 2),
        "cpu_p50_ms": round(1e3 * float(np.median(busy)), 2),
        "p95_ms": round(1e3 * float(np.quantile(seconds, 0.95)), 2),
        "resident_mb": round(private / 1e6),
    }


def main() -> None:
    """Measure all engines and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("index", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--engines", default=",".join(ENGINES))
    parser.add_argument("--one", choices=ENGINES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(arguments.one, arguments.folder)))
        return
    make(Index(arguments.index), arguments.folder, arguments.rows)
    rows = []
    for engine in arguments.engines.split(","):
        command = [sys.executable, __file__, str(arguments.index), str(arguments.folder), "--one", engine]
        done = subprocess.run(command, capture_output=True, text=True)
        rows.append(
            json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else {"failed": done.stderr[-300:]}
        )
        print(json.dumps(rows[-1]), file=sys.stderr)
    print(
        json.dumps(
            {
                "rows": arguments.rows,
                "threads": int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)),
                "engines": rows,
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
