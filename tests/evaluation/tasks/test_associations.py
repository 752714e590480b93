"""Association tests in WinoGAViL's layout, compared with DataComp's computation."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import jaccard_score

import clipkit
from clipkit.errors import DataError
from clipkit.evaluation.tasks.associations import expected_jaccard, prompt


def written(folder: Path, rows: list[dict[str, Any]]) -> Path:
    file = folder / "test.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return file


def test_jaccard_equals_datacomps(tiny_clip: Path, shapes: Path, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    rows = []
    for number, count in enumerate((5, 6, 10, 12, 5)):
        names = [f"{k:02d}" for k in generator.choice(16, count, replace=False)]
        rows.append(
            {"cue": ("Apple", "dog")[number % 2], "candidates": names, "associations": names[1 : 3 + number % 2]}
        )
    model = clipkit.load(str(tiny_clip))
    source = f"{written(tmp_path, rows)}?images={shapes / 'images'}"
    result = clipkit.evaluate.associations(model, source, cache=False)
    scores = []
    for row in rows:
        images = model.encode_image([shapes / f"images/{name}.png" for name in row["candidates"]])
        text = model.encode_text([f"{'An' if row['cue'] == 'Apple' else 'A'} {row['cue'].lower()}"])
        order = np.argsort((text @ images.T)[0].numpy())[-len(row["associations"]) :]
        right = np.isin(row["candidates"], row["associations"])
        scores.append(jaccard_score(right, np.isin(np.arange(len(right)), order)))
    metrics = result["metrics"]
    assert metrics["jaccard"]["value"] == pytest.approx(np.mean(scores))
    assert metrics["jaccard_5-6"]["value"] == pytest.approx(np.mean([scores[0], scores[1], scores[4]]))
    assert metrics["jaccard_10-12"]["value"] == pytest.approx(np.mean(scores[2:4]))
    assert clipkit.evaluate.compare(result, result)["metrics"]["jaccard"]["p"] == 1


def test_chance_is_the_mean_of_random_choices() -> None:
    generator = np.random.default_rng(0)
    drawn = []
    for _ in range(4000):
        both = len(set(generator.choice(6, 2, replace=False)) & {0, 1})
        drawn.append(both / (4 - both))
    assert expected_jaccard(6, 2) == pytest.approx(np.mean(drawn), abs=0.02)
    assert prompt("Umbrella") == "An umbrella"


@pytest.mark.parametrize(
    ("row", "named"),
    [
        ({"cue": "a", "candidates": ["00"], "associations": ["01"]}, "row 1"),
        ({"cue": "a", "candidates": ["00"]}, "associations"),
        ({"cue": "a", "candidates": ["gone"], "associations": ["gone"]}, "gone"),
    ],
)
def test_invalid_rows_are_refused(
    row: dict[str, Any], named: str, shapes: Path, tmp_path: Path, tiny_clip: Path
) -> None:
    source = f"{written(tmp_path, [row])}?images={shapes / 'images'}"
    with pytest.raises(DataError, match=named):
        clipkit.evaluate.associations(clipkit.load(str(tiny_clip)), source)
