"""Objectives of views: gradients of other libraries' losses, whole runs, their metrics and files."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor

import clipkit
from clipkit.data import Policy, TextSafe, read_pairs
from clipkit.errors import DataError, ModelError, RecipeError, UserError
from clipkit.images import Stored
from clipkit.models import DualEncoder
from clipkit.recipe import Recipe, steps_of
from tests.conftest import draw, read_lines, write_csv
from tests.training.exactness import build, encoders, global_batch, gradients
from tests.training.test_run import COMPOSED

Build = Callable[..., Recipe]
IMAGE_ALONE = {"name": None, "image": COMPOSED["image"]}
TEXT_ALONE = {"name": None, "text": COMPOSED["text"]}
VIEWS: dict[str, Any] = {"objective": "views", "views": {"image": {"policies": ["moco", "moco"], "head": {"dim": 8}}}}


def lightlys(one: Tensor, two: Tensor, ids: Tensor) -> Tensor:
    from lightly.loss import NTXentLoss

    return NTXentLoss(0.2)(one, two)


def sentence_transformers(one: Tensor, two: Tensor, ids: Tensor) -> Tensor:
    """Their loss over precomputed features, one direction at a time."""
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    loss = MultipleNegativesRankingLoss(
        torch.nn.Identity(),  # type: ignore[arg-type]
        scale=5.0,
        directions=("query_to_doc", "doc_to_query"),
        partition_mode="per_direction",
    )
    return loss.compute_loss_from_embeddings([one, two], None)


def metric_learnings(one: Tensor, two: Tensor, ids: Tensor) -> Tensor:
    from pytorch_metric_learning.distances import CosineSimilarity
    from pytorch_metric_learning.losses import TripletMarginLoss
    from pytorch_metric_learning.reducers import SumReducer

    loss = TripletMarginLoss(0.5, distance=CosineSimilarity(), reducer=SumReducer())
    # Another tensor for the references' labels: of the same one the diagonal is dropped.
    total = loss(one, ids, ref_emb=two, ref_labels=ids.clone()) + loss(two, ids, ref_emb=one, ref_labels=ids.clone())
    similar, same = one @ two.T, ids[:, None] == ids
    count = 0
    for scores in (similar, similar.T):
        violation = 0.5 + scores[:, None, :] - scores[:, :, None]
        count += int(((violation > 0) & same[:, :, None] & ~same[:, None, :]).sum())
    return total / count


@pytest.mark.parametrize("micro", [3, 100])
@pytest.mark.parametrize(
    ("objective", "theirs"),
    [
        ("SimCLR, image, head", lightlys),
        ("SimCLR, image, batch norm head", lightlys),
        ("SimCSE, text", sentence_transformers),
        ("triplet, image", metric_learnings),
    ],
)
def test_gradients_equal_those_of_others_losses(
    objective: str, theirs: Callable[[Tensor, Tensor, Tensor], Tensor], micro: int
) -> None:
    """For every parameter, through towers and heads, with micro-batches; test_exactness covers several processes."""
    found = gradients(objective, 14, micro, torch.float64, 0.0, Accelerator(cpu=True))
    model = build(torch.float64, 0.0, objective)
    batch = global_batch(14, torch.float64)
    views = []
    for name, encoder in encoders(objective, model).items():
        features = encoder(batch.inputs[name])
        head = model.view_head("image") if encoder.of_trunk else None
        views.append(F.normalize(features if head is None else head(features), dim=-1))
    loss = theirs(*views, batch.image_ids)
    loss.backward()
    assert found["loss"].item() == pytest.approx(loss.item(), rel=1e-10)
    learned = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert set(learned) == set(found) - {"loss"}
    scale = max(gradient.abs().max().item() for gradient in learned.values())
    for name, gradient in learned.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-10, atol=1e-10 * scale)


def first_loss(run: Path) -> float:
    return float(read_lines(run / "metrics.jsonl")[0]["loss"])


def views_of(
    model: DualEncoder, images: Sequence[Path | Stored], policy: str, view: int, safe: TextSafe | None = None
) -> Tensor:
    preprocess = model.image.preprocess
    own = Policy(steps_of(policy), preprocess.image_size, preprocess.of_crop, preprocess, 0, view, safe)
    inputs = [own(clipkit.images.open_image(image), 0, row)["pixel_values"] for row, image in enumerate(images)]
    ready = model.image.ready({"pixel_values": torch.stack(inputs)})
    return F.normalize(model.image(ready), dim=-1).detach()


@pytest.mark.parametrize("safe", [False, True])
def test_a_run_uses_the_views_of_the_recipe(recipe: Build, tmp_path: Path, shapes: Path, safe: bool) -> None:
    """SLIP: the first step is the captions' loss and, weighted, that of the two views of the same images."""
    own = {
        "train.batch_size": 16, "train.epochs": 1, "data.augment": "none", "loss.duplicates": "negative",
        "objective": {"captions": 1.0, "views": 0.5},
        "views": {"image": {"policies": ["moco", "simclr"], "head": None, "temperature": 0.2, "safe": safe}},
    }  # fmt: skip
    clipkit.train(recipe(own))
    model, pairs = clipkit.load(recipe().model.name), read_pairs(str(shapes / "captions.csv"))
    guard = TextSafe(pairs) if safe else None
    # All captions mention a color.
    assert guard is None or {guard.of(image) for image in range(16)} == {(True, False)}
    one, two = (views_of(model, pairs.images, policy, view, guard) for view, policy in enumerate(("moco", "simclr"), 1))
    sampler = clipkit.data.EpochSampler(pairs, "one", 16, 0)
    samples = next(iter(sampler.slices(0, 1, slice(0, 16))))
    image = model.encode_image([pairs.images[sample.image] for sample in samples])
    text = model.encode_text([pairs.captions[sample.caption] for sample in samples])
    expected = clipkit.losses.infonce(image, text, model.logit_scale.exp().detach())
    expected += 0.5 * clipkit.losses.ntxent(one, two, 5.0)
    assert first_loss(tmp_path / "run") == pytest.approx(expected.item(), rel=1e-5)


