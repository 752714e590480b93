"""Report pages: content, escaping, formats, charts, accessibility."""

import base64
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import clipkit
from clipkit.errors import DataError
from clipkit.evaluation.explanation.draw import overlaid
from clipkit.images import DATA_URI, InMemory, open_image
from clipkit.recipe import Recipe
from clipkit.report.charts import bar_chart, confusion_chart, interval_chart, line_chart, reliability_chart
from clipkit.report.comparison import comparison_report
from clipkit.report.evaluation import classes_table, confused_pairs, evaluation_report
from clipkit.report.page import (
    Grid,
    Page,
    difference,
    duration,
    is_wide,
    metrics_table,
    render,
    short_name,
    thumbnail,
    unbroken,
)
from clipkit.report.run import run_report
from clipkit.tasks import number, readable
from tests.conftest import COLOURS, SHAPES, write_csv


class Outline(HTMLParser):
    """Images and links of a page; fails if a tag is not closed."""

    VOID = ("meta", "img", "br", "link", "use", "path")

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.addresses: list[str] = []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "img":
            self.images.append(dict(attrs))
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag


def test_page_may_begin_with_images_and_tables_wider_than_a_phone_say_so() -> None:
    figure = {"value": 0.5, "low": 0.4, "high": 0.6, "chance": 0.1}
    results = {name: {"acc1": figure, "ece": figure | {"low": None}} for name in ("one", "another", "the third")}
    tables = [metrics_table(results, "Wide"), metrics_table({"one": results["one"]}, "Narrow")]
    assert [is_wide(table) for table in tables] == [True, False]
    grid = Grid("First", [{"query": {"text": "a query in 3 s"}, "answers": []}])
    page = render(Page("title", "trained in 135 s", tables=tables, grids_above=[grid]))
    assert page.index("a query in 3 s") < page.index("Wide</h2>") < page.index("Narrow</h2>")
    assert page.count('class="scroll many"') == 1
    assert "135\N{NO-BREAK SPACE}s" in page
    assert "object-fit: cover" not in page


def test_calibration_error_is_explained_where_it_is_shown(tiny_clip: Path, shapes: Path) -> None:
    model = clipkit.load(tiny_clip)
    zeroshot = clipkit.evaluate.zeroshot(model, str(shapes / "classes.csv"), cache=False)
    page = evaluation_report(zeroshot)
    assert "Calibration error: the mean difference" in page
    assert "16 images, 4 classes" in page
    assert "Calibration error" not in evaluation_report(
        clipkit.evaluate.retrieval(model, str(shapes / "captions.csv"), cache=False)
    )


