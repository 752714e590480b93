from pathlib import Path

import pytest
from pyarrow import parquet

import clipkit
from clipkit import evaluate
from tests.conftest import COLOURS, SHAPES, write_csv


@pytest.fixture(scope="module")
def model(tiny_clip: Path) -> clipkit.DualEncoder:
    return clipkit.load(tiny_clip)


def test_metrics_with_one_image_and_two_captions(model: clipkit.DualEncoder, shapes: Path, tmp_path: Path) -> None:
    rows = []
    for number, (color, shape) in enumerate((c, s) for c in COLOURS for s in SHAPES):
        other = SHAPES[(number + 1) % 4]
        name = str(shapes / f"images/{number:02d}.png")
        rows.append([name, f"a {color} {shape}", f"a {color} {other}", "shape"])
        rows.append([name, f"a {color} {shape}", f"a {shape}", "color"])
    data = str(write_csv(tmp_path / "d.csv", ["image", "caption", "negative_caption", "category"], rows))
    result = evaluate.compositional(model, data, predictions=tmp_path / "p.parquet")
    image = model.encode_image([row[0] for row in rows])
    right = (image * model.encode_text([row[1] for row in rows])).sum(dim=1)
    wrong = (image * model.encode_text([row[2] for row in rows])).sum(dim=1)
    expected = (right >= wrong).double()
    assert result["metrics"]["text_acc"]["value"] == pytest.approx(expected.mean().item())
    assert result["metrics"]["text_acc"]["chance"] == 0.5
    assert result["metrics"]["image_acc"]["value"] is None  # undefined with one image
    assert {row["category"]: row["text_acc"] for row in result["classes"]} == {
        "shape": pytest.approx(expected[::2].mean().item()),
        "color": pytest.approx(expected[1::2].mean().item()),
    }
    assert result["data"]["instances"] == 32
    scores = parquet.read_table(tmp_path / "p.parquet")["scores"].to_pylist()
    assert [float(instance[0][0] >= instance[0][1]) for instance in scores] == expected.tolist()


def test_metrics_with_two_images_and_two_captions(model: clipkit.DualEncoder, shapes: Path, tmp_path: Path) -> None:
    names = [str(shapes / f"images/{number:02d}.png") for number in range(16)]
    texts = [f"a {color} {shape}" for color in COLOURS for shape in SHAPES]
    rows = [[names[i], names[j], texts[i], texts[j]] for i in range(16) for j in range(16) if i < j]
    data = str(write_csv(tmp_path / "d.csv", ["image_0", "image_1", "caption_0", "caption_1"], rows))
    result = evaluate.compositional(model, data)
    scores = model.encode_image(names) @ model.encode_text(texts).T
    text, image = [], []
    for i in range(16):
        for j in range(i + 1, 16):
            text.append(float(scores[i, i] >= scores[i, j] and scores[j, j] > scores[j, i]))
            image.append(float(scores[i, i] >= scores[j, i] and scores[j, j] > scores[i, j]))
    both = [t * i for t, i in zip(text, image, strict=True)]
    for name, expected, chance in (("text_acc", text, 1 / 4), ("image_acc", image, 1 / 4), ("acc", both, 1 / 6)):
        assert result["metrics"][name]["value"] == pytest.approx(sum(expected) / len(expected))
        assert result["metrics"][name]["chance"] == pytest.approx(chance)


def test_ties_are_counted(model: clipkit.DualEncoder, shapes: Path, tmp_path: Path) -> None:
    rows = [[str(shapes / "images/00.png"), "a cat", "a cat"], [str(shapes / "images/01.png"), "a cat", "a dog"]]
    data = str(write_csv(tmp_path / "d.csv", ["image", "caption", "negative_caption"], rows))
    assert evaluate.compositional(model, data)["settings"]["ties"] == 1
