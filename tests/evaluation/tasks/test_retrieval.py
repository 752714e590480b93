import json
from pathlib import Path

import numpy as np
import pytest
import torch
from pyarrow import parquet

import clipkit
from clipkit import evaluate, metrics
from clipkit.data import Pairs, read_pairs
from clipkit.evaluation import retrieval_result, to_json
from tests.conftest import write_csv


def test_result_has_every_field_of_the_contract(tiny_clip: Path, shapes: Path) -> None:
    model = clipkit.load(tiny_clip)
    result = evaluate.retrieval(model, str(shapes / "captions.csv"))
    assert set(result) >= {"task", "model", "data", "metrics", "settings", "versions", "seconds"}
    assert result["task"] == "retrieval"
    assert result["data"]["images"] == 16
    assert result["data"]["captions"] == 32
    assert len(result["data"]["sha256"]) == 64
    pairs = read_pairs(str(shapes / "captions.csv"))
    expected = metrics.retrieval(
        model.encode_image(pairs.images),
        model.encode_text(pairs.captions),
        torch.from_numpy(pairs.image_of_caption),
    )
    first = [expected[f"{way}_retrieval_recall@1"] for way in ("image", "text")]
    expected["mean_recall@1"] = sum(first) / 2
    assert {name: figure["value"] for name, figure in result["metrics"].items()} == pytest.approx(expected, abs=1e-12)
    for name, figure in result["metrics"].items():
        assert 0 <= figure["low"] <= figure["value"] <= figure["high"]
        assert figure["high"] <= (32 if "_rank" in name else 1)


def test_metrics_do_not_depend_on_the_batch_size(tiny_clip: Path, shapes: Path) -> None:
    model = clipkit.load(tiny_clip)
    one, two = (evaluate.retrieval(model, str(shapes / "captions.csv"), batch_size=size) for size in (1, 64))
    assert one["metrics"] == two["metrics"]


def test_examples_mark_right_answers(tiny_clip: Path, shapes: Path) -> None:
    pairs = read_pairs(str(shapes / "captions.csv"))
    result = evaluate.retrieval(clipkit.load(tiny_clip), pairs)
    captions_of = {str(path): set() for path in pairs.images}
    for caption, image in zip(pairs.captions, pairs.image_of_caption, strict=True):
        captions_of[str(pairs.images[image])].add(caption)
    for example in result["examples"]:
        scores = [answer["score"] for answer in example["answers"]]
        assert scores == sorted(scores, reverse=True)
        for answer in example["answers"]:
            image = answer.get("image") or example["query"]["image"]
            text = answer.get("text") or example["query"]["text"]
            assert answer["right"] == (text in captions_of[image])


def pairs_of(folder: Path, images: int, captions: list[str], image_of_caption: list[int]) -> Pairs:
    return Pairs("made", sorted(folder.glob("images/*.png"))[:images], captions, np.array(image_of_caption))


def test_perfect_features_score_one_without_uncertainty(shapes: Path) -> None:
    pairs = pairs_of(shapes, 12, [f"caption {number}" for number in range(12)], list(range(12)))
    figures = retrieval_result(torch.eye(12), torch.eye(12), pairs, "perfect", 0.0)["metrics"]
    assert all(figure["value"] == figure["low"] == figure["high"] == 1 for figure in figures.values())


def test_chance_lies_in_the_interval_of_random_features(shapes: Path) -> None:
    pairs = pairs_of(shapes, 16, [f"caption {number}" for number in range(48)], [number // 3 for number in range(48)])
    held = 0
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        image, text = torch.randn(16, 8, generator=generator), torch.randn(48, 8, generator=generator)
        figure = retrieval_result(image, text, pairs, "random", 0.0)["metrics"]["mean_recall"]
        held += figure["low"] <= figure["chance"] <= figure["high"]
    assert held >= 16


def test_merge_captions_makes_identical_captions_one_query(tiny_clip: Path, shapes: Path, tmp_path: Path) -> None:
    names = [str(path) for path in sorted((shapes / "images").glob("*.png"))[:6]]
    rows = [[names[0], "a thing"], [names[1], "a thing"], [names[2], "red"], [names[2], "blue"], [names[3], "a thing"]]
    data = str(write_csv(tmp_path / "d.csv", ["image", "caption"], rows))
    model = clipkit.load(tiny_clip)
    apart = evaluate.retrieval(model, data)
    merged = evaluate.retrieval(model, data, merge_captions=True)
    assert len(apart["queries"]["image_rank"]) == 5
    assert len(merged["queries"]["image_rank"]) == 3
    assert merged["queries"]["texts"] == ["a thing", "red", "blue"]
    # The best of three right images counts; its rank among the four images is at most 2.
    best = [rank for rank, row in zip(apart["queries"]["image_rank"], rows, strict=True) if row[1] == "a thing"]
    assert merged["queries"]["image_rank"][0] == min(best) <= 2
    assert merged["settings"]["merge_captions"]
    (example,) = [e for e in merged["examples"] if e["query"].get("text") == "a thing" and "kind" not in e]
    assert sum(answer["right"] for answer in example["answers"]) == 3


def test_data_hash_depends_on_content_and_not_on_paths(tiny_clip: Path, shapes: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(shapes, tmp_path / "moved")
    model = clipkit.load(tiny_clip)

    def sha256(folder: Path) -> str:
        return str(evaluate.retrieval(model, str(folder / "captions.csv"))["data"]["sha256"])

    first = sha256(shapes)
    assert sha256(tmp_path / "moved") == first
    shutil.copy(tmp_path / "moved/images/00.png", tmp_path / "moved/images/01.png")
    assert sha256(tmp_path / "moved") != first


def test_metrics_can_be_recomputed_from_predictions(tiny_clip: Path, shapes: Path, tmp_path: Path) -> None:
    file = tmp_path / "p.parquet"
    result = evaluate.retrieval(clipkit.load(tiny_clip), str(shapes / "captions.csv"), predictions=file)
    rows = parquet.read_table(file).to_pylist()
    assert len(rows) == 16 + 32
    for asks, name in (("text", "image_retrieval"), ("image", "text_retrieval")):
        queries = [row for row in rows if row["asks"] == asks]
        for k in (1, 5, 10):
            by_rank = np.mean([min(row["right_ranks"]) <= k for row in queries])
            by_top = np.mean([bool(set(row["top"][:k]) & set(row["right"])) for row in queries])
            assert by_rank == by_top == result["metrics"][f"{name}_recall@{k}"]["value"]
        for row in queries:
            assert row["top_scores"] == sorted(row["top_scores"], reverse=True)
            for right, score in zip(row["right"], row["right_scores"], strict=True):
                if right in row["top"]:
                    assert row["top_scores"][row["top"].index(right)] == score
    assert list(tmp_path.iterdir()) == [file]


def test_json_holds_the_whole_result_with_one_line_per_list(tiny_clip: Path, shapes: Path) -> None:
    result = evaluate.retrieval(clipkit.load(tiny_clip), str(shapes / "captions.csv"))
    text = to_json(result)
    assert json.loads(text) == json.loads(json.dumps(result))
    assert sum(line.startswith('    "image_rank": [') for line in text.splitlines()) == 1
