"""Completion of names in the shell."""

import os

import pytest

from tests.forked import python


@pytest.mark.parametrize(
    ("line", "names"),
    [
        ("clipkit export m --to o", {"open_clip", "onnx"}),
        ("clipkit eval suite data", {"datacomp"}),
        ("clipkit eval suite urban", {"urban1k"}),
        ("clipkit eval retrieval --dtype f", {"fp16", "fp32"}),
        ("clipkit data preview d --policy sim", {"simclr"}),
        ("clipkit mod", {"models"}),
        ("clipkit export run", set()),  # nothing, so that the shell completes names of files
    ],
)
def test_names_complete(line: str, names: set[str]) -> None:
    count = str(len(line.split()) - 1)
    values = {"_CLIPKIT_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": count}
    done = python("-c", "from clipkit.cli import app; app(prog_name='clipkit')", environment=os.environ | values)
    assert set(done.stdout.split()) == names, done.stderr


def test_a_command_without_a_place_is_the_last_of_the_help() -> None:
    code = "import clipkit.cli as cli; cli._ORDER = ('demo', 'train'); cli.app(['--help'], prog_name='clipkit')"
    done = python("-c", code)
    lines = done.stdout.splitlines()
    names = [
        line.split()[0] for line in lines[lines.index("Commands:") + 1 :] if line.startswith("  ") and line[2:3] != " "
    ]
    assert names[:2] == ["demo", "train"]
    assert len(names) > 10
