"""Suites: their files, what they measure, and how they go on."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import clipkit
from clipkit.errors import DataError
from clipkit.evaluation.suites import read_suite, run_suite, suites_folder
from clipkit.evaluation.suites.corruptions import Corrupted, worse
from clipkit.evaluation.suites.entries import Corruption
from clipkit.evaluation.suites.robustness import expected, robustness
from clipkit.report import suite_markdown, suite_report
from clipkit.report.suite import suite_tables
from tests.conftest import draw


@pytest.fixture
def mine(shapes: Path, tmp_path: Path) -> Path:
    """A user's own suite: ten lines."""
    file = tmp_path / "mine.yaml"
    classes = shapes / "classes.csv"
    file.write_text(
        f"""
name: mine
title: My pictures
datasets:
  - {{name: colours, task: zeroshot, source: {classes}, templates: ["a {{c}} thing", "{{c}}"]}}
  - {{name: captions, task: retrieval, source: {shapes / "captions.csv"}, pictures: 16, captions: 32}}
  - {{name: noisy, task: zeroshot, source: {classes}, corruption: {{name: noise, level: 4}}, version_of: colours}}
  - {{name: elsewhere, task: retrieval, source: nowhere.csv}}
"""
    )
    return file


def test_a_suite_of_ones_own(mine: Path, tiny_clip: Path, shapes: Path, tmp_path: Path) -> None:
    said: list[str] = []
    found = run_suite(read_suite(str(mine)), [str(tiny_clip)], tmp_path / "out", cache=False, say=said.append)
    assert list(found.unreached) == ["elsewhere"]
    assert "nowhere.csv" in found.unreached["elsewhere"]
    assert not found.failed
    value = {row["dataset"]: row["value"] for row in found.rows}
    model = clipkit.load(tiny_clip)
    templates = ["a {c} thing", "{c}"]
    wanted = clipkit.evaluate.zeroshot(model, str(shapes / "classes.csv"), templates=templates, cache=False)
    assert value["colours"] == wanted["metrics"]["acc1"]["value"]
    recall = clipkit.evaluate.retrieval(model, str(shapes / "captions.csv"), cache=False)["metrics"]["mean_recall"]
    assert value["captions"] == recall["value"]
    assert [own["dataset"] for own in found.robustness] == ["noisy"]
    written = json.loads((tmp_path / "out" / "results.json").read_text())
    assert written["rows"] == found.rows
    page = suite_report(written)
    assert "elsewhere was not reached" in page
    assert "| My" not in suite_markdown(written)
    assert "colours" in suite_markdown(written)


def test_what_was_measured_is_kept_until_something_changes(mine: Path, tiny_clip: Path, tmp_path: Path) -> None:
    suite, out = read_suite(str(mine)), tmp_path / "out"

    def said(name: Path) -> list[str]:
        lines: list[str] = []
        run_suite(suite, [str(name)], out, cache=False, say=lines.append)
        return [line for line in lines if "not reached" not in line]

    assert not any("measured before" in line for line in said(tiny_clip))
    assert all("measured before" in line for line in said(tiny_clip))
    results = sorted(out.glob("*--captions.json"))
    results[0].write_text(results[0].read_text()[:100])  # cut by a kill of a file system that loses its end
    lines = said(tiny_clip)
    assert sum("measured before" in line for line in lines) == len(lines) - 1
    other = tmp_path / "other"
    shutil.copytree(tiny_clip, other)
    model = clipkit.load(other)
    with torch.no_grad():
        model.logit_scale.add_(0.1)
    said(other)
    model.save(other)  # the same name, another model
    assert not any("measured before" in line for line in said(other))


def test_one_failure_is_not_the_others(mine: Path, tiny_clip: Path, shapes: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(shapes, data)
    values = yaml.safe_load(mine.read_text())
    values["datasets"][0]["source"] = str(data / "classes.csv")
    mine.write_text(yaml.safe_dump(values))
    (data / "images" / "03.png").write_bytes(b"no picture")
    found = run_suite(read_suite(str(mine)), [str(tiny_clip)], tmp_path / "out", cache=False)
    assert [name.partition(" with ")[0] for name in found.failed] == ["colours"]
    assert {row["dataset"] for row in found.rows} == {"captions", "noisy"}


def test_several_models_and_published_figures_stand_side_by_side(mine: Path, tiny_clip: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(tiny_clip, other)
    values = yaml.safe_load(mine.read_text())
    values["datasets"][0]["published"] = [{"model": "theirs", "metric": "acc1", "value": 0.633, "source": "a paper"}]
    mine.write_text(yaml.safe_dump(values))
    models = [str(tiny_clip), str(other)]
    result = run_suite(read_suite(str(mine)), models, tmp_path / "out", cache=False).to_dict()
    main, robust = suite_tables(result)
    assert main.header == ["", "figure", *models, "chance", "published"]
    assert main.rows[0][-1] == "theirs 63.3 %"
    assert [row[2] for row in robust.rows] == models


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"datasets": [{"name": "a", "task": "zeroshot", "sauce": "x"}]}, "sauce"),
        ({"datasets": [{"name": "a", "task": "zeroshot", "source": "x"}] * 2}, "stands in datasets twice"),
        ({"datasets": [{"name": "a", "task": "zeroshot", "source": "x", "version_of": "b"}]}, "not among the datasets"),
        ({"datasets": ["nothing_of_the_kind"]}, "there is no file nothing_of_the_kind.yaml"),
        ({"datasets": [{"name": "a", "task": "probe", "source": "x"}]}, "give train"),
        ({"datasets": [{"name": "a", "task": "probe", "source": "x", "corruption": {"name": "rain"}}]}, "corruption"),
    ],
)  # fmt: skip
def test_what_is_wrong_in_a_file_is_one_line(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump({"name": "mine"} | change))
    with pytest.raises(DataError, match=message) as error:
        read_suite(str(file))
    assert "\n" not in str(error.value)


