"""Names and captions cannot control the terminal."""

import contextlib
import logging
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from clipkit.cli import main
from clipkit.cli.process import log_to_terminal
from clipkit.cli.tables import print_table
from clipkit.data import read_pairs
from clipkit.errors import DataError, TrainingError, UserError, printable
from clipkit.recipe import Recipe
from clipkit.report.page import Table, markdown
from clipkit.training.folder.resume import _changes
from clipkit.training.folder.run_folder import RunFolder
from clipkit.training.folder.trackers import _simple
from tests.conftest import write_csv

HOSTILE = (
    "\x1b[31mred", "\x1b]0;title\x07", "\x1b[2J", "back\x08\x08", "over\rwritten", "\x9b31m", "\x00", "\x7f",
    "\u202egpj.exe", "\u2066x\u2069", "\u200f", "\x0c", "\x0b", "\x85", "\x1b]8;;http://evil\x1b\\click\x1b]8;;\x1b\\",
)  # fmt: skip


def is_neutral(text: str) -> bool:
    return all(letter.isprintable() or letter == "\n" for letter in text)


@pytest.mark.parametrize("text", HOSTILE)
def test_messages_logs_and_tables_have_no_control_characters(
    text: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for kind in (UserError, DataError, TrainingError):
        assert is_neutral(str(kind(f"{text}: is wrong")))
    print_table(["name", "value"], [[text, "1"], ["other", text]])
    logger = logging.getLogger(f"clipkit.test{len(text)}{hash(text)}")
    log_to_terminal(logger)
    logger.info("bad sample %s\nsecond line", text)
    printed = capsys.readouterr().out
    assert is_neutral(printed)
    assert "second line" in printed.splitlines()
    with pytest.raises(DataError) as caught:
        read_pairs(f"{tmp_path}/{text}.csv")
    assert is_neutral(str(caught.value))


@pytest.mark.parametrize("text", ["a photo of a café", "日本語", "😀", "naïve – “quotes”", "עברית", "a\ttab"])
def test_ordinary_text_is_unchanged(text: str) -> None:
    assert printable(text) == text


@pytest.mark.parametrize(
    "address",
    [
        "https://user:hunter2@example.org/a.tar", "https://hunter2@example.org/a.tar", "s3://key:hunter2@host/x.tar",
        "https://user:hunter2@[::1]:80/a.tar", "a chain::http://u:hunter2@h/x", "FTP://u:hunter2@h",
        "https://us%40er:hunter2@h/x-{000..009}.tar?image=a", "two https://a:hunter2@h/ and https://b:hunter2@i/",
        "https://u:hun@ter2@h/x", "\x1bhttps://u:hunter2@h/x",
    ],
)  # fmt: skip
def test_no_message_shows_the_password_of_an_address(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DataError) as caught:
        read_pairs(address)
    print_table(["source"], [[address]])
    texts = [str(caught.value), str(TrainingError(address)), capsys.readouterr().out]
    texts += _simple({"data.train": address, "data.sources": [address]}).values()
    assert all("hunter2" not in text and "ter2" not in text for text in texts)


@pytest.mark.parametrize("name", ["me@example.org", "a@b/c", "org/model@v1", "user@host:path", "https://h/a@b.jpg"])
def test_names_that_are_not_passwords_are_shown(name: str) -> None:
    assert printable(name) == name


@pytest.mark.parametrize(
    "text",
    ["a|b", "<script>alert(1)</script>", "[click](http://evil)", "two\nlines", "`code`", "a\\|b", "\x1b[31m"],
)
def test_cells_of_a_markdown_table_are_shown_as_they_are(text: str) -> None:
    lines = markdown(Table("title", ["name", text], [[text, "1"]])).splitlines()
    assert len(lines) == 3
    for line in lines:
        assert len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) == 3
        assert "<" not in line
        assert not re.search(r"(?<!\\)(?:\\\\)*\[", line)


def test_files_of_a_run_have_no_password_of_an_address(recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    address = "https://me:hunter2@example.org/{000..009}.tar?image=a"
    sources = [address, {"source": address, "weight": 2}]
    given = recipe({"data.train": sources, "data.labelled": address, "model.name": "https://a:hunter2@h/m"})
    kept = given.without_credentials()
    assert "hunter2" not in kept.to_yaml()
    assert kept.data.labelled == "https://example.org/{000..009}.tar?image=a"
    assert kept.override({"data": given.data.model_dump(), "model": given.model.model_dump()}) == given
    assert not _changes(RunFolder(tmp_path), given, kept.model_dump(mode="json"), 1)
    assert not _changes(RunFolder(tmp_path), kept, given.model_dump(mode="json"), 1)
    assert recipe().without_credentials() == recipe()


@pytest.mark.parametrize("is_terminal", [False, True])
def test_commands_print_no_control_characters(
    is_terminal: bool, shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(type(sys.stdout), "isatty", lambda _: is_terminal, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    names = [text.replace("\x00", "").replace("/", "") for text in HOSTILE]
    for name in names:
        shutil.copy(shapes / "images" / "00.png", tmp_path / f"{name}.png")
    rows = [[f"{name}.png", f"{name} caption"] for name in names] + [[f"gone {name}", "-"] for name in names]
    write_csv(tmp_path / "p.csv", ["image", "caption"], rows)
    for arguments in (["check"], ["check", "--fix", "fixed"], ["prepare", "--out", "\x85\x1bout"]):
        monkeypatch.setattr(sys, "argv", ["clipkit", "data", arguments[0], "p.csv", *arguments[1:]])
        monkeypatch.chdir(tmp_path)
        with contextlib.suppress(SystemExit):
            main()
        printed = capsys.readouterr().out
        assert "image" in printed
        assert is_neutral(re.sub(r"\x1b\[[0-9;]*m", "", printed) if is_terminal else printed)
        assert "\x1b[31m" not in printed
