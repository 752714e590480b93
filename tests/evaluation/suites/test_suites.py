"""Suites: files, measurements, resuming, corruptions and robustness."""

import ast
import json
import math
import re
import shutil
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
import yaml
from PIL import Image

import clipkit
from clipkit.errors import DataError, UnreachedError, UserError
from clipkit.evaluation.suites import read_suite, run_suite, suites_folder
from clipkit.evaluation.suites.corruptions import Corrupted, corrupted
from clipkit.evaluation.suites.entries import Corruption, DataSet
from clipkit.evaluation.suites.robustness import expected, robustness, robustness_means
from clipkit.evaluation.suites.sources import fingerprint_of, open_data
from clipkit.images import open_image
from clipkit.report.suite import suite_markdown, suite_report, suite_tables
from tests.conftest import draw, write_csv


@pytest.fixture
def mine(shapes: Path, tmp_path: Path) -> Path:
    """A suite that a user wrote."""
    file = tmp_path / "mine.yaml"
    classes = shapes / "classes.csv"
    file.write_text(
        f"""
name: mine
title: My images
datasets:
  - {{name: colors, task: zeroshot, source: {classes}, templates: ["a {{c}} thing", "{{c}}"]}}
  - {{name: captions, task: retrieval, source: {shapes / "captions.csv"}, images: 16, captions: 32}}
  - {{name: noisy, task: zeroshot, source: {classes}, corruption: {{name: noise, level: 4}}, version_of: colors}}
  - {{name: elsewhere, task: retrieval, source: nowhere.csv}}
"""
    )
    return file


def test_available_datasets_are_measured_and_others_are_listed(
    mine: Path, tiny_clip: Path, shapes: Path, tmp_path: Path
) -> None:
    lines: list[str] = []
    result = run_suite(read_suite(str(mine)), [str(tiny_clip)], tmp_path / "out", cache=False, log=lines.append)
    assert list(result.unreached) == ["elsewhere"]
    assert "nowhere.csv" in result.unreached["elsewhere"]
    assert not result.failed
    value = {row["dataset"]: row["value"] for row in result.rows}
    model = clipkit.load(tiny_clip)
    templates = ["a {c} thing", "{c}"]
    expected = clipkit.evaluate.zeroshot(model, str(shapes / "classes.csv"), templates=templates, cache=False)
    assert value["colors"] == expected["metrics"]["acc1"]["value"]
    recall = clipkit.evaluate.retrieval(model, str(shapes / "captions.csv"), cache=False)["metrics"]["mean_recall"]
    assert value["captions"] == recall["value"]
    assert [row["dataset"] for row in result.robustness] == ["noisy"]
    written = json.loads((tmp_path / "out" / "results.json").read_text())
    assert written["rows"] == result.rows
    page = suite_report(written)
    assert "elsewhere is unavailable" in page
    assert "| My" not in suite_markdown(written)
    assert "colors" in suite_markdown(written)


def test_results_are_kept_until_model_or_file_changes(mine: Path, tiny_clip: Path, tmp_path: Path) -> None:
    suite, out = read_suite(str(mine)), tmp_path / "out"

    def lines_of(name: Path) -> list[str]:
        lines: list[str] = []
        run_suite(suite, [str(name)], out, cache=False, log=lines.append)
        return [line for line in lines if "not available" not in line]

    assert not any("measured before" in line for line in lines_of(tiny_clip))
    assert all("measured before" in line for line in lines_of(tiny_clip))
    results = sorted(out.glob("*--captions.json"))
    results[0].write_text(results[0].read_text()[:100])  # truncated, as after a crash
    lines = lines_of(tiny_clip)
    assert sum("measured before" in line for line in lines) == len(lines) - 1
    other = tmp_path / "other"
    shutil.copytree(tiny_clip, other)
    model = clipkit.load(other)
    with torch.no_grad():
        model.logit_scale.add_(0.1)
    lines_of(other)
    model.save(other)  # the same name, but another model
    assert not any("measured before" in line for line in lines_of(other))