def test_names_that_are_none() -> None:
    with pytest.raises(DataError, match="did you mean offline"):
        read_suite("ofline")
    with pytest.raises(DataError, match="there is no such file"):
        read_suite("nowhere.yaml")


def test_a_set_with_other_counts_is_refused(mine: Path, tiny_clip: Path, tmp_path: Path) -> None:
    values = yaml.safe_load(mine.read_text())
    values["datasets"][1]["pictures"] = 17
    mine.write_text(yaml.safe_dump(values))
    found = run_suite(read_suite(str(mine)), [str(tiny_clip)], tmp_path / "out", cache=False)
    assert "has 16 pictures, and captions should have 17" in found.unreached["captions"]


@pytest.mark.parametrize("name", ["blur", "noise", "jpeg", "brightness"])
def test_corruptions_are_the_same_every_time_and_worse_by_level(name: Any, tmp_path: Path) -> None:
    picture = draw("red", "cross", size=64)
    picture.save(tmp_path / "a.png")
    off = []
    for level in range(1, 6):
        corruption = Corruption(name=name, level=level)
        own = Corrupted(tmp_path / "a.png", corruption)
        assert own.read_bytes() == own.read_bytes()
        assert own.name == f"a.png~{name}-{level}"
        changed = np.asarray(worse(picture, corruption, "a.png"), dtype=float)
        off.append(abs(changed - np.asarray(picture, dtype=float)).mean())
    assert off == sorted(off)
    assert off[0] > 0
    other = worse(picture, Corruption(name="noise", level=1), "b.png")
    assert other != worse(picture, Corruption(name="noise", level=1), "a.png")


def test_corruptions_do_what_they_say() -> None:
    grey = Image.new("RGB", (200, 200), (100, 100, 100))
    bright = np.asarray(worse(grey, Corruption(name="brightness", level=5), "x"))
    assert (bright == 228).all()  # 100 + 127.5, to even
    noisy = np.asarray(worse(grey, Corruption(name="noise", level=2), "x"), dtype=float)
    assert noisy.std() == pytest.approx(255 * 0.08, rel=0.02)
    edge = Image.new("L", (200, 200))
    edge.paste(255, (100, 0, 200, 200))
    blurred = np.asarray(worse(edge.convert("RGB"), Corruption(name="blur", level=5), "x"), dtype=float)[100, :, 0]
    derivative = np.diff(blurred)
    spread = math.sqrt((derivative * (np.arange(199) - 99) ** 2).sum() / derivative.sum())
    assert spread == pytest.approx(0.03 * 200, rel=0.1)


def test_effective_robustness_by_hand(mine: Path) -> None:
    suite = read_suite(str(mine))
    rows = [
        {"dataset": "colours", "model": "base", "value": 0.6}, {"dataset": "noisy", "model": "base", "value": 0.4},
        {"dataset": "colours", "model": "better", "value": 0.8}, {"dataset": "noisy", "model": "better", "value": 0.7},
    ]  # fmt: skip
    first, second = robustness(suite, rows, ["base", "better"])
    assert first["effective_robustness"] is None
    assert first["relative_drop"] == pytest.approx(1 / 3)
    odds = (0.8 / 0.2) * (0.4 / 0.6) / (0.6 / 0.4)
    assert expected(0.8, 0.6, 0.4) == pytest.approx(odds / (1 + odds))
    assert second["effective_robustness"] == pytest.approx(0.7 - odds / (1 + odds))


SHIPPED = sorted(own.stem for own in suites_folder().glob("*.yaml"))


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_file(name: str) -> None:
    suite = read_suite(name)
    assert suite.name == name
    values = yaml.safe_load((suites_folder() / f"{name}.yaml").read_text())
    for entry in suite.datasets:
        assert entry.title
        for own in entry.published:
            assert own.source
        if "datasets" not in values:
            assert entry.name == name


def test_class_counts_are_those_of_their_sources() -> None:
    """CLIP_benchmark's class names, where it has them."""
    import clip_benchmark.datasets

    folder = Path(clip_benchmark.datasets.__file__).parent
    known = json.loads((folder / "en_classnames.json").read_text())
    checked = 0
    for name in SHIPPED:
        for entry in read_suite(name).datasets:
            theirs = entry.source.rpartition("/wds_")[2].removeprefix("vtab-").partition("@")[0]
            if entry.source.startswith("wds:") and entry.class_count is not None and theirs in known:
                assert entry.class_count == len(known[theirs]), name
                checked += 1
    assert checked >= 8
