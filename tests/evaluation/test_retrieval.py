from pathlib import Path

import torch

import clipkit
from clipkit import evaluate, metrics
from clipkit.data import read_pairs
from clipkit.evaluation import chosen_examples, retrieval_metrics


def test_the_result_has_everything_of_the_contract(tiny_clip: Path, shapes: Path) -> None:
    model = clipkit.load(tiny_clip)
    result = evaluate.retrieval(model, str(shapes / "captions.csv"))
    assert set(result) >= {"task", "model", "data", "metrics", "settings", "versions", "seconds"}
    assert result["task"] == "retrieval"
    assert result["data"]["images"] == 16
    assert result["data"]["captions"] == 32
    assert len(result["data"]["sha256"]) == 64
    pairs = read_pairs(str(shapes / "captions.csv"))
    expected = metrics.retrieval(
        model.encode_image(pairs.pictures),
        model.encode_text(pairs.captions),
        torch.from_numpy(pairs.image_of_caption),
    )
    assert {name: figure["value"] for name, figure in result["metrics"].items()} == expected
    for figure in result["metrics"].values():
        assert 0 <= figure["low"] <= figure["value"] <= figure["high"] <= 1


def test_figures_do_not_depend_on_the_batch_size(tiny_clip: Path, shapes: Path) -> None:
    model = clipkit.load(tiny_clip)
    one, two = (evaluate.retrieval(model, str(shapes / "captions.csv"), batch_size=size) for size in (1, 64))
    assert one["metrics"] == two["metrics"]


def test_examples_mark_the_right_answers(tiny_clip: Path, shapes: Path) -> None:
    pairs = read_pairs(str(shapes / "captions.csv"))
    result = evaluate.retrieval(clipkit.load(tiny_clip), pairs)
    captions_of = {str(path): set() for path in pairs.pictures}
    for caption, image in zip(pairs.captions, pairs.image_of_caption, strict=True):
        captions_of[str(pairs.pictures[image])].add(caption)
    for example in result["examples"]:
        scores = [answer["score"] for answer in example["answers"]]
        assert scores == sorted(scores, reverse=True)
        for answer in example["answers"]:
            image = answer.get("image") or example["query"]["image"]
            text = answer.get("text") or example["query"]["text"]
            assert answer["right"] == (text in captions_of[image])


def test_a_perfect_model_scores_one_and_mean_recall_is_within_its_parts() -> None:
    features = torch.eye(12)
    figures = retrieval_metrics(features, features, torch.arange(12))
    assert all(figure["value"] == figure["low"] == figure["high"] == 1 for figure in figures.values())


def test_examples_are_spread_and_never_more_than_there_are() -> None:
    assert chosen_examples(3, 11) == [0, 5, 10]
    assert chosen_examples(8, 3) == [0, 1, 2]
    assert chosen_examples(8, 1) == [0]
    assert len(chosen_examples(8, 1000)) == 8
