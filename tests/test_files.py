"""Locks between processes."""

import subprocess
import sys
from pathlib import Path

from clipkit.files import locked

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
