"""The hash of the images' contents, on which resumed runs and kept results rely."""

import os
from pathlib import Path

import pytest

from clipkit.data import content_hash as module
from clipkit.data import read_pairs
from clipkit.data.content_hash import content_hash
from clipkit.data.prepare import prepare
from clipkit.data.sources.remote import Remote
from clipkit.errors import OutputError
from clipkit.images import InMemory, Stored


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    made = [tmp_path / f"{number}.bin" for number in range(5)]
    for number, file in enumerate(made):
        file.write_bytes(bytes([number]) * 20_000)
    return made


@pytest.mark.parametrize("place", [0, 4095, 19_999, 20_000 - 4096])
def test_one_byte_changes_it_at_equal_size_and_time(place: int, files: list[Path]) -> None:
    before, status, content = content_hash(files), files[2].stat(), bytearray(files[2].read_bytes())
    content[place] ^= 1
    files[2].write_bytes(content)
    os.utime(files[2], ns=(status.st_atime_ns, status.st_mtime_ns))
    assert content_hash(files) != before
    content[place] ^= 1
    files[2].write_bytes(content)
    assert content_hash(files) == before


def test_size_and_order_change_it_and_names_do_not(files: list[Path]) -> None:
    before = content_hash(files)
    assert content_hash(files[::-1]) != before
    assert content_hash([file.rename(file.with_suffix(".png")) for file in files]) == before
    with files[0].with_suffix(".png").open("r+b") as file:
        file.truncate(30_000)
        file.seek(30_000 - 4096)
        file.write(bytes(4096))
    assert content_hash([file.with_suffix(".png") for file in files]) != before


def test_missing_files_pipes_and_addresses_are_not_waited_for(files: list[Path], tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    strange = [tmp_path / "none", tmp_path / "pipe", Path("a\0b"), Remote("http://127.0.0.1:9/a.jpg")]
    assert content_hash([*files, *strange]) == content_hash([*files, *strange])
    assert content_hash([]) != content_hash(files)


def test_large_datasets_are_sampled(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_FILES", 3)
    monkeypatch.setattr(module, "_MOST_STORED", 2)
    stored: list[Path | Stored] = [InMemory(str(number), bytes([number])) for number in range(5)]
    assert content_hash(files) == content_hash([files[0], files[2], files[4]])
    assert content_hash(stored) == content_hash([stored[0], stored[4]])
    assert content_hash(stored) != content_hash([stored[0], stored[3]])


def test_shards_are_not_continued_with_other_content(shapes: Path, tmp_path: Path) -> None:
    for name in ("captions.csv", "images/00.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes((shapes / name).read_bytes())
    (tmp_path / "captions.csv").write_text("image,caption\nimages/00.png,red\n")
    prepare(read_pairs(str(tmp_path / "captions.csv")), tmp_path / "out", size=32)
    prepare(read_pairs(str(tmp_path / "captions.csv")), tmp_path / "out", size=32)
    manifest, image = tmp_path / "out" / "prepared.json", tmp_path / "images" / "00.png"
    whole = manifest.read_text()
    content = bytearray(image.read_bytes())
    content[-20] ^= 1
    image.write_bytes(content)
    with pytest.raises(OutputError, match="changed since"):
        prepare(read_pairs(str(tmp_path / "captions.csv")), tmp_path / "out", size=32)
    # Folders of earlier versions have no such hash.
    lines = [line for line in whole.splitlines() if '"content"' not in line]
    assert len(lines) == len(whole.splitlines()) - 1
    manifest.write_text("\n".join(lines))
    prepare(read_pairs(str(tmp_path / "captions.csv")), tmp_path / "out", size=32)
