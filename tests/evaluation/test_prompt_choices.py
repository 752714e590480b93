"""Changes of the accuracy with other class names and templates."""

from pathlib import Path

import pytest

import clipkit
from clipkit.cli.tables import print_prompt_choices
from clipkit.evaluation.prompt_choices import cleaned
from clipkit.report.evaluation import evaluation_report


def test_every_row_is_the_accuracy_of_its_own_evaluation(
    tiny_clip: Path, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = clipkit.load(str(tiny_clip))
    names = {"red": "001.deep_red", "green": "green", "blue": "SkyBlue", "yellow": "yellow"}
    plain = {"red": "deep red", "green": "green", "blue": "Sky Blue", "yellow": "yellow"}
    data = shapes / "classes.csv"

    def accuracy(classes: dict[str, str], templates: list[str]) -> float | None:
        measured = clipkit.evaluate.zeroshot(model, data, classes=classes, templates=templates, cache=tmp_path)
        return measured["metrics"]["acc1"]["value"]

    result = clipkit.evaluate.zeroshot(
        model, data, classes=names, templates=["{c}", "x " * 80 + "{c}"], compare_prompts=True, cache=tmp_path
    )
    first, *rows = result["prompt_choices"]
    assert first["acc1"] == result["metrics"]["acc1"]["value"]
    assert (first["prompts"], first["cut"], first["difference"]) == (8, 4, 0)
    assert len(rows) == 8
    found = {(row["names"], row["templates"].split()[0]): row for row in rows}
    for kind, classes in (("given", names), ("cleaned", plain)):
        assert found[kind, "none"]["acc1"] == accuracy(classes, ["{c}"])
        assert found[kind, "80"]["prompts"] == 320
    row = found["cleaned", "1"]
    assert row["difference"] == pytest.approx(row["acc1"] - first["acc1"])
    assert row["low"] <= row["difference"] <= row["high"]
    print_prompt_choices(result["prompt_choices"])
    assert "cleaned" in capsys.readouterr().out
    assert "Choices of prompts" in evaluation_report(result)


@pytest.mark.slow
def test_sentences_per_class_come_first(tiny_clip: Path, shapes: Path) -> None:
    model = clipkit.load(str(tiny_clip))
    sentences = {name: [f"{name} is a color", f"paint in {name}"] for name in ("red", "green", "blue", "yellow")}
    result = clipkit.evaluate.zeroshot(
        model, shapes / "classes.csv", templates=sentences, compare_prompts=True, cache=False
    )
    rows = result["prompt_choices"]
    assert [row["templates"].split()[0] for row in rows] == ["sentences", "none", "1", "7", "80"]
    assert {row["names"] for row in rows} == {"given"}


def test_names_are_cleaned() -> None:
    names = ("001.Black_footed_Albatross", "AnnualCrop", "ice cream", "7", "A380", "BMW 3", "_")
    assert [cleaned(name) for name in names] == [
        "Black footed Albatross", "Annual Crop", "ice cream", "7", "A380", "BMW 3", "_",
    ]  # fmt: skip
