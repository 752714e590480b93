"""Write the files of an index, from new features and from the features of the existing index."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import parquet

from clipkit.data.sequences import evenly_spaced
from clipkit.errors import DataError, one_line
from clipkit.findings import Finding
from clipkit.models import DualEncoder
from clipkit.search.engine import LEAST_ROWS, NAME, build, is_installed, open_engine, recall
from clipkit.search.folder import UNFINISHED
from clipkit.search.layout import file_of, name_by_content, open_array, write_array, write_manifest
from clipkit.search.log import Encoded, text_key
from clipkit.search.nearest import Nearest, as_float32
from clipkit.search.qdrant import NAME as QDRANT
from clipkit.search.qdrant import QdrantEngine, copy_of, remove, server
from clipkit.search.relevance import Nulls, fit, hub_statistics
from clipkit.search.source import CAPTIONS, CONTENT, IMAGE, POSITION, RESERVED
from clipkit.versions import __version__

_GROUP_ROWS = 16_384
_COPIED = 65_536
_MEASURED = 200  # number of queries for measuring the recall of the engine
FEATURES = np.float16


@dataclass(frozen=True)
class Found:
    """The N readable images of a source, in the order of the rows of the index."""

    locations: Sequence[str]
    keys: Sequence[bytes]
    """SHA-256 of each file."""
    positions: Sequence[int]
    """Position in the source; -1 in a stream."""
    captions: Sequence[Sequence[str]]
    columns: pa.Table | None
    skipped: list[dict[str, str]]
    """Unreadable images with reasons."""
    findings: Sequence[Finding] = ()


def keys_of(folder: Path, manifest: Mapping[str, Any], kind: str) -> list[bytes]:
    """Return the keys (SHA-256) of the images or captions of an index, in row order.

    Args:
        kind: "rows" for the images, "texts" for the distinct captions.

    Raises:
        DataError: the file is damaged.
    """
    file = file_of(folder, manifest, kind)
    column = CONTENT if kind == "rows" else "text"
    try:
        values = parquet.read_table(file, columns=[column])[column].to_pylist()
        keys = [bytes.fromhex(value) if kind == "rows" else text_key(value) for value in values]
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file}: the index is damaged ({one_line(error)}); give another folder with --out") from None
    if len(keys) != manifest.get("rows" if kind == "rows" else "texts", 0):
        raise DataError(
            f"{file}: the index is damaged (wrong number of {kind}: {len(keys)}); give another folder with --out"
        )
    return keys


def assemble(
    folder: Path,
    model: DualEncoder,
    found: Found,
    former: Mapping[str, Any] | None,
    probes: Mapping[str, Any],
    source: str | None,
    qdrant: bool = False,
) -> dict[str, Any]:
    """Write the files of an index, replace its manifest, and return the new manifest.

    Args:
        folder: folder of the index, with the logs of the new features.
        former: manifest of the existing index; None for a new index.
        probes: features of fixed test inputs, by which the model is recognized later.
        source: source of the images; None for a Python object.
        qdrant: copy the features to the Qdrant server. This also happens if the existing index uses Qdrant and
            QDRANT_URL is set. The collection of the existing index is removed if the features differ.
    """
    logs = folder / UNFINISHED
    images, texts = Encoded(logs, "image"), Encoded(logs, "text")
    width = next(len(features) for features in probes["image"])
    distinct = list(dict.fromkeys(text for captions in found.captions for text in captions)) if "text" in probes else []
    files = {"rows": _write(logs / "rows.parquet", lambda file: parquet.write_table(_rows(found), file, _GROUP_ROWS))}
    old = _Former(folder, former, "rows", "features")
    files["features"] = _write(
        logs / "features.npy", lambda file: _features(file, found.keys, images, old, width), "features"
    )
    relevance: dict[str, Any] = {}
    text_queries: NDArray[np.float16] | None = None
    if distinct:
        table = pa.table({"text": pa.array(distinct, pa.large_string())})
        files["texts"] = _write(logs / "texts.parquet", lambda file: parquet.write_table(table, file, _GROUP_ROWS))
        old_texts = _Former(folder, former, "texts", "textfeatures")
        keys = [text_key(text) for text in distinct]
        files["textfeatures"] = _write(
            logs / "textfeatures.npy", lambda file: _features(file, keys, texts, old_texts, width), "textfeatures"
        )
        row_of = {text: row for row, text in enumerate(distinct)}
        own = [[row_of[text] for text in captions] for captions in found.captions]
        names = (folder / files[kind]["name"] for kind in ("features", "textfeatures"))
        image_features, text_features = (np.load(name, mmap_mode="c") for name in names)
        hubs = hub_statistics(image_features, text_features, own)
        files["hubs"] = _write(logs / "hubs.npy", lambda file: np.save(file, hubs))
        text_queries = text_features
        relevance = fit(Nulls(image_features, hubs), found.captions, lambda texts: model.encode_text(texts).numpy())
    before = ((former or {}).get("engine") or {}).get("collection")
    engine = _engine(logs, folder, files, text_queries, qdrant or (before is not None and server() is not None))
    error = max(images.error, texts.error, former["features"]["max_error"] if former is not None else 0.0)
    preprocess = model.image.preprocess
    manifest = {
        "clipkit": __version__,
        "model": {
            "name": str(Path(model.name).absolute()) if Path(model.name).exists() else model.name,
            "image_size": preprocess.image_size,
            "mean": list(preprocess.mean),
            "std": list(preprocess.std),
            "scale": round(model.logit_scale.exp().item(), 4),
        },
        "source": source,
        "rows": len(found.keys),
        "captions": sum(map(len, found.captions)),
        "texts": len(distinct),
        "width": width,
        "features": {"dtype": "float16", "max_error": error},
        "relevance": relevance,
        "engine": engine,
        "skipped": found.skipped,
        "probes": probes,
        "files": files,
    }
    write_manifest(folder, manifest)
    if before is not None and server() is not None and before != (engine or {}).get("collection"):
        remove(before)
    return manifest


def _engine(
    logs: Path, folder: Path, files: dict[str, Any], texts: NDArray[np.float16] | None, qdrant: bool
) -> dict[str, Any] | None:
    """Build a search engine (Qdrant or FAISS) for the features, and measure its recall@10.

    Returns:
        The engine's entry in the manifest. None for exact search, if the index is small or FAISS is not installed.
    """
    features = np.load(folder / files["features"]["name"], mmap_mode="c")
    described: dict[str, Any]
    engine: Nearest
    if qdrant:
        described = {"name": QDRANT, "collection": copy_of(features, files["features"]["sha256"])}
        engine = QdrantEngine(features, described["collection"])
    elif len(features) < LEAST_ROWS or not is_installed():
        return None
    else:
        described = {"name": NAME}
        build(features, logs / "engine.faiss")
        engine = open_engine(features, logs / "engine.faiss")
    source = features if texts is None else texts
    sample = evenly_spaced(len(source), _MEASURED)
    measured = recall(engine, features, as_float32(source[sample]))
    if not qdrant:
        files["engine"] = name_by_content(logs / "engine.faiss", "engine")
    return {**described, "recall@10": round(measured, 4), "queries": len(sample)}


def _rows(found: Found) -> pa.Table:
    values: dict[str, Sequence[Any]] = {
        IMAGE: [name.encode(errors="backslashreplace").decode() for name in found.locations],
        CONTENT: [key.hex() for key in found.keys],
        POSITION: found.positions,
        CAPTIONS: [list(texts) for texts in found.captions],
    }
    columns: dict[str, Any] = {name: pa.array(values[name], kind) for name, kind in RESERVED.items()}
    if found.columns is not None:
        columns |= {name: found.columns[name] for name in found.columns.column_names}
    return pa.table(columns)


class _Former:
    """Features of the existing index by key. A key is the SHA-256 of an image file or a text."""

    def __init__(self, folder: Path, manifest: Mapping[str, Any] | None, names: str, features: str) -> None:
        self.row_of: dict[bytes, int] = {}
        if manifest is not None and features in manifest["files"]:
            keys = keys_of(folder, manifest, names)
            self.row_of = {key: row for row, key in enumerate(keys)}
            self.features = open_array(folder, manifest, features, FEATURES, (len(keys), manifest["width"]))


def _features(file: Path, keys: Sequence[bytes], encoded: Encoded, former: _Former, width: int) -> None:
    """Write the features of the given keys to a file, from the logs or from the existing index."""

    def feature(key: bytes) -> NDArray[np.float16]:
        return encoded[key] if key in encoded else former.features[former.row_of[key]]

    parts = (np.stack([*map(feature, keys[start : start + _COPIED])]) for start in range(0, len(keys), _COPIED))
    write_array(file, parts, FEATURES, (len(keys), width))


def _write(file: Path, write: Callable[[Path], None], kind: str = "") -> dict[str, Any]:
    write(file)
    return name_by_content(file, kind or file.stem)
