"""`clipkit data …` as it is typed."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from clipkit.cli import main
from tests.conftest import draw, write_csv

Type = Callable[..., tuple[int, str, str]]


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Type:
    """Run the command in this process: exit code, what it printed, what it complained of."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["clipkit", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
        out, err = capsys.readouterr()
        return int(stop.value.code or 0), out, err

    return run


def test_a_preview(typed: Type, shapes: Path, tmp_path: Path) -> None:
    own = ("--policy", "[crop, flip]", "--count", 3, "--views", 2, "--size", 32, "--safe")
    code, said, _ = typed("data", "preview", shapes / "captions.csv", *own)
    assert (code, said.strip()) == (0, "preview.png: 3 of 16 images, 2 views of each")
    assert Image.open(tmp_path / "preview.png").size == (3 * 38 + 18, 3 * (38 + 16) + 6)
    assert typed("data", "preview", shapes / "images", "--out", "other.png")[0] == 0  # images without captions
    assert (tmp_path / "other.png").is_file()


def test_help_names_every_policy_with_its_strengths(typed: Type) -> None:
    from clipkit.recipe.policies import POLICIES

    code, said, _ = typed("data", "preview", "--help")
    assert code == 0
    for name in POLICIES:
        assert f"\n{name}: " in said
    assert "jitter (brightness 0.8, contrast 0.8, saturation 0.8, hue 0.2, p 0.8)" in " ".join(said.split())


def test_what_a_preview_cannot_do(typed: Type, shapes: Path, tmp_path: Path) -> None:
    text = write_csv(tmp_path / "text.csv", ["caption"], [["a"]])
    red = tmp_path / "red"
    red.mkdir()
    draw("red", "cross").save(red / "1.png")
    for arguments, message in [
        ((shapes / "captions.csv", "--policy", "simcl"), "did you mean simclr?"),
        ((shapes / "captions.csv", "--policy", "[crop"), "[crop"),
        (
            (shapes / "captions.csv", "--policy", "[{name: blur, sigma: [2, 1]}]"),
            "[2.0, 1.0]",
        ),
        ((text,), "no image column"),
        ((red, "--out", red / "sheet.png"), "--out"),
        ((shapes / "captions.csv", "--out", "sheet.xyz"), "cannot be written"),
        (("nowhere.csv",), "file not found"),
    ]:
        code, _, said = typed("data", "preview", *arguments)
        assert code == 2, said
        assert said.count("\n") == 1
        assert message in said
