"""`clipkit merge`, as it is typed."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import clipkit
from clipkit.evaluation.held_out import HeldOut
from tests.cli.test_export import type_
from tests.models.families import build


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("clip", tmp_path_factory.mktemp("model") / "clip")


def test_merge_interpolates_weights(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tuned = clipkit.load(model)
    with torch.no_grad():
        tuned.logit_scale.add_(1.0)
    tuned.save(tmp_path / "tuned")
    type_(monkeypatch, "merge", model, tmp_path / "tuned", "--alpha", "0.25", "--out", tmp_path / "merged")
    assert "0.75 and 0.25" in capsys.readouterr().out
    expected = clipkit.load(model).logit_scale.item() + 0.25
    assert clipkit.load(tmp_path / "merged").logit_scale.item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("file", [pytest.param("captions.csv", marks=pytest.mark.slow), "classes.csv"])
def test_greedy_soup_prints_what_it_kept(
    file: str, model: Path, shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    names = [str(model)]
    for number in range(2):
        torch.manual_seed(number)
        tuned = clipkit.load(model)
        with torch.no_grad():
            for parameter in tuned.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
        tuned.save(tmp_path / f"tuned{number}")
        names.append(str(tmp_path / f"tuned{number}"))
    data = str(shapes / file)
    type_(monkeypatch, "merge", "--greedy", "--data", data, *names, "--out", tmp_path / "soup")
    printed = capsys.readouterr().out
    held_out = HeldOut(data)
    scores = [held_out.score(clipkit.load(name)) for name in names]
    soup = held_out.score(clipkit.load(tmp_path / "soup"))
    assert soup >= max(scores)
    assert f"{100 * max(scores):.1f} %" in printed
    assert all(Path(name).name in printed for name in names)
    assert f"{100 * soup:.1f} %" in printed


def test_invalid_input_is_refused_in_one_line(model: Path, tmp_path: Path, said_here: Callable[..., str]) -> None:
    out = ["--out", tmp_path / "out"]
    assert "give two or more" in said_here("merge", model, *out)
    assert "leave out --alpha" in said_here("merge", model, model, model, "--alpha", 0.5, *out)
    assert "--data D" in said_here("merge", "--greedy", model, model, *out)
    assert "leave out --alpha" in said_here("merge", "--greedy", "--data", "d.csv", "--alpha", 0.5, model, model, *out)
    assert "add --greedy" in said_here("merge", "--data", "d.csv", model, model, *out)
    assert "none.csv" in said_here("merge", "--greedy", "--data", "none.csv", model, model, *out)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    assert "already exists" in said_here("merge", model, model, "--out", tmp_path / "full")
    assert [path.name for path in tmp_path.iterdir()] == ["full"]
