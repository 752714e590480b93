"""A damaged index ends with one line that names it, or works: it never gives other results or a traceback."""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import clipkit
from clipkit.errors import DataError, UserError
from clipkit.models import DualEncoder
from clipkit.search import Index
from clipkit.search.browse.app import App
from clipkit.search.curation import doubtful_captions, near_duplicates
from clipkit.search.layout import read_manifest

KINDS = ("rows", "features", "texts", "textfeatures", "hubs")
READS: dict[str, Callable[[Index, Path], Any]] = {
    "words": lambda index, out: index.search("a red square", k=3),
    "like": lambda index, out: index.search(like=3, where="year > 2012", k=3),
    "near duplicates": lambda index, out: near_duplicates(index, -1)[:3],
    "doubtful captions": lambda index, out: doubtful_captions(index, 3),
    "page": lambda index, out: App([index]).close(),
    "export": lambda index, out: index.export("numpy", out),
}


def outcome(folder: Path, model: DualEncoder, read: str, out: Path) -> Any:
    """Result of a read, or the error that a user sees as one line."""
    try:
        return READS[read](Index(folder, model=model), out)
    except UserError as error:
        return error
    finally:
        shutil.rmtree(out, ignore_errors=True)


def damages(content: bytes, other: bytes) -> Iterator[bytes]:
    yield b""
    yield content[: len(content) // 2]
    yield content[:-1]
    yield content + b"x"
    yield other
    yield bytes(len(content))
    for position in np.random.default_rng(0).integers(0, len(content), 4):
        yield content[:position] + bytes([content[position] ^ 64]) + content[position + 1 :]


@pytest.fixture(scope="module")
def other_folder(shapes: Path, model: DualEncoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Index of half of the images."""
    lines = (shapes / "captions.csv").read_text().splitlines()
    table = shapes / "half.csv"
    table.write_text("\n".join(lines[:17]) + "\n")
    folder = tmp_path_factory.mktemp("other") / "half.index"
    clipkit.embed(table, model, folder)
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_file_is_named(
    kind: str, index_folder: Path, other_folder: Path, model: DualEncoder, table: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(index_folder, tmp_path / "copy")
    file, other = (f / read_manifest(f)["files"][kind]["name"] for f in (folder, other_folder))
    content = file.read_bytes()
    for damaged in damages(content, other.read_bytes()):
        file.write_bytes(damaged)
        for read in READS:
            error = outcome(folder, model, read, tmp_path / "out")
            assert isinstance(error, DataError), (read, damaged[:20])
            assert file.name in str(error)
            assert "\n" not in str(error)
        with pytest.raises(DataError, match=file.name):
            clipkit.embed(table, model, folder)
    file.write_bytes(content)
    assert clipkit.embed(table, model, folder).encoded_images == 0


def with_heads(folder: Path, to: Path, count: int, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Copy of an index whose files count as large: only `count` bytes of each are compared when it is opened."""
    monkeypatch.setattr("clipkit.search.layout._HEAD", count)
    manifest = json.loads((shutil.copytree(folder, to) / "manifest.json").read_text())
    for entry in manifest["files"].values():
        entry["head"] = hashlib.sha256((to / entry["name"]).read_bytes()[:count]).hexdigest()
    (to / "manifest.json").write_text(json.dumps(manifest))
    return to


def test_the_head_of_a_large_file_is_compared(
    index_folder: Path, model: DualEncoder, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = with_heads(index_folder, tmp_path / "copy", 200, monkeypatch)
    clipkit.embed(table, model, tmp_path / "new")
    written = {kind: entry.get("head") for kind, entry in read_manifest(tmp_path / "new")["files"].items()}
    assert written == {
        kind: entry["head"] if entry["bytes"] > 200 else None for kind, entry in read_manifest(folder)["files"].items()
    }
    file = folder / read_manifest(folder)["files"]["rows"]["name"]
    content = file.read_bytes()
    for position, is_compared in ((199, True), (200, False)):
        file.write_bytes(content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :])
        if not is_compared:
            Index(folder)
        for whole in [False, True] if is_compared else [True]:
            with pytest.raises(DataError, match=file.name):
                Index(folder, check=whole)


@pytest.mark.parametrize("kind", KINDS)
def test_damage_of_a_large_file_is_named_or_harmless(
    kind: str, index_folder: Path, model: DualEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = with_heads(index_folder, tmp_path / "copy", 0, monkeypatch)
    file = folder / read_manifest(folder)["files"][kind]["name"]
    content = file.read_bytes()
    right = {read: outcome(folder, model, read, tmp_path / "out") for read in READS}
    generator, refused = np.random.default_rng(0), 0
    for _ in range(8):
        damaged = np.frombuffer(content, np.uint8).copy()
        damaged[generator.integers(0, len(content), 4)] ^= 64
        file.write_bytes(damaged.tobytes())
        for read in READS:
            found = outcome(folder, model, read, tmp_path / "out")  # no other exception
            refused += isinstance(found, DataError) and file.name in str(found)
    assert refused >= 8  # exports compare all checksums
    file.write_bytes(content)
    assert {read: outcome(folder, model, read, tmp_path / "out") for read in READS} == right


@pytest.mark.parametrize("value", [np.nan, np.inf, 3e4])
def test_damaged_features_are_not_the_best_results(
    value: float, index_folder: Path, model: DualEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = with_heads(index_folder, tmp_path / "copy", 0, monkeypatch)
    file = folder / read_manifest(folder)["files"]["features"]["name"]
    features = np.load(file)
    features[5], features[6] = value, -value  # one of them is similar to any query
    features[7:14] = features[7]  # equal scores
    np.save(file, features)
    for read in ("words", "like", "near duplicates", "doubtful captions"):
        found = outcome(folder, model, read, tmp_path / "out")
        assert isinstance(found, DataError), read
        assert file.name in str(found)


def test_every_flipped_bit_of_a_header_is_named(
    index_folder: Path, model: DualEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = with_heads(index_folder, tmp_path / "copy", 0, monkeypatch)
    file = folder / read_manifest(folder)["files"]["features"]["name"]
    content = file.read_bytes()
    right = Index(folder).features.copy()
    for position in range(128):
        for bit in (1, 64):
            file.write_bytes(content[:position] + bytes([content[position] ^ bit]) + content[position + 1 :])
            try:
                found = Index(folder).features
            except DataError as error:
                assert file.name in str(error)  # noqa: PT017
            else:
                assert np.array_equal(found, right)


def entries(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Path of each entry of a manifest; of long lists the first one."""
    if path:
        yield path
    for key, part in list(
        value.items() if isinstance(value, dict) else enumerate(value[:1]) if isinstance(value, list) else ()
    ):
        yield from entries(part, (*path, key))


def changed(manifest: dict[str, Any], path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    copied = json.loads(json.dumps(manifest))
    part = copied
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = value
    return copied


def test_entries_of_the_manifest_of_the_wrong_kind_are_named(
    index_folder: Path, model: DualEncoder, table: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(index_folder, tmp_path / "copy")
    file, out = folder / "manifest.json", tmp_path / "out"
    manifest = json.loads(file.read_text())
    reads = ("words", "page")
    right = {read: outcome(folder, model, read, out) for read in reads}
    refused = set()
    for path in entries(manifest):
        for value in (None, [], {}, "x", -1, 10**30, 0.5, True):
            file.write_text(json.dumps(changed(manifest, path, value)))
            for read in reads if value in (None, "x") else reads[:1]:
                found = outcome(folder, model, read, out)
                assert isinstance(found, UserError) or found == right[read], (path, value)
                if isinstance(found, UserError):
                    assert str(folder) in str(found)
                    refused.add(path[0])
    assert refused >= {"format", "version", "rows", "texts", "width", "model", "source", "features", "probes", "files"}
