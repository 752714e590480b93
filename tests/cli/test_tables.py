"""Tables on the terminal: the numbers on which they stand, the metrics that they show, and long captions."""

from typing import Any

import pytest

from clipkit.cli.tables import print_comparison, print_metrics
from clipkit.report.model_card import _results_section
from clipkit.report.page import metrics_table
from clipkit.report.suite import suite_markdown
from clipkit.tasks import counts_of, named_data, shortened, shown_metrics


def figure(value: float) -> dict[str, float]:
    return {"value": value, "low": value - 0.1, "high": value + 0.1, "chance": 0.01}


ONE_ANSWER = {f"{side}_retrieval_{name}": figure(0.2) for side in ("image", "text") for name in ("recall@1", "map@r")}
SEVERAL = ONE_ANSWER | {"text_retrieval_map@r": figure(0.3)}


@pytest.mark.parametrize(
    ("data", "counts"),
    [
        ({"images": 1000, "captions": 5000}, "1,000 images, 5,000 captions"),
        ({"images": 1, "captions": 1, "classes": 1}, "1 image, 1 caption, 1 class"),
        ({"name": "x", "images": 60, "classes": 5, "sha256": "f"}, "60 images, 5 classes"),
        ({"instances": 400}, "400 instances"),
        ({"images": 9, "labelled": {"images": 4, "classes": 2}}, "9 images; labelled: 4 images, 2 classes"),
        ({}, ""),
    ],
)
def test_counts_of_data(data: dict[str, Any], counts: str) -> None:
    assert counts_of(data) == counts
    assert named_data({"name": "d"} | data) == data.get("name", "d") + (f" ({counts})" if counts else "")


def test_metrics_say_on_how_many_images_they_stand(capsys: pytest.CaptureFixture[str]) -> None:
    print_metrics({"model": "m", "data": {"name": "d.csv", "images": 61, "captions": 61}, "metrics": ONE_ANSWER})
    printed = capsys.readouterr().out
    assert "m on d.csv (61 images, 61 captions)" in printed
    assert "R@1" in printed
    assert "mAP@R" not in printed


def test_average_precision_is_left_out_where_it_repeats_recall() -> None:
    assert shown_metrics(ONE_ANSWER) == ["image_retrieval_recall@1", "text_retrieval_recall@1"]
    assert shown_metrics(SEVERAL) == ["image_retrieval_recall@1", "text_retrieval_recall@1", "text_retrieval_map@r"]
    assert shown_metrics(ONE_ANSWER, SEVERAL)[-1] == "text_retrieval_map@r"  # it differs in one of the two
    assert shown_metrics({"text_retrieval_map@r": figure(0.2)}) == ["text_retrieval_map@r"]
    assert [row[0] for row in metrics_table({"a": ONE_ANSWER}, "").rows] == ["text → image R@1", "image → text R@1"]
    card = _results_section([{"task": "retrieval", "data": {"name": "d", "images": 5}, "metrics": ONE_ANSWER}])
    assert "mAP@R" not in "".join(card)
    assert "5 images" in "".join(card)


@pytest.mark.parametrize(("asks", "shown"), [("text", "a caption a"), ("image", "…")])
def test_long_queries_of_a_comparison_have_an_ellipsis(
    asks: str, shown: str, capsys: pytest.CaptureFixture[str]
) -> None:
    long = "a caption " * 12 + "at its end"
    changed = [{"asks": asks, "query": long, "first_rank": 1, "second_rank": 7}]
    comparison = {
        "task": "retrieval", "first": "m", "second": "n", "data": {"name": "d", "images": 5, "captions": 9},
        "metrics": {}, "disagreements": changed,
    }  # fmt: skip
    print_comparison(comparison, "a.json", "b.json")
    printed = " ".join(capsys.readouterr().out.split())
    assert "retrieval on d (5 images, 9 captions)" in printed
    assert "…" in printed
    assert shown in printed
    assert ("at its end" in printed) == (asks == "image")


def test_shortened_text_has_the_length() -> None:
    assert shortened("short", 5) == "short"
    assert len(shortened("a longer text", 8, keep_end=True)) == 8
    assert shortened("a longer text", 3) == "a…"


def test_suite_says_how_many_images_each_dataset_has() -> None:
    row = {"dataset": "a", "title": "A", "task": "zeroshot", "metric": "acc1", "model": "m", "images": 785} | figure(
        0.5
    )
    result = {
        "title": "S", "suite": "s", "models": ["m"], "unreached": {}, "failed": {},
        "rows": [row, row | {"dataset": "b", "title": "B", "version_of": "a"}],
        "published": {"a": [{"model": "p", "metric": "acc1", "value": 0.1, "source": "s"}]},
        "robustness": [{"dataset": "b", "version_of": "a", "model": "m", "original": 0.5, "value": 0.5,
                        "relative_drop": 0.0, "effective_robustness": None}],
        "robustness_means": [],
    }  # fmt: skip
    written = suite_markdown(result)
    assert written.count("A (785 images)") == 2
    assert written.count("B (785 images)") == 2