def test_text_views_are_passes_under_different_dropout(recipe: Build, tmp_path: Path, shapes: Path) -> None:
    own = {
        "model": TEXT_ALONE, "objective": "views", "views": {"text": {}}, "model.text.dropout": 0.3,
        "data.captions": "all", "train.batch_size": 8, "optim.lr": 3e-3, "train.epochs": 8,
    }  # fmt: skip
    result = clipkit.train(recipe(own))
    rows = read_lines(tmp_path / "run" / "metrics.jsonl")
    assert rows[0]["loss"] > 1e-3  # of equal views of eight captions it would be nothing at a temperature of 0.05
    assert "scale" not in rows[0]
    assert set(result["metrics"]) == {
        "text_view_recall@1", "text_view_recall@5", "text_view_recall@10", "text_alignment", "text_uniformity",
    }  # fmt: skip
    assert result["settings"]["best"]["metric"] == "text_view_recall@1"
    model = clipkit.load(tmp_path / "run")
    assert model.encode_text(["a red circle"]).shape == (1, 32)
    with pytest.raises(ModelError, match="has no image tower"):
        model.encode_image(str(shapes / "images/00.png"))
    report = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "Map of the embedding" in report
    assert "<title>a red square</title>" in report


def test_text_views_need_neither_images_nor_dropout(recipe: Build, tmp_path: Path) -> None:
    rows = [
        [f"a {color} {shape}", f"{shape}, {color}"] for color in ("red", "blue") for shape in ("dot", "cross", "bar")
    ]
    data = str(write_csv(tmp_path / "t.csv", ["text", "paraphrase"], rows))
    own = {
        "model": TEXT_ALONE, "objective": "views", "views": {"text": {"policies": ["same", "paraphrase", "crop"]}},
        "data.train": data, "data.validation": data, "train.batch_size": 6, "train.epochs": 3,
    }  # fmt: skip
    result = clipkit.train(recipe(own))
    pairs = read_pairs(data, images=False)
    # Six captions, each with one other wording: the paraphrase.
    model = clipkit.load(tmp_path / "run")
    assert pairs.paraphrases is not None
    scores = model.encode_text(pairs.paraphrases) @ model.encode_text(pairs.captions).T
    expected = (scores.argmax(dim=1) == torch.arange(6)).double().mean().item()
    assert result["metrics"]["text_view_recall@1"]["value"] == pytest.approx(expected)
    write_csv(tmp_path / "t.csv", ["text", "paraphrase"], [[a, f"not {b}"] for a, b in rows])
    with pytest.raises(UserError, match="the paraphrases changed"):
        clipkit.train(recipe({**own, "train.epochs": 4}), resume=True)


