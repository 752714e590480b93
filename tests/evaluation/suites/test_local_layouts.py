"""Datasets that need local files: tiny copies in the layout of their entries, beside the arithmetic of their papers."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import clipkit
from clipkit.evaluation.suites import read_suite, run_suite
from clipkit.report.suite import suite_tables
from tests.conftest import write_csv
from tests.evaluation.tasks.test_zeroshot import ForClipBenchmark, Tokens

WORDS = "a street with many people and cars under tall buildings"


def entry_of(name: str, **changes: Any) -> Any:
    """Return the suite of an entry, with the source and the numbers of a tiny copy."""
    suite = read_suite(name)
    return suite.model_copy(update={"datasets": [suite.datasets[0].model_copy(update=changes)]})


@pytest.mark.parametrize("name", ["urban1k", "docci", "iiw", "dci", "sharegpt4v_1k", "flickr30k_200_de"])
def test_one_caption_per_image_is_ranked_as_by_the_paper(
    name: str, tiny_clip: Path, shapes: Path, tmp_path: Path
) -> None:
    images = [str(shapes / f"images/{k:02d}.png") for k in range(12)]
    # Three captions are longer than the context of 77 tokens.
    captions = [f"{number} {WORDS} " * (30 if number < 3 else 1) for number in range(12)]
    table = write_csv(tmp_path / "copy.csv", ["image", "caption"], list(zip(images, captions, strict=True)))
    suite = entry_of(name, source=str(table), images=12, captions=12)
    result = run_suite(suite, [str(tiny_clip)], tmp_path / "out", cache=False)
    (row,) = result.rows
    model = clipkit.load(tiny_clip)
    image_features, text_features = model.encode_image(images), model.encode_text([text.strip() for text in captions])
    right = {"image": 0, "text": 0}
    for k in range(12):  # as the evaluation scripts of Long-CLIP: one caption per image, rank 1
        right["image"] += int((image_features @ text_features[k]).argmax() == k)
        right["text"] += int((text_features @ image_features[k]).argmax() == k)
    for kind, count in right.items():
        assert row["metrics"][f"{kind}_retrieval_recall@1"] == pytest.approx(count / 12)
    assert row["metric"] == "image_retrieval_recall@1"
    assert row["captions_cut"] == pytest.approx(3 / 12)
    assert "25 %" in suite_tables(result.to_dict())[0].note
    written = json.loads((tmp_path / "out" / row["file"]).read_text())
    assert any("25 %" in finding for finding in written["data"]["findings"])


def test_babel_imagenet_is_that_of_clip_benchmark(tiny_clip: Path, shapes: Path, tmp_path: Path) -> None:
    theirs = pytest.importorskip("clip_benchmark.metrics.zeroshot_classification")
    # Classes 3, 50 and 999 have a name in this language; their numbers become positions among these names.
    names = {"3": "Hai", "50": "Krokodil", "999": "Klopapier"}
    templates = ["ein Foto von einem {c}.", "viele {c}"]
    labels = [list(names)[k % 3] for k in range(12)]
    images = [str(shapes / f"images/{k:02d}.png") for k in range(12)]
    table = write_csv(tmp_path / "de.csv", ["image", "label"], list(zip(images, labels, strict=True)))
    (tmp_path / "de_classes.json").write_text(json.dumps(names))
    (tmp_path / "de_prompts.txt").write_text("\n".join(templates) + "\n")
    suite = entry_of(
        "babel_imagenet_de", source=str(table), classes=str(tmp_path / "de_classes.json"),
        templates=str(tmp_path / "de_prompts.txt"), class_count=3, images=12,
    )  # fmt: skip
    result = run_suite(suite, [str(tiny_clip)], tmp_path / "out", cache=False)
    assert not result.failed
    model = clipkit.load(tiny_clip)
    weights = theirs.zero_shot_classifier(
        ForClipBenchmark(model), lambda texts: Tokens(model.text.tokenize(texts)), list(names.values()), templates,
        "cpu", amp=False,
    )  # fmt: skip
    predicted = (model.encode_image(images) @ weights).argmax(dim=1)
    expected = (predicted == torch.tensor([list(names).index(label) for label in labels])).double().mean()
    assert result.rows[0]["value"] == pytest.approx(float(expected), abs=1e-6)
