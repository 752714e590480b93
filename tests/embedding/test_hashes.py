from pathlib import Path

import pytest

from clipkit.embedding import hashes
from clipkit.embedding.hashes import content_hashes


def test_unchanged_files_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []
    original = hashes.read_image
    monkeypatch.setattr(hashes, "read_image", lambda image: read.append(image) or original(image))
    file = tmp_path / "a.png"
    file.write_bytes(b"one")
    first = content_hashes([file, str(file)])
    assert len(read) == 2  # just written: it may change again without another time
    monkeypatch.setattr(hashes, "_RECENT", -1)
    assert content_hashes([file]) == content_hashes([file]) == first[:1]
    assert len(read) == 3
    file.write_bytes(b"two")
    assert content_hashes([file]) != first[:1]
    assert len(read) == 4