def test_one_image_tower_from_images_alone(recipe: Build, tmp_path: Path, shapes: Path) -> None:
    own = {
        "model": IMAGE_ALONE, **VIEWS, "views.image.head.norm": "batch", "data.train": str(shapes / "images"),
        "data.validation": str(shapes / "images"), "data.labelled": str(shapes / "classes.csv"), "train.epochs": 3,
        "train.batch_size": 16, "eval.metric": "knn_acc1",
    }  # fmt: skip
    result = clipkit.train(recipe(own))
    assert {"image_view_recall@1", "image_uniformity", "knn_acc1", "lp_acc1"} <= set(result["metrics"])
    assert result["data"]["labelled"]["classes"] == 4
    evaluations = read_lines(tmp_path / "run" / "evaluations.jsonl")
    assert len(evaluations) == 3
    best = max(evaluations, key=lambda row: row["knn_acc1"])
    assert result["metrics"]["knn_acc1"]["value"] == best["knn_acc1"]
    model = clipkit.load(tmp_path / "run")
    assert not model.view_heads
    assert model.encode_image(str(shapes / "images/00.png")).shape == (1, model.image.trunk.native.num_features)
    again = clipkit.evaluate.probe(model, str(shapes / "classes.csv"), cache=False)
    assert again["metrics"]["knn_acc1"] == result["metrics"]["knn_acc1"]
    with pytest.raises(ModelError, match="has no text tower"):
        clipkit.evaluate.retrieval(model, str(shapes / "captions.csv"), cache=False)
    with pytest.raises(ModelError, match="has no text tower"):
        clipkit.evaluate.zeroshot(model, str(shapes / "classes.csv"), cache=False)
    report = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    for part in ("Nearest neighbors", "Map of the embedding", "Labeled images", "chance"):
        assert part in report
    assert result["settings"]["loss_at_chance"] == pytest.approx(np.log(31))


def test_a_kept_head_is_saved_with_the_model_and_trained_further(recipe: Build, tmp_path: Path, shapes: Path) -> None:
    own = {"model": IMAGE_ALONE, **VIEWS, "views.image.head.keep": True, "train.epochs": 2}
    clipkit.train(recipe(own))
    model = clipkit.load(tmp_path / "run")
    head = model.view_head("image")
    assert head is not None
    features = head(model.image.trunk(torch.randn(2, 3, 32, 32)))
    assert features.shape == (2, 8)
    further = {**own, "model": {"name": str(tmp_path / "run")}, "output": str(tmp_path / "further"), "optim.lr": 1e-9}
    clipkit.train(recipe(further))
    moved = clipkit.load(tmp_path / "further").view_head("image")
    assert moved is not None
    for name, value in head.state_dict().items():
        torch.testing.assert_close(moved.state_dict()[name], value, rtol=0, atol=1e-5)


