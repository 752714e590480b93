"""Commands whose output goes to a full disk, a closed terminal, or one without Unicode: exit codes and no traceback."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from clipkit.cli.terminal import whole_output

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a full disk to test with")


def shell(command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command line of a shell, in which `clipkit` is the command."""
    script = f'clipkit() {{ "{sys.executable}" -m clipkit "$@"; }}\n{command}'
    values = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(["bash", "-c", script], capture_output=True, text=True, cwd=ROOT, env=values, timeout=120)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("clipkit --version 2>/dev/full", 0),
        ("clipkit --version >/dev/full", 1),
        ("clipkit --version >/dev/full 2>&1", 1),
        ("clipkit --version >&-", 0),
        ("clipkit --version 2>&-", 0),
        ("clipkit --version >&- 2>&-", 0),
        ("clipkit data check /nowhere 2>/dev/full", 2),
        ("clipkit data check /nowhere >/dev/full 2>/dev/full", 2),
        ("clipkit data check /nowhere >&- 2>&-", 2),
        ("clipkit train 2>/dev/full", 2),
        ("clipkit train --no-such-option 2>/dev/full", 2),
        ("clipkit nonsense 2>/dev/full", 2),
        ("clipkit train --help >/dev/full", 1),
        ("clipkit train --help 2>/dev/full", 0),
        ("clipkit train --help | true; exit ${PIPESTATUS[0]}", None),
        ("clipkit data check recipes 2>/dev/full", 2),
    ],
)
def test_exit_code_does_not_depend_on_what_can_be_printed(command: str, code: int | None) -> None:
    done = shell(command)
    assert "Traceback" not in done.stderr + done.stdout
    assert done.returncode == code if code is not None else done.returncode in (0, 1)


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-16"])
def test_every_terminal_shows_help_and_errors(encoding: str, tmp_path: Path) -> None:
    (tmp_path / "é😀.csv").write_text("")
    for command in ("clipkit train --help", f"clipkit data check '{tmp_path}/é😀.csv'"):
        done = subprocess.run(
            [sys.executable, "-m", *command.replace("'", "").split()], capture_output=True, cwd=ROOT,
            env={**os.environ, "PYTHONIOENCODING": encoding, "PYTHONPATH": str(ROOT)}, timeout=120,
        )  # fmt: skip
        assert done.returncode == (0 if "--help" in command else 2)
        assert b"Traceback" not in done.stderr


def test_lost_lines_on_standard_error_do_not_raise(monkeypatch: pytest.MonkeyPatch) -> None:
    with open("/dev/full", "w", buffering=1) as full:  # noqa: PTH123
        monkeypatch.setattr(sys, "stderr", full)
        with whole_output():
            print("lost", file=sys.stderr)
            sys.stderr.write("lost\n" * 10_000)
            sys.stderr.flush()
            assert sys.stderr.isatty() is False
        monkeypatch.undo()
        os.dup2(os.open(os.devnull, os.O_WRONLY), full.fileno())


@pytest.mark.slow
@pytest.mark.parametrize("limit", ["", "0", "-5", "1e9", "many", "1.5", "٣", "1" * 30, " 5", "0x10"])
def test_an_invalid_limit_of_pixels_is_an_error(limit: str, tmp_path: Path) -> None:
    done = shell(f"clipkit data check '{tmp_path}'", CLIPKIT_MAX_PIXELS=limit)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert ("CLIPKIT_MAX_PIXELS" in line) == bool(limit)