def test_fingerprint_depends_on_every_part_of_the_data(shapes: Path, tmp_path: Path) -> None:
    file = tmp_path / "swap.csv"
    header = "image,caption,negative_caption,category\n"

    def fingerprint(row: str) -> str:
        file.write_text(f"{header}{row}\n")
        source = f"{file}?images={shapes / 'images'}"
        return fingerprint_of(open_data(DataSet(name="near", task="compositional", source=source)))

    first, *others = (fingerprint(row) for row in ("00.png,a,b,x", "01.png,a,b,x", "00.png,b,a,x", "00.png,a,b,y"))
    assert first == fingerprint("00.png,a,b,x")
    assert first not in others
    table = write_csv(tmp_path / "pairs.csv", ["image", "caption"], [["images/00.png", "a red square"]])
    image = shutil.copytree(shapes / "images", tmp_path / "images") / "00.png"
    pairs = DataSet(name="pairs", task="retrieval", source=str(table))
    noisy = pairs.model_copy(update={"corruption": Corruption(name="blur", level=1)})
    before = [fingerprint_of(open_data(entry)) for entry in (pairs, noisy)]
    assert before == [fingerprint_of(open_data(entry)) for entry in (pairs, noisy)]
    content = bytearray(image.read_bytes())
    content[-20] ^= 1
    image.write_bytes(content)
    after = [fingerprint_of(open_data(entry)) for entry in (pairs, noisy)]
    assert not set(before) & set(after)


def test_one_failing_dataset_does_not_stop_the_others(
    mine: Path, tiny_clip: Path, shapes: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    shutil.copytree(shapes, data)
    values = yaml.safe_load(mine.read_text())
    values["datasets"][0]["source"] = str(data / "classes.csv")
    mine.write_text(yaml.safe_dump(values))
    (data / "images" / "03.png").write_bytes(b"no image")
    result = run_suite(read_suite(str(mine)), [str(tiny_clip)], tmp_path / "out", cache=False)
    assert [name.partition(" with ")[0] for name in result.failed] == ["colors"]
    assert {row["dataset"] for row in result.rows} == {"captions", "noisy"}


def test_tables_show_several_models_and_published_figures(mine: Path, tiny_clip: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(tiny_clip, other)
    values = yaml.safe_load(mine.read_text())
    theirs = {"model": "theirs", "value": 0.633, "source": "a paper"}
    values["datasets"][0]["published"] = [theirs | {"metric": "acc1"}, theirs | {"model": "no", "metric": "acc5"}]
    mine.write_text(yaml.safe_dump(values))
    models = [str(tiny_clip), str(other)]
    result = run_suite(read_suite(str(mine)), models, tmp_path / "out", cache=False).to_dict()
    main, beside, robust = suite_tables(result)
    assert main.header == ["", "metric", *models, "chance"]
    assert beside.header == ["", "metric", *models, "theirs"]
    assert [row[0] for row in beside.rows] == [main.rows[0][0]]
    assert beside.rows[0][-1] == "63.3 %"
    assert all(cell.startswith(value) for cell, value in zip(main.rows[0][2:4], beside.rows[0][2:4], strict=True))
    assert beside.note == "theirs: as published in a paper."
    assert [row[2] for row in robust.rows] == models
    assert robust.rows[0][:2] == ["noisy (16 images)", "colors"]
    result["mean"] = {models[0]: 0.5, models[1]: None}
    for name in result["published"]:
        result["published"][name] = [theirs | {"metric": metric} for metric in ("acc1", "mean_recall")]
    result["published"]["captions"][1] |= {"value": 0.4, "source": "a table"}
    beside = suite_tables(result)[1]
    assert beside.rows[-1] == ["mean of 3", "", "50.0 %", "–", f"{100 * (0.633 + 0.633 + 0.4) / 3:.1f} %"]
    assert beside.note == "theirs: as published in a paper; theirs: as published in a table."
    result["robustness_means"][0]["versions"] = 2
    assert suite_tables(result)[3].rows[0][:3] == ["colors", models[0], "2"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"datasets": [{"name": "a", "task": "zeroshot", "sauce": "x"}]}, "sauce"),
        ({"datasets": [{"name": "a", "task": "zeroshot", "source": "x"}] * 2}, "twice"),
        ({"datasets": [{"name": "a", "task": "zeroshot", "source": "x", "version_of": "b"}]}, "not a dataset of"),
        ({"datasets": ["nothing_of_the_kind"]}, "nothing_of_the_kind.yaml"),
        ({"datasets": [{"name": "a", "task": "probe", "source": "x"}]}, "add train"),
        ({"datasets": [{"name": "../a", "task": "zeroshot", "source": "x"}]}, "datasets.0.name"),
        ({"datasets": [{"name": "a", "task": "zeroshoot", "source": "x"}]}, "'zeroshoot'.*zeroshot"),
        ({"datasets": [{"name": "a", "task": "retrieval", "source": "x", "train": "y"}]}, "retrieval.*remove train"),
        ({"datasets": [{"name": "a", "task": "zeroshot", "source": "wds:cifar10"}]}, "wds:ORG/NAME"),
        ({"datasets": [{"name": "a", "task": "probe", "source": "x", "corruption": {"name": "rain"}}]}, "corruption"),
    ],
)  # fmt: skip
def test_invalid_suite_file_is_refused_in_one_line(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump({"name": "mine"} | change))
    with pytest.raises(DataError, match=message) as error:
        read_suite(str(file))
    assert "\n" not in str(error.value)


