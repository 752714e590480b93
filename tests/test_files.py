"""Locks between processes, and permissions of written files."""

import subprocess
import sys
from pathlib import Path

import clipkit
from clipkit.files import locked, replacing

APPEND = """
import sys, time
from pathlib import Path
from clipkit.files import locked
folder = Path(sys.argv[1])
with locked(folder / "lock"):
    seen = (folder / "log").read_text()
    time.sleep(0.05)
    (folder / "log").write_text(seen + "x")
"""


def test_locked_blocks_follow_one_another(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("")
    with locked(tmp_path / "lock"):
        waiting = [subprocess.Popen([sys.executable, "-c", APPEND, tmp_path]) for _ in range(4)]
        (tmp_path / "log").write_text("x")
    assert [process.wait(60) for process in waiting] == [0] * 4
    assert (tmp_path / "log").read_text() == "xxxxx"


def test_written_files_have_the_permissions_of_a_new_file(tmp_path: Path, tiny_clip: Path) -> None:
    (tmp_path / "new").touch()
    usual = (tmp_path / "new").stat().st_mode
    model = clipkit.load(tiny_clip)
    for _ in range(2):  # a new folder, and an existing one
        model.save(tmp_path / "model")
        modes = {file.name: file.stat().st_mode for file in (tmp_path / "model").iterdir()}
        assert "model.safetensors" in modes
        assert set(modes.values()) == {usual}, modes
    clipkit.export(model, to="open_clip", out=tmp_path / "export")
    assert {file.stat().st_mode for file in (tmp_path / "export").iterdir()} == {usual}


def test_other_files_keep_their_permissions(tmp_path: Path, tiny_clip: Path) -> None:
    (tmp_path / "private.txt").touch(0o600)
    private = (tmp_path / "private.txt").stat().st_mode
    clipkit.load(tiny_clip).save(tmp_path)
    with replacing(tmp_path / "copy") as temporary:
        temporary.mkdir()
        (temporary / "private.txt").hardlink_to(tmp_path / "private.txt")
    assert (tmp_path / "private.txt").stat().st_mode == private
