"""`clipkit eval` on the command line."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from pyarrow import parquet
from typer.testing import CliRunner

from clipkit.cli import app
from clipkit.errors import UserError
from clipkit.tasks import TASKS
from tests.conftest import COLOURS, SHAPES, write_csv
from tests.forked import together


def run(*arguments: str | Path) -> str:
    """Run it in this process and return what it prints."""
    done = CliRunner().invoke(app, ["eval", *map(str, arguments)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


@pytest.mark.parametrize("task", TASKS)
def test_every_task_has_a_command(task: str) -> None:
    assert "--data" in run(task, "--help")


def test_zeroshot_with_classes_and_templates_from_files(tiny_clip: Path, shapes: Path, tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("red\ngreen\nblue\nyellow\npurple\n")
    (tmp_path / "templates.txt").write_text("a {c} square\na {c} circle\n")
    file, page, rows = (tmp_path / name for name in ("z.json", "z.html", "z.parquet"))
    printed = run(
        "zeroshot", "--model", tiny_clip, "--data", shapes / "classes.csv", "--json", file, "--report", page,
        "--classes", tmp_path / "classes.txt", "--templates", tmp_path / "templates.txt", "--predictions", rows,
    )  # fmt: skip
    result = json.loads(file.read_text())
    assert result["task"] == "zeroshot"
    assert result["settings"]["templates"] == ["a {c} square", "a {c} circle"]
    assert result["metrics"]["acc5"]["value"] == 1.0
    assert "top-1 accuracy" in printed
    assert "calibration error" in printed
    assert "hardest classes" in page.read_text(encoding="utf-8")
    assert parquet.read_table(rows).num_rows == 16


def test_zeroshot_with_a_named_set_of_prompts(tiny_clip: Path, shapes: Path, tmp_path: Path) -> None:
    file = tmp_path / "z.json"
    data = shapes / "classes.csv"
    run("zeroshot", "--model", tiny_clip, "--data", data, "--templates", "imagenet_simple", "--json", file)
    assert len(json.loads(file.read_text())["settings"]["templates"]) == 7
    prompt = "a picture of {c}, and more words than the name of any file may have: " + "so it is " * 40
    run("zeroshot", "--model", tiny_clip, "--data", data, "--templates", prompt, "--json", file)
    assert json.loads(file.read_text())["settings"]["templates"] == [prompt]


def test_probe_with_shots(tiny_clip: Path, shapes: Path, tmp_path: Path) -> None:
    file, data = tmp_path / "p.json", shapes / "classes.csv"
    printed = run("probe", "--model", tiny_clip, "--data", data, "--test", data, "--shots", "2", "--json", file)
    result = json.loads(file.read_text())
    assert result["task"] == "probe"
    assert result["settings"]["shots"] == 2
    assert "linear probe: top-1 accuracy" in printed


def test_compositional_with_report(tiny_clip: Path, shapes: Path, tmp_path: Path) -> None:
    rows = [
        [str(shapes / f"images/{4 * n + m:02d}.png"), f"a {color} {shape}", f"a {shape}"]
        for n, color in enumerate(COLOURS)
        for m, shape in enumerate(SHAPES)
    ]
    data = write_csv(tmp_path / "near.csv", ["image", "caption", "negative_caption"], rows)
    file, page, answers = tmp_path / "c.json", tmp_path / "c.html", tmp_path / "c.parquet"
    printed = run(
        "compositional", "--model", tiny_clip, "--data", data, "--json", file, "--report", page,
        "--predictions", answers,
    )  # fmt: skip
    assert parquet.read_table(answers).num_rows == 16
    assert json.loads(file.read_text())["data"]["instances"] == 16
    assert "text score" in printed
    assert "By category" in page.read_text(encoding="utf-8")


def test_maps_need_a_file_that_shows_them(tiny_clip: Path, shapes: Path, tmp_path: Path) -> None:
    command = ["zeroshot", "--model", tiny_clip, "--data", shapes / "classes.csv", "--explain"]
    with pytest.raises(UserError, match="--report"):
        run(*command)
    run(*command, "--report", tmp_path / "a.html")
    assert 'alt="map of ' in (tmp_path / "a.html").read_text(encoding="utf-8")


def test_mistakes_of_several_labels_are_refused_also_with_queries(
    tiny_clip: Path, shapes: Path, tmp_path: Path
) -> None:
    rows = [[str(shapes / f"images/0{n}.png"), label] for n in range(4) for label in ("red", "square")]
    data = write_csv(tmp_path / "several.csv", ["image", "label"], rows)
    command = ["zeroshot", "--model", tiny_clip, "--data", data, "--report", tmp_path / "a.html"]
    with pytest.raises(UserError, match="--explain"):
        run(*command, "--explain", "--explain-query", "red")
    run(*command, "--explain-query", "red")


def test_chosen_queries_are_shown_with_maps(tiny_clip: Path, shapes: Path, tmp_path: Path) -> None:
    page, file = tmp_path / "a.html", tmp_path / "queries.txt"
    command = ["retrieval", "--model", tiny_clip, "--data", shapes / "captions.csv", "--explain-query"]
    with pytest.raises(UserError, match="--explain-query"):
        run(*command, "something red")
    with pytest.raises(UserError, match=r"missing\.txt"):
        run(*command, tmp_path / "missing.txt", "--report", page)
    file.write_text("a cross <b>\n\nblue\n")
    run(*command, "something red", "--explain-query", file, "--report", page)
    shown = page.read_text(encoding="utf-8")
    assert "<p>something red</p>" in shown
    assert "<p>a cross &lt;b&gt;</p>" in shown
    mistakes = shown.split("<h2>Most confident mistakes</h2>")[1].split("<h2>")[0]
    assert shown.count('alt="map of answer') == 3 * 3 + 2 * mistakes.count("correct image at rank")
    assert mistakes.count('alt="map of answer') > 0


def test_compare_two_results(tiny_clip: Path, shapes: Path, tmp_path: Path) -> None:
    first, second, file = (tmp_path / name for name in ("a.json", "b.json", "c.json"))
    data = shapes / "classes.csv"
    run("zeroshot", "--model", tiny_clip, "--data", data, "--json", first)
    (tmp_path / "t.txt").write_text("{c} things\n")
    run("zeroshot", "--model", tiny_clip, "--data", data, "--templates", tmp_path / "t.txt", "--json", second)
    printed = run("compare", first, second, "--json", file)
    assert "B − A (95 % interval)" in printed
    assert json.loads(file.read_text())["metrics"]["acc1"]["p"] <= 1


def test_cached_features_are_used_by_every_command(tiny_clip: Path, shapes: Path, tmp_path: Path) -> None:
    file, cache = tmp_path / "r.json", tmp_path / "cache"
    command = ["retrieval", "--model", tiny_clip, "--data", shapes / "captions.csv", "--json", file]
    for options, expected in (
        (["--cache", cache], {"computed": 48, "from_cache": 0}),
        (["--cache", cache, "--batch-size", "3"], {"computed": 0, "from_cache": 48}),
        (["--cache", "none"], {"computed": 48, "from_cache": 0}),
        (["--cache", cache, "--merge-captions"], {"computed": 0, "from_cache": 48}),
    ):
        run(*command, *options)
        assert json.loads(file.read_text())["settings"]["features"] == expected


@pytest.mark.parametrize(
    "launcher", [None, *(pytest.param(name, marks=pytest.mark.slow) for name in ("processes", "torchrun"))]
)
def test_processes_give_the_result_of_one_process_and_share_the_cache(
    launcher: str | None, tiny_clip: Path, shapes: Path, tmp_path: Path
) -> None:
    file, one = tmp_path / "two.json", tmp_path / "one.json"
    # Five images on two processes; some features are cached already.
    lines = (shapes / "captions.csv").read_text().splitlines()
    data = shapes / "some.csv"
    data.write_text("\n".join(lines[:11]) + "\n")
    first = shapes / "first.csv"
    first.write_text("\n".join(lines[:3]) + "\n")
    environment = os.environ | {"CLIPKIT_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    command = ["eval", "retrieval", "--model", str(tiny_clip), "--json"]
    run(*command[1:], one, "--data", first, "--cache", tmp_path / "cache")
    several = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "clipkit"]
    arguments = [*command, str(file), "--data", str(data), "--predictions", str(tmp_path / "p.parquet")]
    if launcher is None:
        printed, errors = together(2, "-m", "clipkit", *arguments, environment=environment)
    else:
        start = [sys.executable, "-m", "clipkit"]
        arguments = [*start, *arguments, "--processes=2"] if launcher == "processes" else [*several, *arguments]
        done = subprocess.run(arguments, env=environment, check=True, capture_output=True, text=True)
        printed, errors = done.stdout, done.stderr
    assert printed.count("text → image R@1 ") == 1  # only the main process prints
    assert "config has no run_id" not in errors
    run(*command[1:], one, "--data", data, "--cache", "none")
    two, alone = (json.loads(path.read_text()) for path in (file, one))
    assert two["settings"]["features"] == {"computed": 12, "from_cache": 3}
    assert two["data"] == alone["data"]
    assert two["metrics"] == alone["metrics"]
    assert parquet.read_table(tmp_path / "p.parquet").num_rows == 15
    # All features are cached now.
    run(*command[1:], one, "--data", data, "--cache", tmp_path / "cache")
    assert json.loads(one.read_text())["settings"]["features"]["computed"] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["retrieval", "--model", "no/model", "--data", "{captions}"], "no/model"),
        (["retrieval", "--model", "{model}", "--data", "none.csv"], "not found"),
        (["zeroshot", "--model", "{model}", "--data", "{captions}"], "no label column"),
        (["zeroshot", "--model", "{model}", "--data", "{classes}", "--classes", "none"], "none: file not found"),
        (["zeroshot", "--model", "{model}", "--data", "{classes}", "--templates", "none"], "imagenet_simple"),
        (["retrieval", "--model", "{model}", "--data", "{captions}", "--json", "no/dir/f"], "does not exist"),
        (["retrieval", "--model", "{model}", "--data", "{captions}", "--predictions", "no/f"], "does not exist"),
        (["retrieval", "--model", "{model}", "--data", "{captions}", "--cache", "{classes}"], "cache"),
        (["probe", "--model", "{model}", "--data", "{classes}", "--shots", "9"], "decrease --shots"),
        (["compositional", "--model", "{model}", "--data", "{captions}"], "negative_caption"),
        (["retrieval", "--model", "{model}", "--data", "{captions}", "--predictions", "{folder}"], "is a folder"),
        (["retrieval", "--model", "{model}", "--data", "{captions}", "--json", "{captions}"], "would overwrite"),
        (
            [
                "retrieval",
                "--model",
                "{model}",
                "--data",
                "{captions}",
                "--json",
                "{folder}/a",
                "--report",
                "{folder}/a",
            ],
            "would overwrite",
        ),
        (["zeroshot", "--model", "{model}", "--data", "{classes}", "--classes", "cat, " * 99], "cat, cat"),
        (["compare", "none.json", "{classes}"], "file not found"),
    ],
)
def test_wrong_input_is_one_line_and_code_2(
    arguments: list[str], message: str, tiny_clip: Path, shapes: Path, said_here: Callable[..., str]
) -> None:
    files = {"captions": shapes / "captions.csv", "classes": shapes / "classes.csv"}
    places = files | {"model": tiny_clip, "folder": shapes}
    before = {file: file.read_bytes() for file in files.values()}
    assert message in said_here("eval", *(argument.format(**places) for argument in arguments))
    assert {file: file.read_bytes() for file in files.values()} == before


def test_error_on_one_process_ends_all_processes_with_one_message(
    tiny_clip: Path, shapes: Path, tmp_path: Path
) -> None:
    """Two images on three processes: the first process has none, the last has a broken one."""
    (tmp_path / "00.png").write_bytes((shapes / "images/00.png").read_bytes())
    (tmp_path / "broken.png").write_bytes(b"no image")
    rows = [["00.png", "a"], ["broken.png", "c"]]
    data = write_csv(tmp_path / "d.csv", ["image", "caption"], rows)
    command = ["-m", "clipkit", "eval", "retrieval", "--model", tiny_clip, "--data", data]
    _, errors = together(3, *command, code=2)
    lines = [line for line in errors.splitlines() if line.startswith("clipkit: ")]
    assert len(lines) == 1
    assert "broken.png: is not an image" in lines[0]
    assert "Traceback" not in errors


def test_brackets_in_captions_are_printed_literally(capsys: pytest.CaptureFixture[str]) -> None:
    from clipkit.cli.tables import print_comparison

    changed = [{"asks": "text", "query": "a dog [/b] runs", "first_rank": 1, "second_rank": 9}]
    comparison = {"task": "t", "first": "a", "second": "b", "data": {"name": "data[v1]"}, "metrics": {}}
    print_comparison(comparison | {"disagreements": changed}, "a.json", "b.json")
    printed = capsys.readouterr().out
    assert "a dog [/b] runs" in printed
    assert "data[v1]" in printed


def test_what_is_left_out_is_printed_and_kept(tiny_clip: Path, shapes: Path, tmp_path: Path) -> None:
    for row, name in enumerate(
        ("cat/1.png", "dog/2.png", "dog/small/3.png", "dog/._2.png", ".ipynb_checkpoints/1.png")
    ):
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / name).write_bytes((shapes / f"images/{row:02d}.png").read_bytes())
    printed = run("zeroshot", "--model", tiny_clip, "--data", tmp_path / "data", "--json", tmp_path / "z.json")
    data = json.loads((tmp_path / "z.json").read_text())["data"]
    assert (data["images"], data["classes"], len(data["findings"])) == (3, 2, 2)
    for words in ("2 hidden or system names", "1 of 3"):
        assert any(words in line for line in data["findings"])
        assert words in printed
