"""One pass: each image and each caption is encoded once for a whole suite; its cost, progress and leaderboard file."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import clipkit
from clipkit.data import read_pairs
from clipkit.embedding import features as features_module
from clipkit.evaluation.suites import leaderboard, read_suite, run_suite, suites_folder
from clipkit.evaluation.suites.progress import Remaining
from clipkit.evaluation.tasks.task import task_of
from clipkit.tasks import TASKS
from tests.cli.test_suite import exit_code
from tests.conftest import write_csv


@pytest.fixture
def shared(shapes: Path, tmp_path: Path) -> Path:
    """A suite whose tasks share images, captions and prompts."""
    near = write_csv(
        tmp_path / "swap.csv",
        ["image", "caption", "negative_caption"],
        [[str(shapes / f"images/{k:02d}.png"), "a red square", "a blue square"] for k in range(4)],
    )
    classes, captions = str(shapes / "classes.csv"), str(shapes / "captions.csv")
    datasets: list[dict[str, Any]] = [
        {"name": "colors", "task": "zeroshot", "source": classes, "templates": ["a {c} square"]},
        {"name": "captions", "task": "retrieval", "source": captions},
        {"name": "again", "task": "retrieval", "source": captions, "metric": "mean_recall@1"},
        {"name": "near", "task": "compositional", "source": str(near)},
        {"name": "same", "task": "instances", "source": classes},
        {"name": "clusters", "task": "clustering", "source": classes},
        {"name": "blurred", "task": "clustering", "source": classes, "corruption": {"name": "blur", "level": 5}},
    ]
    file = tmp_path / "shared.yaml"
    file.write_text(yaml.safe_dump({"name": "shared", "mean": True, "datasets": datasets}))
    return file


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> Counter[Any]:
    """Number of times that each image and each string was encoded."""
    counts: Counter[Any] = Counter()
    for name in ("encode_image", "encode_text"):
        original = getattr(clipkit.DualEncoder, name)

        def encode(self: Any, items: Any, *rest: Any, original: Any = original, **options: Any) -> Any:
            features = original(self, items, *rest, **options)
            counts.update(map(str, items))
            return features

        monkeypatch.setattr(clipkit.DualEncoder, name, encode)
    return counts


@pytest.mark.parametrize("cached", [True, False])
def test_everything_is_encoded_once(
    cached: bool, shared: Path, tiny_clip: Path, tmp_path: Path, encoded: Counter[Any]
) -> None:
    lines: list[str] = []
    cache = tmp_path / "cache" if cached else False
    suite = read_suite(str(shared))
    result = run_suite(suite, [str(tiny_clip)], tmp_path / "out", cache=cache, note=lines.append)
    assert not result.failed
    assert len(result.rows) == 7
    assert max(encoded.values()) == 1
    assert sum(key.endswith(".png") for key in encoded) == 16
    assert sum("~blur" in key for key in encoded) == 16
    # Three prompts, of which some are captions too.
    texts = {"a red square", "a blue square", "a green square", *read_pairs(suite.datasets[1].source).captions}
    assert sum(encoded[text] for text in texts) == len(texts)
    cost = result.cost[str(tiny_clip)]
    assert cost[0].startswith(f"{tiny_clip}: ")
    assert "to encode in 7 datasets; measured here" in cost[0]


def test_cost_counts_distinct_and_cached_items(
    shared: Path, tiny_clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clipkit.evaluation.suites.cost._ROUNDS", {"images": (2, 2), "captions": (1, 1)})
    values = yaml.safe_load(shared.read_text())
    hub = {"name": "hub", "task": "retrieval", "source": "wds:org/none", "images": 70, "captions": 90}
    gone = {"name": "gone", "task": "retrieval", "source": "gone.csv"}
    shared.write_text(yaml.safe_dump({**values, "datasets": [*values["datasets"], hub, gone]}))
    suite, out = read_suite(str(shared)), tmp_path / "out"

    def cost() -> list[str]:
        result = run_suite(suite, [str(tiny_clip)], out, cache=tmp_path / "cache", dry_run=True)
        assert not result.rows
        assert not out.exists()
        return result.cost[str(tiny_clip)]

    first = cost()
    # 16 images, 16 blurred ones and 70 on the Hub, of which four were encoded to measure the speed.
    assert "98 images, " in first[0]
    assert "1 not downloaded, 1 unavailable" in first[0]
    of = {line.split(":")[0].strip(): line for line in first[1:]}
    assert "16 images, 32 captions; 0 images" in of["captions"]
    assert "; 0 images, 0 captions to encode" in of["again"]
    assert "16 images, 0 captions; 16 images" in of["blurred"]
    assert "70 images, 90 captions to encode after the download" in of["hub"]
    assert "gone" not in of
    assert "about" in first[0]
    assert "94 images" in cost()[0]


def test_a_killed_suite_encodes_no_written_image_again(
    shared: Path, tiny_clip: Path, tmp_path: Path, encoded: Counter[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clipkit.evaluation.suites.cost._ROUNDS", {"images": (3,), "captions": (3,)})
    monkeypatch.setattr(features_module, "_FIRST_IMAGES", 4)
    monkeypatch.setattr(features_module, "_SECONDS", 0)
    suite, out, cache = read_suite(str(shared)), tmp_path / "out", tmp_path / "cache"
    add = features_module.FeatureCache.add
    written = Counter[Path]()

    def killed(self: Any, *arguments: Any) -> None:
        add(self, *arguments)
        written[self.folder] += 1
        if written[self.folder] == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(features_module.FeatureCache, "add", killed)
    for _ in range(2):  # while images are encoded, then while captions are
        with pytest.raises(KeyboardInterrupt):
            run_suite(suite, [str(tiny_clip)], out, cache=cache)
    monkeypatch.setattr(features_module.FeatureCache, "add", add)
    result = run_suite(suite, [str(tiny_clip)], out, cache=cache)
    assert len(result.rows) == 7
    assert set(encoded.values()) == {1}
    again = run_suite(suite, [str(tiny_clip)], out, cache=cache)
    assert "7 measured before" in again.cost[str(tiny_clip)][0]
    assert set(encoded.values()) == {1}


def test_speed_and_time_left_are_those_of_the_counts() -> None:
    remaining = Remaining(shown=False)
    remaining.begin({"images": 10, "captions": 4}, after={"images": 30, "captions": 0})
    assert remaining.seconds_left() is None
    remaining.count("images", 5, seconds=1.0)
    assert remaining.seconds_left() is None
    remaining.count("captions", 2, seconds=4.0)
    assert remaining.seconds_left() == pytest.approx((5 + 30) / 5 + 2 / 0.5)
    assert remaining.summary() == "5 images encoded at 5/s, 2 captions encoded at 0/s; 11 s left in total"
    remaining.begin({"images": 30, "captions": 0}, after={"images": 0, "captions": 0})
    assert remaining.summary() == ""
    with remaining.start("images", 8) as bar:  # fewer than estimated
        bar.update(3)
        bar.update(99)
    assert remaining.left("images") == 0


def test_rows_for_leaderboards_keep_their_keys(shared: Path, tiny_clip: Path, tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    command = [shared, "--model", str(tiny_clip), "--out", tmp_path / "out", "--cache", "none", "--json", file]
    assert exit_code(*command) == 0
    content = json.loads(file.read_text())
    assert set(content) == {"format", "suite", "rows", "means", "missing", "versions"}
    assert content["format"] == "clipkit-suite-1"
    for row in content["rows"]:
        assert list(row) == [
            "model", "dataset", "title", "task", "task_type", "metric", "value", "low", "high", "chance", "metrics",
            "images", "captions", "data_sha256", "captions_cut", "seconds",
        ]  # fmt: skip
        assert row["metrics"][row["metric"]] == row["value"]
    rows = {row["dataset"]: row for row in content["rows"]}
    assert rows["captions"]["captions_cut"] == 0
    assert rows["same"]["captions_cut"] is None
    result = run_suite(read_suite(str(shared)), [str(tiny_clip)], tmp_path / "out", cache=False)
    assert leaderboard(result)["means"] == content["means"]


def test_dry_run_prints_the_cost_and_writes_nothing(
    shared: Path, tiny_clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(shared, "--model", str(tiny_clip), "--out", tmp_path / "out", "--cache", "none", "--dry-run") == 0
    assert "to encode in 7 datasets; measured here" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_texts_are_those_that_a_task_encodes(shared: Path, tiny_clip: Path, encoded: Counter[Any]) -> None:
    from clipkit.evaluation.suites.sources import open_data
    from clipkit.evaluation.tasks.task import Options
    from clipkit.processes import Processes

    model = clipkit.load(tiny_clip)
    options = Options(cache=False, processes=Processes.alone(), progress=False)
    for entry in read_suite(str(shared)).datasets:
        encoded.clear()
        data, task = open_data(entry), task_of(entry.task)
        task.run(model, data, options)
        images = {str(image) for part in data.images for image in part}
        texts = set(task.texts(data)) if task.texts is not None else set()
        assert set(encoded) == images | texts


def test_the_offline_suite_holds_every_kind_of_task() -> None:
    assert {entry.task for entry in read_suite("offline").datasets} == set(TASKS)


def test_everything_holds_every_dataset() -> None:
    files = {file.stem for file in suites_folder().glob("*.yaml")} - {"offline"}
    names = {entry.name for name in files for entry in read_suite(name).datasets}
    assert {entry.name for entry in read_suite("everything").datasets} == names


def test_checked_entries_say_what_was_not_verified() -> None:
    for name in ("xm3600", "xtd10", "long_captions", "babel_imagenet", "flickr30k_200", "instance_retrieval"):
        for entry in read_suite(name).datasets:
            assert entry.license, entry.name
            assert entry.checked, entry.name
            assert entry.license != "unknown" or "not verified" in entry.checked or "without" in entry.checked, (
                entry.name
            )


def test_features_of_several_chunks_end_in_one_file(
    tiny_clip: Path, shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features_module, "_FIRST_IMAGES", 4)
    monkeypatch.setattr(features_module, "_SECONDS", 0)
    model, images = clipkit.load(tiny_clip), sorted((shapes / "images").glob("*.png"))
    first = clipkit.evaluation.Features(model, cache=tmp_path).images(images)
    assert len(list(tmp_path.glob("*/*.safetensors"))) == 1
    later = clipkit.evaluation.Features(model, cache=tmp_path)
    assert torch.equal(later.images(images), first)
    assert later.computed == 0