def test_classes_are_positives(recipe: Build, tmp_path: Path) -> None:
    """A triplet loss pulls images of one class folder together."""
    for number, color in enumerate(("red", "blue", "green")):
        for shift in range(6):
            folder = tmp_path / "classes" / color
            folder.mkdir(parents=True, exist_ok=True)
            draw(color, "cross" if shift % 2 else "square", shift=shift - number).save(folder / f"{shift}.png")
    own = {
        "model": IMAGE_ALONE, "objective": "views", "data.train": str(tmp_path / "classes"), "data.validation": None,
        "data.labelled": str(tmp_path / "classes"), "train.epochs": 12, "train.batch_size": 18, "optim.lr": 3e-3,
        "views": {
            "image": {
                "policies": [["crop"], ["crop"]], "positives": "caption", "head": None,
                "loss": {"name": "triplet", "mining": "all", "margin": 0.2},
            },
        },
    }  # fmt: skip
    clipkit.train(recipe(own))
    model = clipkit.load(tmp_path / "run")
    pairs = read_pairs(str(tmp_path / "classes"))
    assert pairs.captions[:7] == ["blue"] * 6 + ["green"]
    features = model.encode_image(pairs.images)
    same = torch.from_numpy(pairs.caption_ids[:, None] == pairs.caption_ids)
    scores = features @ features.T
    assert scores[same].mean() > scores[~same].mean() + 0.2


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"views.image.positives": "caption", "data.train": "{images}"}, DataError, "images without captions"),
        ({"views.image.safe": True, "data.train": "{images}"}, DataError, "images without captions"),
        ({"data.train": "{text}"}, DataError, "no image column"),
        (
            {"data.labelled": "{classes}", "data.labelled_test": "{others}"},
            DataError,
            "pink",
        ),
        ({"model.image.tune": "frozen"}, RecipeError, "no trainable parameter"),  # but a head that is dropped
        ({"data.validation": "{one}"}, DataError, "one.csv: 1 validation"),
    ],
)
def test_invalid_data_or_model_is_refused_before_the_first_step(
    recipe: Build, tmp_path: Path, shapes: Path, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    places = {
        "images": shapes / "images",
        "classes": shapes / "classes.csv",
        "text": write_csv(tmp_path / "text.csv", ["caption"], [["a"]] * 9),
        "one": write_csv(tmp_path / "one.csv", ["image"], [[str(shapes / "images/00.png")]]),
        "others": write_csv(tmp_path / "o.csv", ["image", "label"], [[str(shapes / "images/00.png"), "pink"]]),
    }
    own = {key: value.format(**places) if isinstance(value, str) else value for key, value in changes.items()}
    with pytest.raises(error, match=message):
        clipkit.train(recipe({**VIEWS, **own}))
    assert not (tmp_path / "run" / "recipe.yaml").exists()


def test_a_run_without_validation_writes_a_report(recipe: Build, tmp_path: Path) -> None:
    result = clipkit.train(recipe({"model": IMAGE_ALONE, **VIEWS, "data.validation": None, "train.epochs": 1}))
    assert result["metrics"] == {}
    assert "last weights are kept" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert json.loads((tmp_path / "run" / "results.json").read_text())["settings"]["best"] is None


def test_a_model_of_one_tower_is_refused_where_the_other_is_needed(recipe: Build, tmp_path: Path, shapes: Path) -> None:
    clipkit.train(recipe({"model": IMAGE_ALONE, **VIEWS, "data.validation": None, "train.epochs": 1}))
    run = {"model": {"name": str(tmp_path / "run")}, "output": str(tmp_path / "further"), "train.epochs": 1}
    text = {"objective": "views", "views": {"text": {"policies": ["same", "crop"]}}}
    for changes in ({}, text):
        with pytest.raises(ModelError, match="run:? has no text tower"):
            clipkit.train(recipe({**run, **changes}))
    assert not (tmp_path / "further" / "recipe.yaml").exists()
    clipkit.train(recipe({**run, **VIEWS, "train.gradient_checkpointing": True}))


def test_resume_notes_changed_labeled_images(recipe: Build, tmp_path: Path, shapes: Path) -> None:
    own = {"model": IMAGE_ALONE, **VIEWS, "data.validation": None, "data.labelled": str(shapes / "classes.csv")}
    clipkit.train(recipe({**own, "train.epochs": 1}))
    rows = [[str(shapes / f"images/{number:02d}.png"), "ab"[number % 2]] for number in range(16)]
    other = str(write_csv(tmp_path / "other.csv", ["image", "label"], rows))
    clipkit.train(recipe({**own, "train.epochs": 2, "data.labelled": other}), resume=True)
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "the images of data.labelled changed since" in log


def test_wordings_are_other_captions_else_paraphrase_else_crop(shapes: Path, tmp_path: Path, recipe: Build) -> None:
    from accelerate import Accelerator

    from clipkit.processes import Processes
    from clipkit.training.objectives.text_views import measure

    images = [str(shapes / f"images/{number:02d}.png") for number in range(3)]
    rows = [[images[0], "one two three four", ""], [images[1], "five six", "six five"], [images[2], "seven", "eight"],
            [images[2], "nine", "ten"]]  # fmt: skip
    pairs = read_pairs(str(write_csv(tmp_path / "w.csv", ["image", "caption", "paraphrase"], rows)))
    own = recipe({"objective": "views", "views": {"text": {"policies": ["same", "crop"]}}})
    model = clipkit.load(own.model.name)
    (term,) = own.terms
    validation = measure(term, own, model, pairs, Processes(Accelerator(cpu=True)))
    assert validation.captions == ["one two three four", "five six", "seven"]
    first, *others = validation.wordings
    assert first in "one two three four"
    assert others == ["six five", "nine"]
    assert validation.targets.tolist() == [0, 1, 2]
