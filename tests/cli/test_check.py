"""`clipkit data check` on the command line."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from clipkit.cli import main
from tests.conftest import write_csv


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., str]:
    """Run the command in this process; return what it prints, after checking that it succeeds."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["clipkit", "data", "check", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
        printed = capsys.readouterr()
        assert stop.value.code in (0, None), printed.err
        assert "Traceback" not in printed.err
        return " ".join(printed.out.split())

    return run


def test_clean_data_has_no_findings(typed: Callable[..., str], shapes: Path) -> None:
    printed = typed(shapes / "captions.csv", "--batch-size", 4)
    assert "16 images, " in printed
    assert "32 captions, 32 of them distinct" in printed
    assert printed.endswith("No problems found.")


def test_faults_are_printed_written_as_json_and_fixed(
    typed: Callable[..., str], shapes: Path, tiny_clip: Path, tmp_path: Path
) -> None:
    image = str(shapes / "images" / "00.png")
    Image.linear_gradient("L").resize((24, 24)).save(tmp_path / "small.png")
    rows = [["gone.png", "a lost one"], [image, "a red square"], [image, "word " * 200], ["small.png", "it is small"]]
    data = write_csv(tmp_path / "d.csv", ["image", "caption"], rows)
    printed = typed(
        data, "--against", shapes / "captions.csv", "--model", tiny_clip, "--batch-size", 2, "--json", "f.json",
        "--fix", "out", "--drop-most", "--workers", 1,
    )  # fmt: skip
    assert "error missing images: 1 of 3 (33.3 %) [missing_images] gone.png → check the paths" in printed
    assert "tokens per caption" in printed
    assert "25 % of the captions are longer than the model's context of 77 tokens" in printed
    assert "findings: f.json" in printed
    assert "(1 image, 1 caption)" in printed
    found = json.loads((tmp_path / "f.json").read_text())
    assert found["settings"] == {"model": str(tiny_clip), "batch_size": 2}
    assert {"missing_images", "leaked_images", "cut_captions", "tiny_images"} <= {
        finding["name"] for finding in found["findings"]
    }
    assert found["facts"]["context_length"] == 77
    assert found["facts"]["input_size"] == 32
    dropped = [json.loads(line) for line in (tmp_path / "out" / "dropped.jsonl").read_text().splitlines()]
    assert {"image": "gone.png", "reason": "cannot be opened: the file does not exist"} in dropped
    assert (tmp_path / "out" / "captions.csv").read_text().splitlines() == [
        "image,caption",
        f"{os.path.relpath(tmp_path / 'small.png', tmp_path / 'out')},it is small",
    ]


def test_images_alone_and_captions_alone_can_be_checked(
    typed: Callable[..., str], shapes: Path, tmp_path: Path
) -> None:
    printed = typed(shapes / "images", "--batch-size", 4)
    assert "16 images, " in printed
    assert "caption" not in printed
    printed = typed(
        write_csv(tmp_path / "t.csv", ["caption"], [["a dog runs"], ["two cats sit"]]), "--only", "captions"
    )
    assert "2 captions, 2 of them distinct" in printed
    assert "pixels" not in printed


@pytest.mark.parametrize(
    ("header", "missing", "alone"),
    [
        (["photo", "caption"], "has no image column", "--only captions"),
        (["caption"], "has no image column", "--only captions"),
        (["image", "words"], "has no caption column", "--only images"),
        (["photo", "words"], "has no image column", ""),
    ],
)
def test_table_without_a_column_is_refused(
    said_here: Callable[..., str],
    typed: Callable[..., str],
    tmp_path: Path,
    header: list[str],
    missing: str,
    alone: str,
) -> None:
    data = write_csv(
        tmp_path / "t.csv", header, [["number 7" if header[0] == "photo" else "00.png", "a dog"][-len(header) :]]
    )
    message = said_here("data", "check", data)
    assert missing in message
    assert f"its columns are {', '.join(header)}" in message
    assert ("--only" in message) == bool(alone)
    if alone:
        assert message.endswith(alone)
        assert "1 " in typed(data, *alone.split())


def test_assumed_batch_is_stated(typed: Callable[..., str], shapes: Path) -> None:
    printed = typed(shapes / "captions.csv")
    assert "expected in a batch of 16: " in printed
    assert "--batch-size is not given; 512 is the default of a recipe" in printed
    assert (
        "note a batch of 512 (the default of a recipe) is larger than the data (16 images) [batch_too_large]" in printed
    )
    printed = typed(shapes / "captions.csv", "--batch-size", 32)
    assert "warning a batch of 32 is larger than the data (16 images) [batch_too_large]" in printed
    assert "default of a recipe" not in printed


def test_wrong_input_is_one_line(said_here: Callable[..., str], shapes: Path, tmp_path: Path) -> None:
    data = shapes / "captions.csv"
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    own = write_csv(tmp_path / "own.csv", ["image", "caption"], [["x.png", "y z"]])
    for arguments, message in [
        (("none.csv",), "file not found"),
        ((data, "--against", "none.csv"), "file not found"),
        ((data, "--model", "none"), "none"),
        ((data, "--json", tmp_path / "no" / "f.json"), "does not exist"),
        ((own, "--json", own), "would overwrite"),
        ((data, "--fix", tmp_path / "full"), "already exists"),
        ((data, "--fix", tmp_path / "no" / "out"), "does not exist"),
        ((shapes / "images", "--fix", shapes / "images" / "out"), "lies inside the data"),
        ((own, "--fix", tmp_path / "new"), "no row is left"),
    ]:
        assert message in said_here("data", "check", *arguments)
    assert not (shapes / "images" / "out").exists()
    assert not (tmp_path / "new").exists()


def test_what_reading_left_out_is_a_finding(typed: Callable[..., str], shapes: Path, tmp_path: Path) -> None:
    for name in ("cat/1.png", "dog/deep/2.png", "dog/.2.png"):
        (tmp_path / "d" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "d" / name).write_bytes((shapes / "images/00.png").read_bytes())
    printed = typed("d", "--json", "f.json")
    found = {finding["name"]: finding for finding in json.loads((tmp_path / "f.json").read_text())["findings"]}
    assert found["left_out"]["examples"] == ["dog/.2.png"]
    assert found["nested_folders"]["count"] == 1
    assert "[left_out]" in printed


def test_lists_that_cannot_be_dropped_are_one_line(
    shapes: Path, tmp_path: Path, said_here: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file, data = tmp_path / "drop.jsonl", shapes / "captions.csv"
    file.write_text('{"image": "gone.png"}\n')
    assert "--fix" in said_here("data", "check", data, "--drop", file)
    assert "other.jsonl" in said_here("data", "check", data, "--fix", "out", "--drop", "other.jsonl")
    assert "gone.png" in said_here("data", "check", data, "--fix", "out", "--drop", file)
    assert not (tmp_path / "out").exists()
