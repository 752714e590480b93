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
    """Results of two models on the same images; text features have more or less noise, independent or the same."""
    generator = torch.Generator().manual_seed(seed)
    images = (sorted(shapes.glob("images/*.png")) * 100)[:count]
    captions = [f"caption {number}" for number in range(3 * count)]
    pairs = Pairs("made", images, captions, np.arange(3 * count) // 3)
    image = torch.nn.functional.normalize(torch.randn(count, 8, generator=generator), dim=-1)
    both = []
    drawn = torch.randn(3 * count, 8, generator=generator)
    for strength in noise:
        text = image.repeat_interleave(3, dim=0) + strength * drawn
        drawn = drawn if same else torch.randn(3 * count, 8, generator=generator)
        text = torch.nn.functional.normalize(text, dim=-1)
        both.append(retrieval_result(image, text, pairs, f"noise {strength}", 0.0, hashes=[b"x"] * count))
    return both


def test_differences_are_paired(shapes: Path) -> None:
    first, second = results((0.5, 0.4), shapes, count=400, same=True)
    comparison = evaluate.compare(first, second)
    assert comparison["first"] == "noise 0.5"
    assert set(comparison["metrics"]) == set(first["metrics"])
    for name, difference in comparison["metrics"].items():
        before, after = first["metrics"][name], second["metrics"][name]
        assert difference["difference"] == pytest.approx(after["value"] - before["value"])
        assert difference["low"] <= difference["difference"] <= difference["high"]
    mean = comparison["metrics"]["mean_recall"]
    # Clearly better, with a narrower interval than each model alone.
    assert mean["low"] > 0
    assert mean["p"] == 0.002
    apart = first["metrics"]["mean_recall"]["high"] - first["metrics"]["mean_recall"]["low"]
    assert mean["high"] - mean["low"] < 0.8 * apart


def test_result_does_not_differ_from_itself(shapes: Path) -> None:
    first, _ = results((0.5, 0.5), shapes)
    comparison = evaluate.compare(first, json.loads(json.dumps(first)))
    assert all(d["difference"] == d["low"] == d["high"] == 0 and d["p"] == 1 for d in comparison["metrics"].values())
    assert comparison["disagreements"] == []


@pytest.mark.slow
def test_equal_models_rarely_differ_significantly(shapes: Path) -> None:
    significant = 0
    for seed in range(40):
        comparison = evaluate.compare(*results((0.6, 0.6), shapes, seed, count=60))
        significant += comparison["metrics"]["image_retrieval_recall@1"]["p"] < 0.05
    assert significant <= 6


def test_disagreements_are_the_queries_with_the_largest_change(shapes: Path) -> None:
    first, second = results((0.5, 0.5), shapes, count=100)
    changed = evaluate.compare(first, second)["disagreements"]
    texts = [query for query in changed if query["asks"] == "text"]
    ratio = np.log(np.array(second["queries"]["image_rank"]) / np.array(first["queries"]["image_rank"]))
    assert len(texts) == 10
    shown = [np.log(query["second_rank"] / query["first_rank"]) for query in texts]
    assert sorted(shown) == pytest.approx(sorted([*np.sort(ratio)[:5], *np.sort(ratio)[-5:]]))
    row = int(texts[0]["query"].split()[1])
    assert first["queries"]["image_rank"][row] == texts[0]["first_rank"]
    for query in changed:
        row = int(query["query"].split()[1]) if query["asks"] == "text" else None
        for model in ("first", "second"):
            if row is not None and query[f"{model}_rank"] == 1:
                assert query[f"{model}_image"] == query["image"]
            if row is None and query[f"{model}_rank"] == 1:
                position = first["queries"]["images"].index(query["image"])
                assert int(query[f"{model}_text"].split()[1]) // 3 % 16 == position % 16


def test_every_task_can_be_compared(tiny_clip: Path, shapes: Path, tmp_path: Path) -> None:
    from tests.conftest import write_csv

    one, two = clipkit.load(tiny_clip), clipkit.load(tiny_clip)
    with torch.no_grad():
        for parameter in two.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    rows = [[str(shapes / f"images/{n:02d}.png"), f"a thing {n}", f"a thing {n + 1}"] for n in range(12)]
    near = str(write_csv(tmp_path / "near.csv", ["image", "caption", "negative_caption"], rows))
    classes = str(shapes / "classes.csv")
    labels = [[str(shapes / f"images/{n:02d}.png"), label] for n in range(12) for label in (f"c{n % 3}", f"d{n % 4}")]
    several = str(write_csv(tmp_path / "several.csv", ["image", "label"], labels))
    for first, second in (
        [evaluate.retrieval(model, str(shapes / "captions.csv")) for model in (one, two)],
        [evaluate.zeroshot(model, classes) for model in (one, two)],
        [evaluate.zeroshot(model, several) for model in (one, two)],
        [evaluate.probe(model, classes, test=classes) for model in (one, two)],
        [evaluate.compositional(model, near) for model in (one, two)],
    ):
        comparison = evaluate.compare(first, second)
        for name, difference in comparison["metrics"].items():
            assert difference["first"] == pytest.approx(first["metrics"][name]["value"])
            assert difference["second"] == pytest.approx(second["metrics"][name]["value"])


def test_results_that_do_not_match_are_refused(tiny_clip: Path, shapes: Path) -> None:
    first, second = results((0.5, 0.5), shapes)
    zeroshot = evaluate.zeroshot(clipkit.load(tiny_clip), str(shapes / "classes.csv"))
    with pytest.raises(DataError, match="task: retrieval and zeroshot"):
        evaluate.compare(first, zeroshot)
    with pytest.raises(DataError, match=r"content of made \(16 images, 48 captions\)"):
        evaluate.compare(first, second | {"data": second["data"] | {"sha256": "other"}})
    with pytest.raises(DataError, match="noise 0.5.*queries"):
        evaluate.compare(first, {name: value for name, value in second.items() if name != "queries"})
    with pytest.raises(DataError, match="text_rank"):
        evaluate.compare(first, second | {"queries": {"image_rank": [1]}})
    unknown = {**second, "data": {"name": "made"}}
    with pytest.raises(DataError, match="noise 0.5.*data.sha256"):
        evaluate.compare(unknown, unknown)
    with pytest.raises(DataError, match="'views' is not an evaluation task"):
        evaluate.compare(first | {"task": "views"}, second | {"task": "views"})
