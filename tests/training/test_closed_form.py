"""Closed-form start: exact over processes and on resume, and measured before the first step."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import clipkit
from clipkit.errors import DataError, RecipeError
from clipkit.metrics.canonical_correlation import PairSums, canonical_correlation
from clipkit.models.layers import Layered
from clipkit.models.preprocess import stack_inputs
from clipkit.processes import Processes
from clipkit.recipe import Recipe
from clipkit.training import layer_choice
from clipkit.training import step as step_module
from clipkit.training.closed_form import pair_sums, parts_of, report_worse_than_start
from clipkit.training.layer_choice import Choice, Comparison, HeldOut, bundles
from clipkit.training.plan import make_plan
from clipkit.training.state import State
from tests.conftest import read_lines
from tests.forked import together
from tests.training import several_runs

TEXT = {
    "name": "hf:bert", "pretrained": False, "tune": "frozen", "tokenizer": "open_clip:ViT-B-32", "context_length": 16,
    "config": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64},
}  # fmt: skip


def recipe_of(shapes: Path, output: Path, **changes: Any) -> Recipe:
    captions = str(shapes / "captions.csv")
    image = {"name": "timm:test_convnext", "pretrained": False, "tune": "frozen", "image_size": 64}
    return Recipe.from_dict(
        {
            "model": {"start": "cca", "embed_dim": 16, "image": image, "text": TEXT},
            "data": {"train": captions, "validation": captions, "captions": "one", "workers": 0},
            "optim": {"lr": 1e-3},
            "train": {"epochs": 3, "batch_size": 8, "precision": "fp32"},
            "checkpoint": {"every_steps": 2},
            "output": str(output),
        }
    ).override(changes)


def test_run_starts_in_closed_form_and_reports_it(shapes: Path, tmp_path: Path) -> None:
    layers = {"model.image.layers": ["output", "mean:2"], "model.text.layers": ["output", "max"]}
    recipe = recipe_of(shapes, tmp_path / "run", **layers, **{"model.dropout": 0.2})
    facts = clipkit.train(recipe)["settings"]["closed_form"]
    chosen = facts["chosen"]
    assert (chosen["image_layers"], chosen["text_layers"]) == (["output", "mean:2"], ["output", "max"])
    assert chosen in facts["compared"]
    assert {row["ridge"] for row in facts["compared"]} == {1, 3}
    log = (tmp_path / "run" / "log.txt").read_text()
    first_evaluation = read_lines(tmp_path / "run" / "evaluations.jsonl")[0]
    assert log.index("closed-form start") < log.index("epoch 1/3")
    assert f"{100 * facts['validation']['image_retrieval_recall@1']:.1f} %" in log
    assert facts["validation"].keys() <= first_evaluation.keys()
    report = (tmp_path / "run" / "report.html").read_text()
    assert all(title in report for title in ("Closed-form start and training", "Choice of the start", "output, mean:2"))
    # The saved model has trained projections of the coordinates that the definition gives.
    model = clipkit.load(tmp_path / "run")
    pairs = make_plan(recipe).data.train.pairs
    with torch.no_grad():
        inputs = stack_inputs([model.image.preprocess(Image.open(path)) for path in pairs.images])
        trunks = model.image.trunk, model.text.trunk
        image = torch.cat(trunks[0].parts(**inputs), dim=1)
        tokens = model.text.cut_padding(model.text.tokenize(list(pairs.captions)))
        text = torch.cat(trunks[1].parts(**tokens), dim=1)
    sums = PairSums.zeros(image.shape[1], text.shape[1])
    sums.add(image, text, torch.from_numpy(pairs.image_of_caption))
    blocks = {"x_blocks": trunks[0].widths, "y_blocks": trunks[1].widths}
    expected = canonical_correlation(sums, chosen["ridge"], chosen["ridge"], **blocks)
    weights = expected.correlations[:8]  # later ones are almost equal
    found = (image.double() - expected.x_mean) @ (expected.x_map[:, :8] * weights)
    torch.testing.assert_close(trunks[0].coordinates(image)[:, :8].abs(), found.abs().float(), rtol=0, atol=1e-3)


def test_projections_start_with_the_chosen_coordinates(shapes: Path, tmp_path: Path, monkeypatch: Any) -> None:
    seen: dict[str, Any] = {}

    def stop(self: Any, batch: Any, step: int) -> Any:
        seen.update(model=self.model, inputs=batch.inputs)
        raise SystemExit

    monkeypatch.setattr(step_module.Step, "__call__", stop)
    with pytest.raises(SystemExit):
        clipkit.train(recipe_of(shapes, tmp_path / "run", **{"model.projection": "residual", "model.dropout": 0.5}))
    model, coordinates = seen["model"], seen["inputs"]["image_features"]["trunk_features"]
    assert isinstance(model.image.trunk, Layered)
    width = int(model.image.head.linear.weight.sum())
    expected = F.pad(coordinates[:, :width], (0, 16 - width))
    assert model.image.head.training is False
    torch.testing.assert_close(model.image.head(coordinates), expected)


@pytest.mark.parametrize("embed_dim", [16, None])
def test_resumed_run_has_the_same_bits(shapes: Path, tmp_path: Path, monkeypatch: Any, embed_dim: int | None) -> None:
    changes = {"model.embed_dim": embed_dim, "train.ema": None if embed_dim else 0.9}
    whole = recipe_of(shapes, tmp_path / "whole", **changes)
    clipkit.train(whole)
    halted = recipe_of(shapes, tmp_path / "halted", **changes)
    with monkeypatch.context() as patched:
        step = step_module.Step.__call__

        def until_step_5(self: Any, batch: Any, number: int) -> Any:
            if number == 4:
                raise SystemExit
            return step(self, batch, number)

        patched.setattr(step_module.Step, "__call__", until_step_5)
        with pytest.raises(SystemExit):
            clipkit.train(halted)
    clipkit.train(halted, resume=True)
    one, other = (read_lines(tmp_path / name / "metrics.jsonl") for name in ("whole", "halted"))
    assert len(one) == 6
    assert one == other
    settings = [json.loads((tmp_path / name / "results.json").read_text())["settings"] for name in ("whole", "halted")]
    assert settings[0]["closed_form"] == settings[1]["closed_form"]


@pytest.mark.parametrize("projection", ["linear", "residual"])
def test_features_have_only_the_chosen_coordinates(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, projection: str
) -> None:
    """A dimension that is zero in both towers gets no gradient, so the model does not have it."""
    monkeypatch.setattr(layer_choice, "_WIDTHS", (4, 6))
    changes = {"model.embed_dim": None, "model.projection": projection, "train.ema": 0.5}
    result = clipkit.train(recipe_of(shapes, tmp_path / "run", **changes))
    width = result["settings"]["closed_form"]["chosen"]["width"]
    assert width in (4, 6)
    model = clipkit.load(tmp_path / "run")
    pairs = make_plan(recipe_of(shapes, tmp_path / "run")).data.train.pairs
    features = [model.encode_image(pairs.images), model.encode_text(pairs.captions)]
    assert [side.shape[1] for side in features] == [width, width]
    assert all((side.abs().amax(dim=0) > 1e-4).all() for side in features)
    longer = recipe_of(shapes, tmp_path / "run", **changes, **{"train.epochs": 4})
    clipkit.train(longer, resume=True)
    assert clipkit.load(tmp_path / "run").encode_text(["a red circle"]).shape == (1, width)


@pytest.mark.slow
def test_two_processes_start_alike(shapes: Path, tmp_path: Path) -> None:
    recipes = [recipe_of(shapes, tmp_path / name) for name in ("one", "two")]
    clipkit.train(recipes[0])
    (tmp_path / "two.yaml").write_text(recipes[1].to_yaml())
    together(2, several_runs.__file__, str(tmp_path / "two.yaml"))
    one, two = (read_lines(tmp_path / name / "metrics.jsonl") for name in ("one", "two"))
    for row, other in zip(one, two, strict=True):
        assert row["loss"] == pytest.approx(other["loss"], abs=1e-4)


class Half(Processes):
    """One of two processes, whose sums are added by the test."""

    def __init__(self, index: int) -> None:
        super().__init__(None)
        self.count, self.index = 2, index

    def sum(self, value: torch.Tensor) -> torch.Tensor:
        return value


def test_sums_of_two_processes_are_those_of_one() -> None:
    image, text = torch.randn(1100, 6), torch.randn(2500, 5)
    of_caption = torch.randint(0, 1100, (2500,))
    rows = torch.randperm(1100)[:1050].sort().values
    whole = pair_sums(image, text, of_caption, rows, Processes.alone())
    halves = [pair_sums(image, text, of_caption, rows, Half(index)) for index in range(2)]
    counted = torch.isin(of_caption, rows)
    dense = PairSums.zeros(6, 5)
    dense.add(image, text[counted], of_caption[counted])
    for one, other, expected in zip(whole.tensors, halves[0].plus(halves[1]).tensors, dense.tensors, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-9)
        torch.testing.assert_close(one, expected, rtol=0, atol=1e-9)


def test_parts_are_disjoint_and_leave_out_unreadable_images() -> None:
    fitted, held_out = parts_of(60, {3: "broken", 7: "broken"}, seed=0, name="a.csv")
    assert sorted([*fitted.tolist(), *held_out.tolist()]) == [row for row in range(60) if row not in (3, 7)]
    assert len(held_out) == 10
    with pytest.raises(DataError, match=r"a\.csv.*7.*8"):
        parts_of(7, {}, seed=0, name="a.csv")


def test_model_that_is_worse_than_its_start_is_reported() -> None:
    lines: list[str] = []
    for value in (0.35, 0.42, None):
        report_worse_than_start({"validation": {"mean_recall": 0.4}}, "mean_recall", value, lines.append)
    report_worse_than_start(None, "mean_recall", 0.1, lines.append)
    (line,) = lines
    assert all(part in line for part in ("mean_recall", "0.4000", "0.3500", "train.epochs"))


def test_bundles_go_from_the_output_to_all_layers() -> None:
    layers = ["output", "max", "cls", "mean:3"]
    assert bundles(layers) == [("output",), ("output", "mean:3"), ("output", "cls", "mean:3"), tuple(layers)]
    assert bundles(["max"]) == [("max",)]


def test_more_layers_and_a_larger_ridge_are_chosen_if_they_are_as_good_within_a_standard_error(
    monkeypatch: Any,
) -> None:
    trunk: Any = SimpleNamespace(layers=("output", "mean:1", "max"), widths=(2, 2, 2))
    held_out = HeldOut(torch.ones(100, 6), torch.ones(100, 6), torch.arange(100))  # a standard error of at most 0.05
    recall = {1: 0.50, 2: 0.47, 3: 0.40}

    def compare(self: Comparison, image: Any, text: Any, ridge: float, fixed: str = "image") -> Choice:
        return Choice(tuple(image), tuple(text), ridge, 2, {"mean_recall": recall[len(image)] - ridge / 100})

    monkeypatch.setattr(Comparison, "compare", compare)
    comparison = Comparison(PairSums.zeros(6, 6), held_out, trunk, trunk, 2)
    chosen = comparison.best(choose_image=True, choose_text=True)
    assert (chosen.image_layers, chosen.text_layers) == (("output", "mean:1"), trunk.layers)
    assert chosen.ridge == 3


@pytest.mark.parametrize("fixed", ["image", "text"])
def test_each_comparison_is_a_closed_form_start_of_its_layers(fixed: Any, monkeypatch: Any) -> None:
    layers, widths = ("output", "mean:1", "max"), (5, 3, 4)
    trunk: Any = SimpleNamespace(layers=layers, widths=widths)
    image, of_caption = torch.randn(60, 12), torch.arange(60).repeat(2)
    text = image[of_caption] @ torch.randn(12, 12) + torch.randn(120, 12)
    sums = PairSums.zeros(12, 12)
    sums.add(image, text, of_caption)
    seen: list[Any] = []
    monkeypatch.setattr(layer_choice, "retrieval_ranks", lambda *features: seen.append(features) or torch.ones(1))
    monkeypatch.setattr(layer_choice, "recalls", lambda ranks: {})
    monkeypatch.setattr(Comparison, "_first_best", lambda self, choices: choices[0])
    comparison = Comparison(sums, HeldOut(image, text, of_caption), trunk, trunk, 6)
    for chosen in [(("output", "max"), layers), (layers, layers), (layers, ("mean:1",)), (("max",), ("output",))]:
        comparison.compare(*chosen, 2.0, fixed)
        columns = comparison.columns(*chosen)
        blocks = dict(zip(("x_blocks", "y_blocks"), comparison.widths(*chosen), strict=True))
        expected = canonical_correlation(sums.of(*columns), 2.0, 2.0, 6, **blocks)
        weights = expected.correlations
        for found, rows, mean, matrix in (
            (seen[-1][0], image[:, columns[0]], expected.x_mean, expected.x_map),
            (seen[-1][1], text[:, columns[1]], expected.y_mean, expected.y_map),
        ):
            coordinates = F.normalize((rows.double() - mean) @ matrix * weights, dim=1).float()
            torch.testing.assert_close(found @ found.T, coordinates @ coordinates.T, rtol=0, atol=1e-4)


@pytest.mark.slow
def test_run_from_before_the_closed_form_is_resumed_only_with_a_random_start(
    shapes: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    random = recipe_of(shapes, tmp_path / "run", **{"model.start": "random"})
    to_save = State.to_save

    def without_start(self: State) -> dict[str, Any]:
        saved = to_save(self)
        del saved["recipe"]["model"]["start"], saved["closed_form"]
        return saved

    with monkeypatch.context() as patched:
        patched.setattr(State, "to_save", without_start)
        clipkit.train(random)
    longer = random.override({"train.epochs": 4})
    with pytest.raises(RecipeError, match=r"model\.start: random → cca"):
        clipkit.train(longer.override({"model.start": "cca"}), resume=True)
    assert clipkit.train(longer, resume=True)["settings"]["steps"] == 8
