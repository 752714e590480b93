"""Fixtures of the command-line tests."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from clipkit.cli import main


def type_(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> None:
    """Run a command in this process, which must succeed."""
    monkeypatch.setattr(sys, "argv", ["clipkit", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code in (0, None)


@pytest.fixture
def said_here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run an invalid command in this process: check exit code 2 and a one-line message, and return the message."""

    def type_(*arguments: str | Path) -> str:
        monkeypatch.setattr(sys, "argv", ["clipkit", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        assert ended.value.code == 2, said.out + said.err
        lines = [line for line in said.err.splitlines() if line.startswith("clipkit: ")]
        assert len(lines) == 1, said.err
        assert "Traceback" not in said.err
        return lines[0]

    return type_