def test_unknown_suite_names_are_refused_with_advice() -> None:
    with pytest.raises(DataError, match="did you mean offline"):
        read_suite("ofline")
    with pytest.raises(DataError, match="imagenet1k"):
        read_suite("imagenet")
    with pytest.raises(DataError, match="choose one of .*caltech101"):
        read_suite("nosuch")
    with pytest.raises(DataError, match="nowhere.yaml"):
        read_suite("nowhere.yaml")


def test_dataset_with_unexpected_counts_fails(mine: Path, tiny_clip: Path, tmp_path: Path) -> None:
    values = yaml.safe_load(mine.read_text())
    values["datasets"][1]["images"] = 17
    mine.write_text(yaml.safe_dump(values))
    result = run_suite(read_suite(str(mine)), [str(tiny_clip)], tmp_path / "out", cache=False)
    assert "17" in result.failed["captions"]
    assert list(result.unreached) == ["elsewhere"]


@pytest.mark.parametrize("name", ["blur", "noise", "jpeg", "brightness"])
def test_corruptions_are_deterministic_and_increase_with_the_level(name: Any, tmp_path: Path) -> None:
    image = draw("red", "cross", size=64)
    image.save(tmp_path / "a.png")
    off = []
    for level in range(1, 6):
        corruption = Corruption(name=name, level=level)
        stored = Corrupted(tmp_path / "a.png", corruption)
        assert stored.read_bytes() == stored.read_bytes()
        assert stored.name == f"a.png~{name}-{level}"
        changed = np.asarray(corrupted(image, corruption, "a.png"), dtype=float)
        assert (np.asarray(open_image(stored), dtype=float) == changed).all()
        off.append(abs(changed - np.asarray(image, dtype=float)).mean())
    assert off == sorted(off)
    assert off[0] > 0
    other = corrupted(image, Corruption(name="noise", level=1), "b.png")
    assert other != corrupted(image, Corruption(name="noise", level=1), "a.png")


def test_corruptions_have_the_documented_strength() -> None:
    gray = Image.new("RGB", (200, 200), (100, 100, 100))
    bright = np.asarray(corrupted(gray, Corruption(name="brightness", level=5), "x"))
    assert (bright == 228).all()  # 100 + 127.5, to even
    noisy = np.asarray(corrupted(gray, Corruption(name="noise", level=2), "x"), dtype=float)
    assert noisy.std() == pytest.approx(255 * 0.08, rel=0.02)
    edge = Image.new("L", (200, 200))
    edge.paste(255, (100, 0, 200, 200))
    blurred = np.asarray(corrupted(edge.convert("RGB"), Corruption(name="blur", level=5), "x"), dtype=float)[100, :, 0]
    derivative = np.diff(blurred)
    spread = math.sqrt((derivative * (np.arange(199) - 99) ** 2).sum() / derivative.sum())
    assert spread == pytest.approx(0.03 * 200, rel=0.1)


def test_effective_robustness_with_one_baseline(mine: Path) -> None:
    suite = read_suite(str(mine))
    rows = [
        {"dataset": "colors", "model": "base", "value": 0.6}, {"dataset": "noisy", "model": "base", "value": 0.4},
        {"dataset": "colors", "model": "better", "value": 0.8}, {"dataset": "noisy", "model": "better", "value": 0.7},
    ]  # fmt: skip
    first, second = robustness(suite, rows, ["base", "better"])
    assert first["effective_robustness"] is None
    assert first["relative_drop"] == pytest.approx(1 / 3)
    odds = (0.8 / 0.2) * (0.4 / 0.6) / (0.6 / 0.4)
    assert expected(0.8, [(0.6, 0.4)]) == pytest.approx(odds / (1 + odds))
    assert second["effective_robustness"] == pytest.approx(0.7 - odds / (1 + odds))


