"""Names and captions cannot control the terminal."""

import logging
from pathlib import Path

import pytest

from clipkit.cli.process import log_to_terminal
from clipkit.cli.tables import print_table
from clipkit.data import read_pairs
from clipkit.errors import DataError, TrainingError, UserError, printable

HOSTILE = (
    "\x1b[31mred", "\x1b]0;title\x07", "\x1b[2J", "back\x08\x08", "over\rwritten", "\x9b31m", "\x00", "\x7f", "\u202egpj.exe",
    "\u2066x\u2069", "\u200f", "\x0c", "\x0b", "\x85", "\x1b]8;;http://evil\x1b\\click\x1b]8;;\x1b\\",
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
