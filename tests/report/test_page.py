import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

import clipkit
from clipkit.recipe import Recipe
from clipkit.report import comparison_report, evaluation_report, run_report
from clipkit.report.evaluation import classes_table, hardest_pairs
from clipkit.report.page import metrics_table, number, readable, thumbnail


class Outline(HTMLParser):
    """Headings, pictures and links of a page; fails on a tag left open."""

    VOID = ("meta", "img", "br", "link", "use", "path")

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.pictures: list[dict[str, str | None]] = []
        self.addresses: list[str] = []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "img":
            self.pictures.append(dict(attrs))
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag


def test_a_run_report_is_one_file_with_everything_inside(recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    clipkit.train(recipe({"train.epochs": 4}))
    page = run_report(tmp_path / "run")
    assert page == (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    outline = Outline(page)
    assert len(outline.pictures) > 20
    assert all(picture["alt"] for picture in outline.pictures)
    # Nothing is fetched: pictures are data, links inside the SVGs point into them.
    assert all(address.startswith(("data:", "#")) for address in outline.addresses)
    for title in (
        "Training loss",
        "In the batch: cosines",
        "Scale",
        "Throughput",
        "Gain against retention",
        "Findings",
    ):
        assert title in page
    assert "optim.lr is 0.001" in page  # a finding
    assert "Augmented samples" in page
    assert len(page.encode()) < 5_000_000
    assert "text → image R@1" in page
    assert "chance" in page
    assert "✓" in page


def test_an_evaluation_report_shows_its_figures(tiny_clip: Path, shapes: Path) -> None:
    model = clipkit.load(tiny_clip)
    for result in (
        clipkit.evaluate.retrieval(model, str(shapes / "captions.csv")),
        clipkit.evaluate.zeroshot(model, str(shapes / "classes.csv")),
    ):
        page = evaluation_report(json.loads(json.dumps(result)))
        Outline(page)
        for name, figure in result["metrics"].items():
            assert number(name, figure["value"]).replace(" %", "\N{NO-BREAK SPACE}%") in page


def test_what_users_wrote_is_escaped(tiny_clip: Path, shapes: Path) -> None:
    result = clipkit.evaluate.retrieval(clipkit.load(tiny_clip), str(shapes / "captions.csv"))
    result["examples"][0]["query"]["text"] = "<script>alert(1)</script>"
    assert not re.search("<script", evaluation_report(result))


def test_an_undefined_figure_is_a_dash() -> None:
    table = metrics_table({"m": {"acc5": {"value": None, "low": None, "high": None, "chance": None}}}, "t")
    assert table.rows == [["top-5 accuracy", "–", "–"]]


def test_a_picture_that_is_gone_leaves_the_page_whole() -> None:
    assert thumbnail("/nowhere/none.jpg").startswith("data:image/jpeg;base64,")


def test_names_and_numbers_are_shown_as_a_reader_expects() -> None:
    assert readable("image_retrieval_recall@5") == "text → image R@5"
    assert readable("text_retrieval_map@r") == "image → text mAP@R"
    assert readable("lp_mean_per_class_recall") == "linear probe: mean recall of the classes"
    assert number("image_retrieval_mean_rank", 1234.56) == "1,234.6"
    assert number("text_retrieval_median_rank", 7.0) == "7"
    assert number("acc1", 0.1234) == "12.3 %"
    assert number("acc5", None) == "–"


def test_the_hardest_classes_come_first_with_what_they_are_taken_for(tiny_clip: Path, shapes: Path) -> None:
    result = clipkit.evaluate.zeroshot(clipkit.load(tiny_clip), str(shapes / "classes.csv"))
    (table,) = classes_table(result["classes"])
    recalls = [float(row[2].removesuffix(" %")) for row in table.rows]
    assert recalls == sorted(recalls)
    assert any(name in row[4] for row in table.rows for name in ("red", "green", "blue", "yellow"))
    assert classes_table([]) == []


def test_a_classification_report_shows_where_it_errs(tiny_clip: Path, shapes: Path) -> None:
    templates = ["a photo of a {c}", "a {c} shape", "something {c}"]
    result = clipkit.evaluate.zeroshot(clipkit.load(tiny_clip), str(shapes / "classes.csv"), templates=templates)
    alone = {own["prompt"]: own["acc1"] for own in result["prompts"]}
    for template in templates:
        own = clipkit.evaluate.zeroshot(clipkit.load(tiny_clip), str(shapes / "classes.csv"), templates=[template])
        assert alone[template] == pytest.approx(own["metrics"]["acc1"]["value"], abs=1e-6)
        assert own["prompts"] == []
    mistakes = [own for own in result["examples"] if own.get("kind") == "mistake"]
    wrong = [
        label != taken for label, taken in zip(result["queries"]["label"], result["queries"]["predicted"], strict=True)
    ]
    assert len(mistakes) == min(12, sum(wrong))
    sure = [own["confidence"] for own in mistakes]
    assert sure == sorted(sure, reverse=True)
    assert all([answer["right"] for answer in own["answers"]] == [False, True] for own in mistakes)
    assert len(result["map"]) == 16
    assert {own["label"] for own in result["map"]} == {"red", "green", "blue", "yellow"}
    (table,) = hardest_pairs(result)
    counted = sum(int(row[1]) for row in table.rows)
    assert counted == sum(wrong)
    page = evaluation_report(json.loads(json.dumps(result)))
    for title in ("Confidence and truth", "Confusion", "Each prompt alone", "Surest mistakes", "Map of the embedding"):
        assert title in page


def test_a_retrieval_report_shows_best_and_worst(tiny_clip: Path, shapes: Path) -> None:
    result = clipkit.evaluate.retrieval(clipkit.load(tiny_clip), str(shapes / "captions.csv"))
    ranks = result["queries"]["image_rank"]
    worst = [own for own in result["examples"] if own.get("kind") == "worst"]
    assert [own["rank"] for own in worst] == sorted(ranks, reverse=True)[: len(worst)]
    assert all(own["rank"] == 1 for own in result["examples"] if own.get("kind") == "best")
    assert all(any(answer["right"] for answer in own["answers"]) for own in worst)
    assert "its picture comes at place" in evaluation_report(result)


def test_two_models_side_by_side(tiny_clip: Path, shapes: Path) -> None:
    model = clipkit.load(tiny_clip)
    first = clipkit.evaluate.retrieval(model, str(shapes / "captions.csv"))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    second = clipkit.evaluate.retrieval(model, str(shapes / "captions.csv"))
    page = comparison_report(clipkit.evaluate.compare(first, second), first, second)
    outline = Outline(page)
    assert "Side by side" in page
    assert "Where B is better than A" in page
    assert len(outline.pictures) >= 10
