"""Landmark retrieval in the structure of revisited Oxford and Paris, compared with rankings without ignored images."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pyarrow import parquet

import clipkit
from clipkit.data.landmarks import Cropped, read_landmarks
from clipkit.errors import DataError
from clipkit.images import open_image

GALLERY = [f"{number:02d}" for number in range(12)]
TRUTH = [
    {"bbx": [4, 2, 30.6, 28], "easy": [3, 1], "hard": [7], "junk": [0, 2]},
    {"bbx": [0, 0, 500, 500], "easy": [], "hard": [4, 5], "junk": []},
    {"easy": [6, 8, 9, 10, 11], "hard": [], "junk": [3]},
    {"easy": [], "hard": [], "junk": [1]},
]


def written(folder: Path, shapes: Path, **changes: Any) -> str:
    file = folder / "gnd.json"
    content = {"imlist": GALLERY, "qimlist": ["12", "13", "14", "15"], "gnd": TRUTH} | changes
    file.write_text(json.dumps(content))
    return f"{file}?images={shapes / 'images'}"


def test_metrics_are_those_of_rankings_without_ignored_images(tiny_clip: Path, shapes: Path, tmp_path: Path) -> None:
    model = clipkit.load(str(tiny_clip))
    result = clipkit.evaluate.landmarks(model, written(tmp_path, shapes), cache=False)
    gallery = model.encode_image([shapes / f"images/{name}.png" for name in GALLERY])
    values: dict[str, list[float]] = {}
    for number, truth in enumerate(TRUTH):
        query = Image.open(shapes / f"images/{12 + number}.png").convert("RGB")
        if number == 0:
            query = query.crop((4, 2, 31, 28))
        order = (model.encode_image([query]) @ gallery.T)[0].argsort(descending=True, stable=True).tolist()
        for name, correct, ignored in (
            ("easy", ["easy"], ["hard", "junk"]),
            ("medium", ["easy", "hard"], ["junk"]),
            ("hard", ["hard"], ["easy", "junk"]),
        ):
            right, out = ([one for kind in kinds for one in truth[kind]] for kinds in (correct, ignored))
            kept = [one in right for one in order if one not in out]
            if right:
                # The area under precision over recall; the precision before the first place is 1.
                precision = np.cumsum([1, *kept]) / np.arange(len(kept) + 1).clip(1)
                precision[1:] = np.cumsum(kept) / np.arange(1, len(kept) + 1)
                recall = np.cumsum([0, *kept]) / len(right)
                values.setdefault(f"{name}_map", []).append(np.trapezoid(precision, recall))
                last = max(place for place, one in enumerate(kept) if one) + 1
                for k in (1, 5, 10):
                    values.setdefault(f"{name}_mp@{k}", []).append(np.mean(kept[: min(last, k)]))
    assert {name: len(found) for name, found in values.items() if name.endswith("map")} == {
        "easy_map": 2, "medium_map": 3, "hard_map": 2,
    }  # fmt: skip
    assert {name: metric["value"] for name, metric in result["metrics"].items()} == pytest.approx(
        {name: np.mean(found) for name, found in values.items()}
    )
    assert clipkit.evaluate.compare(result, result)["metrics"]["medium_map"]["p"] == 1


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"imlist": []}, "imlist"),
        ({"qimlist": "12"}, "qimlist"),
        ({"gnd": TRUTH[:2]}, "gnd.* 4 "),
        ({"gnd": [{**TRUTH[0], "hard": [12]}, *TRUTH[1:]]}, "query 0.*hard.* 11 "),
        ({"gnd": [*TRUTH[:3], {"easy": [True], "hard": [], "junk": []}]}, "query 3.*easy"),
        ({"gnd": [*TRUTH[:3], {"easy": [5], "hard": [5], "junk": []}]}, "position 5"),
        ({"gnd": [{**TRUTH[0], "bbx": [9, 0, 3, 8]}, *TRUTH[1:]]}, r"\[9, 0, 3, 8\]"),
        ({"gnd": [{**TRUTH[0], "bbx": [0.1, 0, 0.4, 8]}, *TRUTH[1:]]}, r"\[0.1, 0, 0.4, 8\]"),
        ({"gnd": [{**TRUTH[0], "bbx": [0, 0, float("inf"), 8]}, *TRUTH[1:]]}, "inf"),
        ({"gnd": [{"easy": [], "hard": [], "junk": [1]}] * 4}, "no query"),
        ({"imlist": [*GALLERY[:11], "gone"]}, "gone"),
        ({"imlist": [*GALLERY[:11], "00.png"]}, " 12 .* 11 "),
        ({"qimlist": ["00", "13", "14", "03"]}, r"query 3 \(03\)"),
        ({"qimlist": ["03", "13", "14", "01"]}, r"query 0 \(03\).*junk"),  # easy, so it would find itself
    ],
)
def test_invalid_files_are_refused(changes: dict[str, Any], named: str, shapes: Path, tmp_path: Path) -> None:
    source = written(tmp_path, shapes, **changes)
    with pytest.raises(DataError, match=named):
        read_landmarks(source)


def test_a_box_outside_of_its_image_names_both(tiny_clip: Path, shapes: Path, tmp_path: Path) -> None:
    source = written(tmp_path, shapes, gnd=[{**TRUTH[0], "bbx": [900, 0, 950, 50]}, *TRUTH[1:]])
    with pytest.raises(DataError, match=r"12.png.*\[900, 0, 950, 50\]"):
        clipkit.evaluate.landmarks(clipkit.load(str(tiny_clip)), source, cache=False)


def test_a_cropped_image_is_not_mistaken_for_the_whole_one(tiny_clip: Path, shapes: Path, tmp_path: Path) -> None:
    model = clipkit.load(str(tiny_clip))
    cropped = clipkit.evaluate.landmarks(model, written(tmp_path, shapes), cache=tmp_path / "cache")
    whole = [{kind: truth[kind] for kind in ("easy", "hard", "junk")} for truth in TRUTH]
    other = clipkit.evaluate.landmarks(model, written(tmp_path, shapes, gnd=whole), cache=tmp_path / "cache")
    assert cropped["data"]["sha256"] != other["data"]["sha256"]
    assert (
        read_landmarks(written(tmp_path, shapes)).fingerprint
        != read_landmarks(written(tmp_path, shapes, gnd=whole)).fingerprint
    )


def test_a_box_is_that_of_the_upright_image(tmp_path: Path) -> None:
    pixels = np.zeros((20, 40, 3), np.uint8)
    pixels[:10] = 255  # the upper half, which is the right half after the rotation
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    right, left = (open_image(Cropped(tmp_path / "a.png", box)) for box in ((10, 0, 99, 99), (-5, 0, 10, 30)))
    assert (right.size, left.size) == ((10, 40), (10, 30))
    assert (np.asarray(right).min(), np.asarray(left).max()) == (255, 0)


def test_predictions_have_one_row_per_query(tiny_clip: Path, shapes: Path, tmp_path: Path) -> None:
    file = tmp_path / "p.parquet"
    model = clipkit.load(str(tiny_clip))
    clipkit.evaluate.landmarks(model, written(tmp_path, shapes), cache=False, predictions=file)
    rows = parquet.read_table(file).to_pylist()
    assert [row["images"].rpartition("/")[2] for row in rows] == [
        "12.png~4,2,31,28", "13.png~0,0,500,500", "14.png", "15.png",
    ]  # fmt: skip
    assert [row["hard_map"] is None for row in rows] == [False, False, True, True]
