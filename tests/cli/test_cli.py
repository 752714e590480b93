"""The command line."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from clipkit.recipe import Recipe
from clipkit.training import train
from tests.forked import python


def clipkit(*arguments: str | Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run clipkit and check its exit code; an exit code of 2 must come with exactly one line of error message."""
    done = python("-m", "clipkit", *arguments)
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    if code == 2:
        lines = [line for line in done.stderr.splitlines() if line.startswith("clipkit: ")]
        assert len(lines) == 1, done.stderr
    return done


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_clip: Path, shapes: Path) -> Path:
    """A run of the fine-tuning recipe."""
    out = tmp_path_factory.mktemp("trained") / "run"
    recipe = Path(__file__).parents[2] / "recipes" / "finetune_clip.yaml"
    printed = clipkit(
        "train", recipe, f"model.name={tiny_clip}", f"data.train={shapes / 'captions.csv'}",
        f"data.validation={shapes / 'captions.csv'}", "train.batch_size=8", "train.epochs=2", f"output={out}",
    ).stdout  # fmt: skip
    assert "1 process on" in printed
    assert "mean_recall" in printed
    assert "text → image R@1" in printed
    return out


def test_eval_reproduces_the_metrics_of_a_run(trained: Path, shapes: Path, tmp_path: Path) -> None:
    file, page = tmp_path / "r.json", tmp_path / "r.html"
    data = str(shapes / "captions.csv")
    printed = clipkit("eval", "retrieval", "--model", trained, "--data", data, "--json", file, "--report", page).stdout
    result = json.loads(file.read_text())
    assert result["metrics"] == json.loads((trained / "results.json").read_text())["metrics"]
    assert "text → image R@10" in printed
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")


def test_dry_run_prints_the_complete_recipe_and_writes_nothing(recipe_file: Path, tmp_path: Path) -> None:
    printed = yaml.safe_load(clipkit("train", recipe_file, "optim.lr=3e-4", "--dry-run").stdout)
    assert printed["optim"]["lr"] == 3e-4
    assert printed["eval"]["every_epochs"] == 1
    assert Recipe.from_dict(printed)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "none.yaml"], "none.yaml: file not found"),
        (["train", "{recipe}", "optim.learning_rate=1"], "optim.lr"),
        (["train", "{recipe}", "data.train=none.csv"], "none.csv"),
        (["train", "{recipe}", "model.name=no/model"], "no/model"),
        (["train", "{recipe}", "train.batch_size=999"], "set train.batch_size to at most 16"),
        (["train", "{recipe}", "output={recipe}/x"], "cannot be written to"),
        (["train", "{recipe}", "output={trained}"], "already contains a run"),
        (["train", "{recipe}", "--resume", "--overwrite"], "give only one of them"),
    ],
)  # fmt: skip
def test_wrong_input_is_one_line_and_code_2(
    arguments: list[str], message: str, recipe_file: Path, trained: Path, said_here: Callable[..., str]
) -> None:
    places = {"recipe": recipe_file, "trained": trained}
    before = sorted((path, path.stat().st_mtime_ns) for path in trained.rglob("*"))
    assert message in said_here(*(argument.format(**places) for argument in arguments))
    assert sorted((path, path.stat().st_mtime_ns) for path in trained.rglob("*")) == before


def test_unknown_model_of_clipkit_models_is_refused() -> None:
    assert "no/model" in clipkit("models", "no/model", code=2).stderr


def test_run_is_resumed_and_replaced(recipe: Callable[..., Recipe], recipe_file: Path, tmp_path: Path) -> None:
    train(recipe())
    first = (tmp_path / "run" / "metrics.jsonl").read_text()
    train(recipe(), resume=True)
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == first
    clipkit("train", recipe_file, "train.seed=5", "--overwrite")
    assert (tmp_path / "run" / "metrics.jsonl").read_text() != first


def test_models_describes_and_lists_models(tiny_clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from clipkit.cli.models import models

    printed = clipkit("models", tiny_clip).stdout
    assert "77 tokens" in printed
    assert "training with AdamW at a micro-batch size of 1" in printed
    models(str(tiny_clip), as_json=True)
    assert json.loads(capsys.readouterr().out)["embed_dim"] == 24
    models(search="ViT-B-32")
    assert "open_clip:ViT-B-32-quickgelu/openai" in capsys.readouterr().out
    models(search="nonsense")
    assert "nonsense" in capsys.readouterr().out


@pytest.mark.parametrize("parallel", [None, pytest.param("true", marks=pytest.mark.slow)])
def test_loader_workers_do_not_deadlock_after_parallel_tokenization(recipe_file: Path, parallel: str | None) -> None:
    """Workers are forked after the tokenizer has run in threads of the parent; this once deadlocked."""
    environment = {name: value for name, value in os.environ.items() if name != "TOKENIZERS_PARALLELISM"}
    environment |= {"TOKENIZERS_PARALLELISM": parallel} if parallel else {}
    arguments = ["-m", "clipkit", "train", recipe_file, "data.workers=1", "--overwrite"]
    done = python(*arguments, environment=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "TOKENIZERS_PARALLELISM" not in done.stderr


def test_missing_argument_has_exit_code_2() -> None:
    done = subprocess.run([sys.executable, "-m", "clipkit", "train"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "Missing argument" in done.stderr
    assert "Traceback" not in done.stderr


def test_demo_refuses_a_folder_with_other_files(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    assert "--out" in clipkit("demo", "--out", tmp_path, code=2).stderr
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