def test_effective_robustness_with_a_line_through_published_figures(mine: Path) -> None:
    values = yaml.safe_load(mine.read_text())
    values["baseline"] = ["first", "second", "third"]
    points = {"first": (0.3, 0.2), "second": (0.5, 0.45), "third": (0.7, 0.55)}
    for index, dataset in enumerate([values["datasets"][0], values["datasets"][2]]):
        dataset["published"] = [
            {"model": model, "metric": "acc1", "value": point[index], "source": "a paper"}
            for model, point in points.items()
        ]
    mine.write_text(yaml.safe_dump(values))
    rows = [{"dataset": name, "model": "ours", "value": value} for name, value in (("colors", 0.6), ("noisy", 0.58))]
    (row,) = robustness(read_suite(str(mine)), rows, ["ours"])
    logits = np.log(np.array(list(points.values()))) - np.log1p(-np.array(list(points.values())))
    slope, height = np.polyfit(*logits.T, 1)
    on_line = 1 / (1 + math.exp(-(slope * math.log(0.6 / 0.4) + height)))
    assert row["effective_robustness"] == pytest.approx(0.58 - on_line)


def test_robustness_means_over_the_versions_of_each_dataset() -> None:
    rows = [
        {"version_of": "a", "model": "m", "relative_drop": 0.1, "effective_robustness": None},
        {"version_of": "a", "model": "m", "relative_drop": 0.3, "effective_robustness": 0.02},
        {"version_of": "b", "model": "m", "relative_drop": None, "effective_robustness": None},
    ]
    first, second = robustness_means(rows)
    assert (first["versions"], first["relative_drop"]) == (2, pytest.approx(0.2))
    assert first["effective_robustness"] == 0.02
    assert second == {"version_of": "b", "model": "m", "versions": 1, "relative_drop": None,
                      "effective_robustness": None}  # fmt: skip


def test_what_is_not_there_and_what_is_wrong_are_told_apart(shapes: Path, tmp_path: Path) -> None:
    def opened(source: str, task: Any = "retrieval", **more: Any) -> None:
        open_data(DataSet(name="near", task=task, source=source, **more))

    near_misses = tmp_path / "swap.csv"
    near_misses.write_text("image,caption,negative_caption\na.png,a,b\n")
    for missing in ("nowhere.csv", f"{tmp_path}/none/{{000..001}}.tar", "https://example.org/a.csv"):
        with pytest.raises(UnreachedError):
            opened(missing)
    with pytest.raises(UnreachedError):
        opened(f"{near_misses}?images={tmp_path / 'val2017'}", "compositional")
    with pytest.raises(UnreachedError, match=r"nowhere/"):
        opened(str(shapes / "classes.csv"), "probe", train="nowhere/")
    for wrong in (str(near_misses), f"{tmp_path}/{{000..001}}.tar", "twemoji:nl", "twemoji:de:dev"):
        with pytest.raises(DataError) as error:
            opened(wrong)
        assert not isinstance(error.value, UnreachedError)


def test_model_that_cannot_be_loaded_does_not_stop_the_others(mine: Path, tiny_clip: Path, tmp_path: Path) -> None:
    suite = read_suite(str(mine))
    result = run_suite(suite, ["no/such/model", str(tiny_clip)], tmp_path / "out", cache=False)
    assert list(result.failed) == ["no/such/model"]
    assert {row["model"] for row in result.rows} == {str(tiny_clip)}
    assert suite_tables(result.to_dict())[0].header == ["", "metric", str(tiny_clip), "chance"]
    with pytest.raises(UserError):
        run_suite(suite, ["no/such/model"], tmp_path / "out", cache=False)
    with pytest.raises(UserError, match="tiny_clip.*twice"):
        run_suite(suite, [str(tiny_clip)] * 2, tmp_path / "out", cache=False)


def test_corrupted_images_are_not_mistaken_for_clean_ones_in_the_cache(
    mine: Path, tiny_clip: Path, tmp_path: Path
) -> None:
    values = yaml.safe_load(mine.read_text())
    del values["datasets"][0]["templates"]  # only the images differ
    mine.write_text(yaml.safe_dump(values))
    suite = read_suite(str(mine))

    def scores(out: str, cache: Any) -> list[Any]:
        run_suite(suite, [str(tiny_clip)], tmp_path / out, cache=cache)
        files = sorted((tmp_path / out).glob("*--*.json"))
        return [json.loads(file.read_text())["queries"] for file in files if "captions" not in file.name]

    first = scores("first", tmp_path / "cache")
    assert first[0]["confidence"] != first[1]["confidence"]
    shutil.rmtree(tmp_path / "first")
    assert scores("first", tmp_path / "cache") == first  # all from the cache
    assert scores("second", False) == first


