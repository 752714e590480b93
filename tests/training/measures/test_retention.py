"""Retention, interpolation of weights, early stopping, trackers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import clipkit
from clipkit.errors import DataError, RecipeError
from clipkit.recipe import Recipe
from clipkit.training.interpolation import ALPHAS, alphas_of, best_row, interpolated, start_of
from clipkit.training.measures import retention
from tests.conftest import read_lines

Build = Callable[..., Recipe]


def test_own_similarities_are_the_correlation_with_the_start(recipe: Build, tiny_clip: Path, shapes: Path) -> None:
    from clipkit.data import read_pairs

    model, pairs = clipkit.load(tiny_clip), read_pairs(str(shapes / "captions.csv"))
    own = retention.OwnSimilarities(model, pairs)
    assert own.value() == pytest.approx(1.0, abs=1e-9)
    images = [pairs.images[place] for place in range(16)]
    captions = [pairs.captions[2 * place] for place in range(16)]
    before = (model.encode_image(images) @ model.encode_text(captions).T).double().numpy()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    after = (model.encode_image(images) @ model.encode_text(captions).T).double().numpy()
    assert own.value() == pytest.approx(np.corrcoef(before.ravel(), after.ravel())[0, 1], abs=1e-6)
    assert own.value() < 0.999
    with torch.no_grad():
        model.image.head.weight.zero_()
    assert own.value() == 0.0


@pytest.mark.parametrize(
    ("file", "metric", "figure"),
    [("classes.csv", "retention_acc1", "acc1"), ("captions.csv", "retention_mean_recall", "mean_recall")],
)
def test_retention_on_a_named_set(
    file: str, metric: str, figure: str, recipe: Build, tiny_clip: Path, shapes: Path, tmp_path: Path
) -> None:
    source = str(shapes / file)
    result = clipkit.train(recipe({"eval.retention": source}))
    rows = read_lines(tmp_path / "run" / "evaluations.jsonl")
    measure = clipkit.evaluate.zeroshot if figure == "acc1" else clipkit.evaluate.retrieval
    start: Any = measure(clipkit.load(tiny_clip), source, cache=False)
    assert result["settings"]["retention"]["start"] == start["metrics"][figure]["value"]
    chosen: Any = measure(clipkit.load(tmp_path / "run"), source, cache=False)
    assert result["settings"]["retention"]["chosen"] == pytest.approx(chosen["metrics"][figure]["value"], abs=1e-9)
    best = result["settings"]["best"]["step"]
    assert next(row[metric] for row in rows if row["step"] == best) == result["settings"]["retention"]["chosen"]


def test_a_named_set_without_valid_labels_and_captions_gives_both_reasons(recipe: Build, tmp_path: Path) -> None:
    table = tmp_path / "labels.csv"
    table.write_text("image,label\na.png,\n")
    with pytest.raises(DataError) as caught:
        clipkit.train(recipe({"eval.retention": str(table)}))
    assert all(part in str(caught.value) for part in ("eval.retention", "label", "caption"))


def test_a_resumed_run_keeps_the_start_of_its_retention(recipe: Build, tmp_path: Path) -> None:
    whole = clipkit.train(recipe({"train.epochs": 2, "output": str(tmp_path / "whole")}))
    clipkit.train(recipe({"train.epochs": 1}))
    # Another end of the schedule is another run; what counts is that start and findings stay.
    again = clipkit.train(recipe({"train.epochs": 2}), resume=True)
    kept = [own["settings"]["retention"]["start"] for own in (whole, again)]
    assert kept == pytest.approx([1.0, 1.0], abs=1e-9)
    for result in (whole, again):
        assert [own["name"] for own in result["findings"]][:2] == ["leaked_images", "high_learning_rate"]
    rows = read_lines(tmp_path / "run" / "evaluations.jsonl")
    assert rows[-1]["retention_similarity"] < 1.0


def test_a_new_model_has_no_retention(recipe: Build) -> None:
    own = recipe({"model.name": "open_clip:ViT-B-32"})
    assert retention.retention_of(own, None, None, None) is None  # type: ignore[arg-type]


def test_interpolated_weights_lie_between_start_and_end() -> None:
    model = torch.nn.Linear(2, 1, bias=False)
    model.register_buffer("count", torch.tensor(1))
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.0, 0.0]]))
    start = start_of(model)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[4.0, 8.0]]))
        model.count.fill_(7)

    def figures() -> dict[str, float]:
        at = model.weight[0, 0].item()
        return {"gain": at / 4, "kept": 1 - (at / 4) ** 3, "other": 0.0}

    rows, chosen = interpolated(model, start, figures, {"target": "gain", "retention": "kept"})
    assert [row["alpha"] for row in rows] == list(ALPHAS)
    assert [row["target"] for row in rows] == list(ALPHAS)
    assert chosen == 0.5  # of 1, 1.234, 1.375, 1.328, 1
    assert model.weight.tolist() == [[2.0, 4.0]]
    assert model.count.item() == 7


def test_rule_bounds_the_loss_of_retention() -> None:
    curve = [(0.0, 0.30, 0.56), (0.25, 0.35, 0.555), (0.5, 0.40, 0.55), (0.75, 0.40, 0.54), (1.0, 0.45, 0.40)]
    rows = [{"alpha": alpha, "target": target, "retention": kept} for alpha, target, kept in curve]
    chosen = {most: best_row(rows, most)["alpha"] for most in (0.0, 0.001, 0.005, 0.01, 0.02, 0.2, None)}
    assert chosen == {0.0: 0.0, 0.001: 0.0, 0.005: 0.25, 0.01: 0.5, 0.02: 0.75, 0.2: 1.0, None: 0.5}
    assert alphas_of(True) == ALPHAS
    assert alphas_of(11) == pytest.approx([0.1 * index for index in range(11)])


def test_a_run_keeps_the_weights_that_the_rule_chooses(
    recipe: Build, tiny_clip: Path, shapes: Path, tmp_path: Path
) -> None:
    changes = {
        "eval.interpolate": 3, "eval.max_forgetting": 0.01, "eval.retention": str(shapes / "classes.csv"),
        "train.epochs": 1, "loss.logit_scale": "freeze",
    }  # fmt: skip
    settings = clipkit.train(recipe(changes))["settings"]
    rows = settings["interpolation"]
    assert [row["alpha"] for row in rows] == [0.0, 0.5, 1.0]
    allowed = [row for row in rows if row["retention"] >= rows[0]["retention"] - 0.01]
    best = max(allowed, key=lambda row: (row["target"], row["alpha"]))
    assert settings["alpha"] == best["alpha"]
    assert settings["retention"]["chosen"] == best["retention"]
    start, end = (clipkit.load(folder).state_dict() for folder in (tiny_clip, tmp_path / "run"))
    assert all(torch.equal(start[name], end[name]) for name in start) == (best["alpha"] == 0.0)
    log, report = ((tmp_path / "run" / name).read_text() for name in ("log.txt", "report.html"))
    assert f"alpha {best['alpha']:g}, " in log
    assert all("at most 0.01 of retention_acc1" in text for text in (log, report))


@pytest.mark.parametrize("file", ["classes.csv", "captions.csv"])
def test_retention_of_frozen_trunks_is_that_of_whole_towers(file: str, tiny_clip: Path, shapes: Path) -> None:
    from clipkit.models.tuning import tune
    from clipkit.processes import Processes, accelerator_of

    values = []
    for method in ("head", "full"):
        model = clipkit.load(tiny_clip)
        tune(model.image, method)
        tune(model.text, method)
        measure = retention.NamedSet(model, str(shapes / file), Processes(accelerator_of("fp32", 1.0)))
        assert bool(measure.inputs.stores) == (method == "head")
        with torch.no_grad():
            model.image.head.weight.mul_(torch.linspace(-1, 2, 24)[:, None])  # type: ignore[operator, union-attr]
        values.append(measure.value())
    assert values[0] == values[1]


def test_rule_needs_a_dataset_and_interpolation(recipe: Build, shapes: Path) -> None:
    for given in ({"eval.interpolate": True}, {"eval.retention": str(shapes / "classes.csv")}):
        with pytest.raises(RecipeError, match=r"eval\.max_forgetting"):
            recipe({"eval.max_forgetting": 0.01, **given})


def test_a_run_keeps_the_best_interpolated_weights(
    recipe: Build, tiny_clip: Path, shapes: Path, tmp_path: Path
) -> None:
    result = clipkit.train(recipe({"eval.interpolate": True, "eval.retention": str(shapes / "classes.csv")}))
    settings = result["settings"]
    curve = {row["alpha"]: row for row in settings["interpolation"]}
    assert curve[1.0]["target"] == settings["best"]["value"]
    assert curve[0.0]["retention"] == settings["retention"]["start"]
    best = max(curve.values(), key=lambda row: (row["target"] + row["retention"], row["alpha"]))
    assert settings["alpha"] == best["alpha"]
    assert result["metrics"]["mean_recall"]["value"] == best["target"]
    kept, tuned = clipkit.load(tmp_path / "run").state_dict(), clipkit.load(tiny_clip).state_dict()
    if settings["alpha"] == 0.0:
        assert all(torch.equal(kept[name], tuned[name]) for name in kept)


def test_interpolation_and_patience_need_validation_pairs(recipe: Build) -> None:
    with pytest.raises(RecipeError, match=r"eval\.interpolate.*data\.validation"):
        recipe({"eval.interpolate": True, "data.validation": None, "eval.metric": "auto"})
    with pytest.raises(RecipeError, match=r"eval\.patience.*data\.validation"):
        recipe({"eval.patience": 2, "data.validation": None, "eval.metric": "auto"})


def test_patience_ends_a_run_without_better_evaluations(recipe: Build, tmp_path: Path) -> None:
    hopeless = {"optim.lr": 1e-12, "train.epochs": 9, "eval.patience": 2}
    result = clipkit.train(recipe(hopeless))
    assert result["settings"]["steps"] == 6  # the first evaluation is the best, two more are no better
    assert result["settings"]["best"]["step"] == 2
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "2 evaluations" in log
    again = clipkit.train(recipe(hopeless), resume=True)  # it is finished
    assert again == result
    longer = clipkit.train(recipe(hopeless | {"eval.patience": None}), resume=True)
    assert longer["settings"]["steps"] == 18


def test_trackers_get_the_rows_of_the_files(recipe: Build, tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    clipkit.train(recipe({"train.log_with": ["tensorboard"]}))
    events = accumulator.EventAccumulator(str(tmp_path / "run" / "tracking" / "clipkit"))
    events.Reload()
    losses = [(event.step, event.value) for event in events.Scalars("train/loss")]
    rows = read_lines(tmp_path / "run" / "metrics.jsonl")
    assert losses == [(row["step"], pytest.approx(row["loss"], rel=1e-6)) for row in rows]
    assert {"eval/mean_recall", "speed/pairs_per_second", "train/image_accuracy"} <= set(events.Tags()["scalars"])
    clipkit.train(recipe({"train.epochs": 1}), overwrite=True)
    assert not (tmp_path / "run" / "tracking").exists()


def test_unknown_or_missing_trackers_are_refused(recipe: Build) -> None:
    with pytest.raises(RecipeError, match="'tensorbord'.*did you mean tensorboard"):
        recipe({"train.log_with": ["tensorbord"]})
