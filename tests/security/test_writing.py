"""A file or folder that is written is complete, or what it was before: on a full disk, after an error, after a kill."""

import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

import clipkit
from clipkit.data import read_pairs
from clipkit.data.checks import check, fix
from clipkit.data.prepare import prepare
from clipkit.errors import OutputError
from clipkit.evaluation.predictions import write_rows
from clipkit.files import replacing, write_whole
from clipkit.models.export import export

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="limits the size of files")


@contextmanager
def full_disk(after: int) -> Iterator[None]:
    """Context in which no file of this process may become larger than `after` bytes, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (after, before[1]))  # Python ignores the signal
    bytecode, sys.dont_write_bytecode = sys.dont_write_bytecode, True  # Python would leave a part of it in __pycache__
    try:
        yield
    finally:
        sys.dont_write_bytecode = bytecode
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def by_safetensors(file: Path) -> None:
    save_file({"x": torch.zeros(1000)}, file)


def by_tokenizers(file: Path) -> None:
    Tokenizer(WordLevel({f"word{number}": number for number in range(1000)}, unk_token="word0")).save(str(file))


def by_several(folder: Path) -> None:
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    by_safetensors(folder / "model.safetensors")


def by_python(file: Path) -> None:
    file.write_bytes(b"x" * 999)


@pytest.mark.parametrize("write", [by_safetensors, by_tokenizers, by_several, by_python])
@pytest.mark.parametrize("before", [None, "old"])
def test_full_disk_leaves_the_old_file_or_none(
    write: Callable[[Path], None], before: str | None, tmp_path: Path
) -> None:
    target = tmp_path / "target"
    if before is not None:
        target.write_text(before)
    with full_disk(500), pytest.raises(OSError, match="File too large"), replacing(target) as temporary:
        write(temporary)
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == ({"target": before} if before else {})


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt(), SystemExit(1), MemoryError()])
def test_an_error_leaves_the_old_file(error: BaseException, tmp_path: Path) -> None:
    (tmp_path / "target").write_text("old")

    def fail(temporary: Path) -> None:
        temporary.write_text("new")
        raise error

    with pytest.raises(type(error)), replacing(tmp_path / "target") as temporary:
        fail(temporary)
    assert [file.read_text() for file in tmp_path.iterdir()] == ["old"]


def test_a_folder_never_replaces_one_with_content(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes").write_text("mine")
    with pytest.raises(OSError, match="not empty"), replacing(tmp_path / "mine") as temporary:
        by_several(temporary)
    assert [file.name for file in tmp_path.rglob("*")] == ["mine", "notes"]


def test_a_link_is_replaced_and_its_target_stays(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("precious")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    write_whole(tmp_path / "link", "new")
    assert (tmp_path / "target").read_text() == "precious"
    assert (tmp_path / "link").read_text() == "new"


def test_links_at_guessable_temporary_names_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("precious")
    for name in (".target.writing", "target.tmp", ".target.tmp", "target~", ".target"):
        (tmp_path / name).symlink_to(tmp_path / "precious")
    write_whole(tmp_path / "target", "new")
    assert (tmp_path / "precious").read_text() == "precious"


def test_permissions_of_a_private_file_stay(tmp_path: Path) -> None:
    write_whole(tmp_path / "target", "old")
    (tmp_path / "target").chmod(0o600)
    write_whole(tmp_path / "target", "new")
    assert (tmp_path / "target").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("name", ["x" * 255, "é" * 120, "-rf", "a b\tc", "#[{?*"])
def test_every_name_that_a_file_can_have_is_written(name: str, tmp_path: Path) -> None:
    write_whole(tmp_path / name, "\ud83d")
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [(name, "\\ud83d")]


def test_writers_at_the_same_time_do_not_mix(tmp_path: Path) -> None:
    texts = [letter * 100_000 for letter in "abcd"]
    threads = [threading.Thread(target=write_whole, args=(tmp_path / "target", text)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [file.read_text() in texts for file in tmp_path.iterdir()] == [True]


KILLED = """
import os, signal, sys
from pathlib import Path
from clipkit.files import replacing
with replacing(Path(sys.argv[1])) as temporary:
    temporary.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_writer_leaves_the_old_file(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("old")
    done = subprocess.run([sys.executable, "-c", KILLED, tmp_path / "target"], cwd=Path(__file__).parents[2])
    assert done.returncode == -signal.SIGKILL
    assert (tmp_path / "target").read_text() == "old"


@pytest.mark.parametrize("to", ["transformers", "open_clip", "sentence-transformers"])
@pytest.mark.parametrize("exists", [False, True])
def test_full_disk_in_export_is_one_line_and_leaves_nothing(
    to: str, exists: bool, tiny_clip: Path, tmp_path: Path
) -> None:
    model, out = clipkit.load(str(tiny_clip)), tmp_path / "out"
    if exists:
        out.mkdir()
    with full_disk(5000), pytest.raises(OutputError, match=r"out: is not writable \(File too large\)"):
        export(model, to, out)
    assert list(tmp_path.rglob("*")) == [out] * exists


def test_full_disk_while_a_model_is_saved_leaves_nothing(tiny_clip: Path, tmp_path: Path) -> None:
    model = clipkit.load(str(tiny_clip))
    with full_disk(5000), pytest.raises(OSError, match="File too large"):
        model.save(tmp_path / "deep" / "model")
    assert list((tmp_path / "deep").iterdir()) == []
    model.save(tmp_path / "deep" / "model")
    assert (tmp_path / "deep" / "model").stat().st_mode & 0o777 == 0o777 & ~_umask()


@pytest.mark.parametrize("format", ["tar", "parquet"])
def test_full_disk_in_prepare_is_one_line_and_leaves_no_part_of_a_shard(
    format: str, shapes: Path, tmp_path: Path
) -> None:
    pairs = read_pairs(str(shapes / "captions.csv"))
    with full_disk(2500), pytest.raises(OutputError, match=r"out: cannot be written to \("):
        prepare(pairs, tmp_path / "out", size=32, format=format, lossless=True)  # type: ignore[arg-type]
    assert {file.name for file in (tmp_path / "out").iterdir()} <= {"prepared.json"}


def test_full_disk_in_fix_and_predictions_is_one_line_and_leaves_nothing(shapes: Path, tmp_path: Path) -> None:
    pairs = read_pairs(str(shapes / "captions.csv"))
    report = check(pairs)
    with full_disk(100), pytest.raises(OutputError, match="out: cannot be written"):
        fix(pairs, report, tmp_path / "out")
    with full_disk(100), pytest.raises(OutputError, match=r"x\.parquet: cannot be written"):
        write_rows(tmp_path / "x.parquet", [{"row": number} for number in range(1000)])
    assert list(tmp_path.iterdir()) == []


def _umask() -> int:
    before = os.umask(0)
    os.umask(before)
    return before


def test_a_damaged_or_outdated_index_of_a_tar_is_not_used(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLIPKIT_CACHE", str(tmp_path / "cache"))
    prepare(read_pairs(str(shapes / "captions.csv")), tmp_path / "out", size=32)
    source = str(next((tmp_path / "out").glob("*.tar")))
    pairs = read_pairs(source)
    (index,) = (tmp_path / "cache" / "shards").iterdir()
    whole = index.read_bytes()
    for place in range(4, len(whole), 97):
        index.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        again = read_pairs(source)
        assert again.captions == pairs.captions
        assert again.images[0].read_bytes() == pairs.images[0].read_bytes()  # type: ignore[union-attr]
    # Another file of the same size and time.
    status, content = Path(source).stat(), Path(source).read_bytes()
    Path(source).write_bytes(content.replace(b"red", b"RED"))
    os.utime(source, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert "RED" in " ".join(read_pairs(source).captions)