def test_run_report_is_one_file_that_loads_nothing(recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    clipkit.train(recipe({"train.epochs": 4}))
    page = run_report(tmp_path / "run")
    assert page == (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    outline = Outline(page)
    assert len(outline.images) > 20
    assert all(image["alt"] for image in outline.images)
    # Images are data URIs, and links in SVGs point into the same page.
    assert all(address.startswith(("data:", "#")) for address in outline.addresses)
    for title in (
        "Training loss",
        "In-batch cosine similarity",
        "Logit scale",
        "Throughput",
        "Target metric and retention",
        "Findings",
    ):
        assert title in page
    assert "optim.lr is 0.001" in page  # a finding
    assert "Augmented samples" in page
    assert len(page.encode()) < 5_000_000
    assert "text → image R@1" in page
    assert "chance" in page
    assert "✓" in page


def test_evaluation_report_shows_all_metrics(tiny_clip: Path, shapes: Path) -> None:
    model = clipkit.load(tiny_clip)
    for result in (
        clipkit.evaluate.retrieval(model, str(shapes / "captions.csv")),
        clipkit.evaluate.zeroshot(model, str(shapes / "classes.csv")),
    ):
        page = evaluation_report(json.loads(json.dumps(result)))
        Outline(page)
        for name, figure in result["metrics"].items():
            assert number(name, figure["value"]).replace(" %", "\N{NO-BREAK SPACE}%") in page


def test_captions_are_escaped(tiny_clip: Path, shapes: Path) -> None:
    result = clipkit.evaluate.retrieval(clipkit.load(tiny_clip), str(shapes / "captions.csv"))
    result["examples"][0]["query"]["text"] = "<script>alert(1)</script>"
    assert not re.search("<script", evaluation_report(result))


def test_undefined_metric_is_a_dash() -> None:
    table = metrics_table({"m": {"acc5": {"value": None, "low": None, "high": None, "chance": None}}}, "t")
    assert table.rows == [["top-5 accuracy", "–", "–"]]


def test_missing_image_file_is_marked(tiny_clip: Path, shapes: Path) -> None:
    assert thumbnail("/nowhere/none.jpg") == ""
    result = clipkit.evaluate.retrieval(clipkit.load(tiny_clip), str(shapes / "captions.csv"))
    for example in result["examples"]:
        for answer in example["answers"]:
            if "image" in answer:
                answer["image"] = "/nowhere/none.jpg"
    page = evaluation_report(result)
    assert all((image["src"] or "").startswith("data:") for image in Outline(page).images)
    assert 'class="gone" role="img" aria-label="answer 1' in page


def test_format_of_names_and_numbers() -> None:
    assert readable("image_retrieval_recall@5") == "text → image R@5"
    assert readable("text_retrieval_map@r") == "image → text mAP@R"
    assert readable("lp_mean_per_class_recall") == "linear probe: mean per-class recall"
    assert number("image_retrieval_mean_rank", 1234.56) == "1,234.6"
    assert number("text_retrieval_median_rank", 7.0) == "7"
    assert number("acc1", 0.1234) == "12.3 %"
    assert number("acc5", None) == "–"
    assert difference("acc1", -0.131) == "−13.1 points"
    assert difference("acc1", 0.02) == "+2.0 points"
    assert difference("image_retrieval_median_rank", 3.0) == "+3"
    assert [duration(seconds) for seconds in (0.2, 59, 294, 7260)] == [
        "less than a second", "59 s", "4 min 54 s", "2 h 1 min",
    ]  # fmt: skip
    assert short_name("/data/flickr8k/dev.csv") == "flickr8k/dev.csv"
    assert short_name("openai/clip-vit-base-patch32") == "openai/clip-vit-base-patch32"


def test_number_stays_on_one_line_with_its_unit() -> None:
    assert unbroken("80.3 % (76.6 – 83.7)") == "80.3\N{NO-BREAK SPACE}% <span>(76.6 – 83.7)</span>"
    assert unbroken("−64.1 to −59.8").count("\N{NO-BREAK SPACE}") == 2
    assert unbroken("<b> & (<i>)") == "&lt;b&gt; &amp; <span>(&lt;i&gt;)</span>"


@pytest.mark.parametrize("light", [True, False])
def test_text_has_sufficient_contrast(light: bool) -> None:
    def luminance(color: str) -> float:
        parts = [int(color[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    schemes = re.findall(r":root \{([^}]*--ink[^}]*)\}", render(Page("", "")))
    colors = dict(re.findall(r"--(\w+): (#\w{6})", schemes[0 if light else 1]))
    for word in ("ink", "soft", "good", "bad"):
        for ground in ("page", "card"):
            lighter, darker = sorted(luminance(colors[name]) for name in (word, ground))[::-1]
            assert (lighter + 0.05) / (darker + 0.05) >= 4.5, (word, ground)


def test_charts_have_descriptions_and_accept_any_name() -> None:
    names = ["costs $5 and $6 <b>", "pays $\\frac{$", "{c}"]
    charts = [
        line_chart({"loss": ([1, 2], [3.0, 1.5])}, "step", "loss", ("chance", 2.0)),
        bar_chart(dict(zip(names, (0.5, -0.25, 0.0), strict=True)), "points"),
        interval_chart(dict.fromkeys(names, (1.0, -1.0, 2.0)), "points"),
        confusion_chart([[0.9, 0.1, 0], [0, 1, 0], [0.5, 0.5, 0]], names),
        reliability_chart([0.9, 0.2, 0.95], [True, False, False]),
    ]
    descriptions = [found[1] for chart in charts if (found := re.match(r'<svg role="img" aria-label="([^"]+)"', chart))]
    assert len(descriptions) == len(charts)
    assert "loss from 3 to 1.5, between step 1 and 2" in descriptions[0]
    assert "costs $5 and $6 &lt;b&gt;: 50.0" in descriptions[1]
    for chart in charts[1:4]:
        assert "costs $5 and $6" in chart.partition(">")[2]
        assert "<b>" not in chart
    # Gray is a variable of the page, different in dark mode.
    assert all("var(--soft)" in chart and "#80889" not in chart for chart in charts)


def test_classes_table_lists_hardest_first_with_confusions(tiny_clip: Path, shapes: Path) -> None:
    result = clipkit.evaluate.zeroshot(clipkit.load(tiny_clip), str(shapes / "classes.csv"))
    (table,) = classes_table(result["classes"])
    recalls = [float(row[2].removesuffix(" %")) for row in table.rows]
    assert recalls == sorted(recalls)
    assert any(name in row[4] for row in table.rows for name in ("red", "green", "blue", "yellow"))
    assert classes_table([]) == []


def test_zeroshot_report_shows_mistakes(tiny_clip: Path, shapes: Path) -> None:
    templates = ["a photo of a {c}", "a {c} shape", "something {c}"]
    result = clipkit.evaluate.zeroshot(clipkit.load(tiny_clip), str(shapes / "classes.csv"), templates=templates)
    alone = {entry["prompt"]: entry["acc1"] for entry in result["prompts"]}
    for template in templates:
        entry = clipkit.evaluate.zeroshot(clipkit.load(tiny_clip), str(shapes / "classes.csv"), templates=[template])
        assert alone[template] == pytest.approx(entry["metrics"]["acc1"]["value"], abs=1e-6)
        assert entry["prompts"] == []
        others = [other for other in templates if other != template]
        without = clipkit.evaluate.zeroshot(clipkit.load(tiny_clip), str(shapes / "classes.csv"), templates=others)
        (found,) = (entry["without"] for entry in result["prompts"] if entry["prompt"] == template)
        assert found == pytest.approx(without["metrics"]["acc1"]["value"], abs=1e-6)
    mistakes = [entry for entry in result["examples"] if entry.get("kind") == "mistake"]
    wrong = [
        label != taken for label, taken in zip(result["queries"]["label"], result["queries"]["predicted"], strict=True)
    ]
    assert len(mistakes) == min(12, sum(wrong))
    sure = [entry["confidence"] for entry in mistakes]
    assert sure == sorted(sure, reverse=True)
    assert all([answer["right"] for answer in entry["answers"]] == [False, True] for entry in mistakes)
    assert len(result["map"]) == 16
    assert {entry["label"] for entry in result["map"]} == {"red", "green", "blue", "yellow"}
    (table,) = confused_pairs(result)
    counted = sum(int(row[1]) for row in table.rows)
    assert counted == sum(wrong)
    page = evaluation_report(json.loads(json.dumps(result)))
    for title in (
        "Reliability diagram",
        "Confusion matrix",
        "Each prompt alone",
        "Contribution of each prompt",
        "Most confident mistakes",
        "Map of the embeddings",
    ):
        assert title in page
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r"url\(#([^)]+)\)", page)) <= set(ids)


def test_retrieval_report_shows_best_and_worst_queries(tiny_clip: Path, shapes: Path) -> None:
    result = clipkit.evaluate.retrieval(clipkit.load(tiny_clip), str(shapes / "captions.csv"))
    ranks = result["queries"]["image_rank"]
    worst = [entry for entry in result["examples"] if entry.get("kind") == "worst"]
    assert [entry["rank"] for entry in worst] == sorted(ranks, reverse=True)[: len(worst)]
    assert all(entry["rank"] == 1 for entry in result["examples"] if entry.get("kind") == "best")
    assert all(any(answer["right"] for answer in entry["answers"]) for entry in worst)
    assert "correct image at rank" in evaluation_report(result)


def test_comparison_of_two_retrieval_results(tiny_clip: Path, shapes: Path) -> None:
    model = clipkit.load(tiny_clip)
    first = clipkit.evaluate.retrieval(model, str(shapes / "captions.csv"))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    second = clipkit.evaluate.retrieval(model, str(shapes / "captions.csv"))
    page = comparison_report(clipkit.evaluate.compare(first, second), first, second)
    outline = Outline(page)
    assert "confidence intervals over images" in page
    assert "B better than A: text queries" in page
    assert len(outline.images) >= 10


def test_comparison_of_two_classifiers_shows_disagreements(tiny_clip: Path, shapes: Path) -> None:
    model = clipkit.load(tiny_clip)
    first = clipkit.evaluate.zeroshot(model, str(shapes / "classes.csv"))
    second = clipkit.evaluate.zeroshot(model, str(shapes / "classes.csv"), templates=["{c}"])
    comparison = clipkit.evaluate.compare(first, second)
    assert comparison["disagreements"]
    for moved in comparison["disagreements"]:
        row = first["queries"]["images"].index(moved["image"])
        assert moved["right"] == first["classes"][first["queries"]["label"][row]]["class"]
        for whose, entry in (("first", first), ("second", second)):
            assert (moved[f"{whose}_text"] == moved["right"]) == (moved[f"{whose}_rank"] == 1)
            assert moved[f"{whose}_text"] == entry["classes"][entry["queries"]["predicted"][row]]["class"]
    page = comparison_report(comparison, first, second)
    Outline(page)
    assert "image queries" in page
    assert "correct answer at rank" in page


def test_comparison_of_probes_and_compositional_tests_shows_disagreements(
    tiny_clip: Path, shapes: Path, tmp_path: Path
) -> None:
    model = clipkit.load(tiny_clip)
    rows = [
        [str(shapes / f"images/{4 * n + m:02d}.png"), f"a {color} {shape}", f"a {shape}"]
        for n, color in enumerate(COLOURS)
        for m, shape in enumerate(SHAPES)
    ]
    near = str(write_csv(tmp_path / "near.csv", ["image", "caption", "negative_caption"], rows))

    def measured() -> list[Any]:
        return [clipkit.evaluate.probe(model, str(shapes / "classes.csv"), shots=1, seeds=3),
                clipkit.evaluate.compositional(model, near)]  # fmt: skip

    before = measured()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    for first, second in zip(before, measured(), strict=True):
        comparison = clipkit.evaluate.compare(first, second)
        probed = first["task"] == "probe"
        right = [entry["queries"]["lp_top1" if probed else "text_right"] for entry in (first, second)]
        most = max(abs(two - one) for one, two in zip(*right, strict=True))
        gains = [entry["second_right"] - entry["first_right"] for entry in comparison["disagreements"]]
        assert max(map(abs, gains)) == pytest.approx(most)
        assert 0 not in gains
        for moved in comparison["disagreements"]:
            row = [entry if probed else entry[0] for entry in first["queries"]["images"]].index(moved["image"])
            assert [moved["first_right"], moved["second_right"]] == [entry[row] for entry in right]
        page = comparison_report(comparison, first, second)
        Outline(page)
        assert "image queries" in page
        assert ("of the draws" if probed else "<span>wrong</span>") in page


def test_mistakes_are_explained_with_maps(tiny_clip: Path, shapes: Path) -> None:
    model, data = clipkit.load(tiny_clip), str(shapes / "classes.csv")
    result = clipkit.evaluate.zeroshot(model, data, explain=True)
    mistakes = [entry for entry in result["examples"] if entry.get("kind") == "mistake"]
    maps = [[answer["map"] for answer in entry["answers"]] for entry in mistakes]
    assert all(taken != right for taken, right in maps)
    page = evaluation_report(json.loads(json.dumps(result)))
    assert all(map_ in page for both in maps for map_ in both)
    # The map of a class in the report is the one of its text in `clipkit.explain`.
    row, title = mistakes[0]["row"], mistakes[0]["answers"][0]["text"]
    shown = clipkit.explain(model, result["queries"]["images"][row], f"a photo of a {title}.", score=False)
    drawn = open_image(InMemory("map", base64.b64decode(maps[0][0].removeprefix(DATA_URI))))
    expected = np.asarray(overlaid(shown.pixels, shown.texts[0].map)).astype(int)
    assert abs(np.asarray(drawn) - expected).mean() < 10  # JPEG, whose values depend on the version of Pillow
    plain = clipkit.evaluate.zeroshot(model, data)
    assert not any("map" in answer for entry in plain["examples"] for answer in entry["answers"])
    assert plain["metrics"] == result["metrics"]
    several = {"image": result["queries"]["images"], "label": [["red", "round"]] * 16}
    with pytest.raises(DataError, match="several labels"):
        clipkit.evaluate.zeroshot(model, several, explain=True)
    (chosen,) = [
        entry
        for entry in clipkit.evaluate.zeroshot(model, several, explain="a cross")["examples"]
        if entry.get("kind") == "chosen"
    ]
    assert chosen["query"] == {"text": "a cross"}


def test_confident_mistakes_of_retrieval_have_the_largest_margins(tiny_clip: Path, shapes: Path) -> None:
    model, data = clipkit.load(tiny_clip), str(shapes / "captions.csv")
    result = clipkit.evaluate.retrieval(model, data, explain=["a cross"])
    queries = result["queries"]
    images, texts = model.encode_image(queries["images"]), model.encode_text(queries["texts"])
    margins: dict[int, tuple[float, int, int]] = {}  # of each image: largest margin, caption, image at rank 1
    for text, right in enumerate(queries["image_of_text"]):
        scores = [float(image @ texts[text]) for image in images]
        first = max(range(16), key=scores.__getitem__)
        if first != right:
            margins[right] = max(margins.get(right, (0.0, 0, 0)), (scores[first] - scores[right], text, first))
    expected = sorted(margins.items(), key=lambda item: -item[1][0])[:6]
    found = [entry for entry in result["examples"] if entry.get("kind") == "confident"]
    assert [entry["query"]["text"] for entry in found] == [queries["texts"][text] for _, (_, text, _) in expected]
    for entry, (right, (margin, text, first)) in zip(found, expected, strict=True):
        wrong, correct = entry["answers"]
        assert [wrong["image"], correct["image"]] == [queries["images"][row] for row in (first, right)]
        assert [wrong["right"], correct["right"]] == [False, True]
        assert wrong["score"] - correct["score"] == pytest.approx(margin, abs=1e-4)
        assert entry["rank"] == queries["image_rank"][text]
    # The map is the one of the caption and the image in `clipkit.explain`.
    shown = clipkit.explain(model, correct["image"], queries["texts"][text], score=False)
    drawn = open_image(InMemory("map", base64.b64decode(correct["map"].removeprefix(DATA_URI))))
    assert abs(np.asarray(drawn) - np.asarray(overlaid(shown.pixels, shown.texts[0].map)).astype(int)).mean() < 10
    (chosen,) = [entry for entry in result["examples"] if entry.get("kind") == "chosen"]
    scores = images @ model.encode_text("a cross")[0]
    assert [one["image"] for one in chosen["answers"]] == [queries["images"][row] for row in scores.topk(3).indices]
    assert clipkit.evaluate.retrieval(model, data)["metrics"] == result["metrics"]


def test_line_chart_draws_every_series() -> None:
    names = [f"series {number}" for number in range(12)]
    chart = line_chart({name: ([1, 2], [3.0, 1.5]) for name in names}, "step", "loss")
    legend = chart.split("</title>")[-1]
    assert all(f">{name}<" in legend for name in names)
