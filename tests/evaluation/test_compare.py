import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import clipkit
from clipkit import evaluate
from clipkit.data import Pairs
from clipkit.errors import DataError
from clipkit.evaluation import retrieval_result


def results(noise: tuple[float, float], shapes: Path, seed: int = 0, count: int = 16, same: bool = False) -> list[Any]:
    """Two models that see the same images, through more or less noise, their own or the same."""
    generator = torch.Generator().manual_seed(seed)
    images = (sorted(shapes.glob("images/*.png")) * 100)[:count]
    captions = [f"caption {number}" for number in range(3 * count)]
    pairs = Pairs("made", images, captions, np.arange(3 * count) // 3)
    image = torch.nn.functional.normalize(torch.randn(count, 8, generator=generator), dim=-1)
    found = []
    drawn = torch.randn(3 * count, 8, generator=generator)
    for own in noise:
        text = image.repeat_interleave(3, dim=0) + own * drawn
        drawn = drawn if same else torch.randn(3 * count, 8, generator=generator)
        text = torch.nn.functional.normalize(text, dim=-1)
        found.append(retrieval_result(image, text, pairs, f"noise {own}", 0.0, hashes=[b"x"] * count))
    return found


def test_the_difference_is_paired(shapes: Path) -> None:
    first, second = results((0.5, 0.4), shapes, count=400, same=True)
    found = evaluate.compare(first, second)
    assert found["first"] == "noise 0.5"
    assert set(found["metrics"]) == set(first["metrics"])
    for name, difference in found["metrics"].items():
        before, after = first["metrics"][name], second["metrics"][name]
        assert difference["difference"] == pytest.approx(after["value"] - before["value"])
        assert difference["low"] <= difference["difference"] <= difference["high"]
    mean = found["metrics"]["mean_recall"]
    # Clearly better, and known more sharply than each of the two by itself.
    assert mean["low"] > 0
    assert mean["p"] == 0.002
    apart = first["metrics"]["mean_recall"]["high"] - first["metrics"]["mean_recall"]["low"]
    assert mean["high"] - mean["low"] < 0.8 * apart


def test_a_result_does_not_differ_from_itself(shapes: Path) -> None:
    first, _ = results((0.5, 0.5), shapes)
    found = evaluate.compare(first, json.loads(json.dumps(first)))
    assert all(d["difference"] == d["low"] == d["high"] == 0 and d["p"] == 1 for d in found["metrics"].values())
    assert found["disagreements"] == []


def test_equal_models_seldom_seem_different(shapes: Path) -> None:
    seem = 0
    for seed in range(40):
        found = evaluate.compare(*results((0.6, 0.6), shapes, seed, count=60))
        seem += found["metrics"]["image_retrieval_recall@1"]["p"] < 0.05
    assert seem <= 6


def test_where_they_disagree_most(shapes: Path) -> None:
    first, second = results((0.5, 0.5), shapes, count=100)
    moved = evaluate.compare(first, second)["disagreements"]
    texts = [query for query in moved if query["asks"] == "text"]
    ratio = np.log(np.array(second["queries"]["image_rank"]) / np.array(first["queries"]["image_rank"]))
    assert len(texts) == 10
    shown = [np.log(query["second_rank"] / query["first_rank"]) for query in texts]
    assert sorted(shown) == pytest.approx(sorted([*np.sort(ratio)[:5], *np.sort(ratio)[-5:]]))
    row = int(texts[0]["query"].split()[1])
    assert first["queries"]["image_rank"][row] == texts[0]["first_rank"]
    for query in moved:
        row = int(query["query"].split()[1]) if query["asks"] == "text" else None
        for whose in ("first", "second"):
            if row is not None and query[f"{whose}_rank"] == 1:
                assert query[f"{whose}_image"] == query["image"]
            if row is None and query[f"{whose}_rank"] == 1:
                place = first["queries"]["images"].index(query["image"])
                assert int(query[f"{whose}_text"].split()[1]) // 3 % 16 == place % 16


def test_every_task_can_be_compared(tiny_clip: Path, shapes: Path, tmp_path: Path) -> None:
    from tests.conftest import write_csv

    one, two = clipkit.load(tiny_clip), clipkit.load(tiny_clip)
    with torch.no_grad():
        for parameter in two.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    rows = [[str(shapes / f"images/{n:02d}.png"), f"a thing {n}", f"a thing {n + 1}"] for n in range(12)]
    near = str(write_csv(tmp_path / "near.csv", ["image", "caption", "negative_caption"], rows))
    classes = str(shapes / "classes.csv")
    labels = [[str(shapes / f"images/{n:02d}.png"), own] for n in range(12) for own in (f"c{n % 3}", f"d{n % 4}")]
    several = str(write_csv(tmp_path / "several.csv", ["image", "label"], labels))
    for first, second in (
        [evaluate.retrieval(model, str(shapes / "captions.csv")) for model in (one, two)],
        [evaluate.zeroshot(model, classes) for model in (one, two)],
        [evaluate.zeroshot(model, several) for model in (one, two)],
        [evaluate.probe(model, classes, test=classes) for model in (one, two)],
        [evaluate.compositional(model, near) for model in (one, two)],
    ):
        found = evaluate.compare(first, second)
        for name, difference in found["metrics"].items():
            assert difference["first"] == pytest.approx(first["metrics"][name]["value"])
            assert difference["second"] == pytest.approx(second["metrics"][name]["value"])


def test_what_cannot_be_compared_is_one_line(tiny_clip: Path, shapes: Path) -> None:
    first, second = results((0.5, 0.5), shapes)
    zeroshot = evaluate.zeroshot(clipkit.load(tiny_clip), str(shapes / "classes.csv"))
    with pytest.raises(DataError, match="differ in their task: retrieval and zeroshot"):
        evaluate.compare(first, zeroshot)
    with pytest.raises(DataError, match="differ in their data"):
        evaluate.compare(first, second | {"data": second["data"] | {"sha256": "other"}})
    with pytest.raises(DataError, match="does not hold what its queries got"):
        evaluate.compare(first, {name: value for name, value in second.items() if name != "queries"})
    with pytest.raises(DataError, match="lacks what its queries got"):
        evaluate.compare(first, second | {"queries": {"image_rank": [1]}})
    unknown = {**second, "data": {"name": "made"}}
    with pytest.raises(DataError, match="cannot be compared"):
        evaluate.compare(unknown, unknown)