def test_version_of_is_ignored_without_the_original(tmp_path: Path) -> None:
    assert read_suite("imagenetv2").datasets[0].version_of is None
    (tmp_path / "mine.yaml").write_text("name: mine\ndatasets: [imagenetv2, mnist]\n")
    assert [entry.version_of for entry in read_suite(str(tmp_path / "mine.yaml")).datasets] == [None, None]
    shifts = read_suite("imagenet_shifts")
    assert [entry.version_of for entry in shifts.datasets] == [None] + ["imagenet1k"] * 5


SHIPPED = sorted(file.stem for file in suites_folder().glob("*.yaml"))


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_file_is_valid(name: str) -> None:
    suite = read_suite(name)
    assert suite.name == name
    for entry in suite.datasets:
        assert entry.title
        for figure in entry.published:
            assert figure.source
            assert figure.metric == entry.main_metric  # otherwise the table leaves it out
            architecture, _, tag = figure.model.removeprefix("open_clip:").partition("/")
            assert (architecture, tag) in open_clip.list_pretrained()
        if name == "offline":
            continue  # no published data
        assert entry.license
        assert entry.published or "ublished" in entry.checked  # otherwise why there is no published value


@pytest.mark.parametrize(
    ("model", "mean"), [("open_clip:ViT-B-32/openai", 0.5245), ("open_clip:ViT-B-32/laion2b_s34b_b79k", 0.5694)]
)
def test_published_values_of_datacomp_have_their_published_mean(model: str, mean: float) -> None:
    published = [
        one.value for entry in read_suite("datacomp").datasets for one in entry.published if one.model == model
    ]
    assert len(published) == 38
    assert np.mean(published) == pytest.approx(mean, abs=5e-5)


@pytest.mark.parametrize("name", ["xm3600", "xtd10", "babel_imagenet"])
def test_suites_with_a_mean_have_a_model_with_all_published_values(name: str) -> None:
    suite = read_suite(name)
    models = [{one.model for one in entry.published} for entry in suite.datasets]
    assert set.intersection(*models)


def test_a_dataset_that_a_suite_defines_has_a_name_of_its_own(tmp_path: Path) -> None:
    assert read_suite("xm3600_de").datasets[0].source == "xm3600/de.csv"
    (tmp_path / "mine.yaml").write_text("name: mine\ndatasets: [mnist, xm3600_de]\n")
    named = read_suite(str(tmp_path / "mine.yaml")).datasets
    assert [entry.class_count or entry.captions for entry in named] == [10, 3600]
    assert named[1] in read_suite("xm3600").datasets
    # The file of a dataset comes before an entry of the same name.
    assert read_suite("flickr30k").datasets[0].metric == "image_retrieval_recall@1"
    assert "mean_recall@1" in {entry.metric for entry in read_suite("datacomp").datasets if entry.name == "flickr30k"}


def test_class_counts_equal_those_of_clip_benchmark_and_timm() -> None:
    """Compare with CLIP_benchmark's class names and timm's lists, for the datasets that they contain."""
    import clip_benchmark.datasets
    from clip_benchmark.datasets import voc2007

    folder = Path(clip_benchmark.datasets.__file__).parent
    count = {name: len(names) for name, names in json.loads((folder / "en_classnames.json").read_text()).items()}
    count |= dict.fromkeys(("imagenetv2", "imagenet_sketch"), count["imagenet1k"])
    count |= dict.fromkeys(("voc2007", "voc2007_multilabel"), len(voc2007.object_categories))
    for name in ("imagenet_a", "imagenet_r"):
        count[name] = len((files("timm.data._info") / f"{name}_synsets.txt").read_text().split())
    theirs = re.search(r"imagenet_o_wnids = (\[.*?\])", (folder / "builder.py").read_text())
    assert theirs is not None
    count["imagenet_o"] = len(set(ast.literal_eval(theirs[1])))
    found = {entry.name: entry.class_count for entry in read_suite("everything").datasets}
    checked = found.keys() & count.keys()
    assert {name: found[name] for name in checked} == {name: count[name] for name in checked}
    assert len(checked) == 18
