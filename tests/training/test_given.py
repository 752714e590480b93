"""Runs on Python objects: data of one's own, losses, objectives and callbacks give what files and recipes give."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

import clipkit
from clipkit.data import read_pairs
from clipkit.errors import DataError, RecipeError, TrainingError
from clipkit.images import open_image
from clipkit.losses import infonce
from clipkit.recipe import Recipe
from clipkit.training.plan import make_plan
from tests.conftest import read_lines

Build = Callable[..., Recipe]
Rows = list[tuple[Path, list[str]]]


@pytest.fixture(scope="module")
def rows(shapes: Path) -> Rows:
    """The images of captions.csv with their captions."""
    captions: dict[Path, list[str]] = {}
    for line in (shapes / "captions.csv").read_text().splitlines()[1:]:
        name, _, caption = line.partition(",")
        captions.setdefault(shapes / name, []).append(caption)
    return list(captions.items())


class Torch(torch.utils.data.Dataset[Any]):
    """A map-style dataset that decodes an image on each access and counts them."""

    def __init__(self, rows: Rows, kind: Callable[[Path], Any] = lambda path: Image.open(path).convert("RGB")) -> None:
        self.rows, self.kind, self.read = rows, kind, 0

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, position: int) -> tuple[Any, list[str]]:
        self.read += 1
        path, captions = self.rows[position]
        return self.kind(path), captions


def pixels(path: Path) -> np.ndarray[Any, Any]:
    return np.asarray(Image.open(path).convert("RGB"))


FORMS: dict[str, Callable[[Rows], Any]] = {
    "torch, PIL images": Torch,
    "torch, paths": lambda rows: Torch(rows, str),
    "torch, tensors": lambda rows: Torch(rows, lambda path: torch.from_numpy(pixels(path).copy()).movedim(2, 0)),
    "torch, bytes": lambda rows: Torch(rows, Path.read_bytes),
    "a part of it": lambda rows: torch.utils.data.Subset(Torch([*rows, rows[0]]), range(16)),
    "pairs of arrays": lambda rows: [(pixels(path), captions) for path, captions in rows],
    "opened files": lambda rows: tuple((Image.open(path), captions) for path, captions in rows),
    "pairs, image repeated": lambda rows: [(pixels(path), text) for path, captions in rows for text in captions],
    "dicts": lambda rows: [{"image": path.read_bytes(), "caption": captions} for path, captions in rows],
    "DataFrame": lambda rows: pd.DataFrame({"image": [pixels(p) for p, _ in rows], "text": [c for _, c in rows]}),
    "datasets": lambda rows: datasets.Dataset.from_dict(
        {"image": [str(path) for path, _ in rows], "caption": [captions for _, captions in rows]}
    ).cast_column("image", datasets.Image()),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_every_form_has_the_images_and_captions_of_files(form: str, rows: Rows) -> None:
    pairs = read_pairs(FORMS[form](rows))
    assert [list(np.array(pairs.captions)[own]) for own in pairs.captions_of_image] == [texts for _, texts in rows]
    for image, (path, _) in zip(pairs.images, rows, strict=True):
        assert open_image(image).tobytes() == open_image(path).tobytes()
    assert (pairs.fingerprint == "unidentified") == (form not in ("torch, paths", "opened files", "datasets"))


def test_images_of_a_dataset_are_decoded_when_they_are_used(rows: Rows) -> None:
    data = Torch(rows)
    pairs = read_pairs(data)
    before = data.read
    open_image(pairs.images[3])
    assert data.read == before + 1


def test_opened_files_keep_no_pixels(rows: Rows) -> None:
    opened: Any = [(Image.open(path), captions[0]) for path, captions in rows]
    open_image(read_pairs(opened).images[0])
    assert opened[0][0].tile  # not loaded


def test_polars_tables_are_tables(rows: Rows) -> None:
    polars = pytest.importorskip("polars")
    frame = polars.DataFrame({"image": [str(path) for path, _ in rows], "caption": [texts[0] for _, texts in rows]})
    assert list(read_pairs(frame).captions) == [texts[0] for _, texts in rows]


class Endless(torch.utils.data.IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        yield "a.png", "a"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (Endless(), ["Endless", "no length"]),
        ([(torch.zeros(3, 4, 4), "a")], ["row 1", "floating-point"]),
        (range(3), ["a range"]),
        ([(np.zeros((4, 4)), "a")], ["row 1", "float64"]),
    ],
)
def test_other_objects_are_refused_with_the_value(data: Any, words: list[str]) -> None:
    with pytest.raises(DataError) as raised:
        open_image(read_pairs(data).images[0])
    assert all(word in str(raised.value) for word in words), raised.value


def test_a_run_on_objects_equals_one_on_files_and_can_be_resumed(
    rows: Rows, recipe: Build, tmp_path: Path, shapes: Path
) -> None:
    changes: dict[str, Any] = {"train.epochs": 1, "data.validation": None, "data.workers": 1}
    clipkit.train(recipe(changes))
    values = recipe(changes).model_dump(mode="json", exclude={"data"}) | {"output": str(tmp_path / "b")}
    values["data"] = {"workers": 1}  # data.train is not needed
    result = clipkit.train(values, train=Torch(rows), identity="content")
    by_files, by_objects = (read_lines(tmp_path / name / "metrics.jsonl") for name in ("run", "b"))
    assert by_objects == by_files
    assert result["settings"]["trained_on"] == {"images": 16, "captions": 32}
    assert "python: Torch of 16 rows" in (tmp_path / "b" / "recipe.yaml").read_text()
    more = values | {"train": values["train"] | {"epochs": 2}}
    with pytest.raises(RecipeError, match="identity='content'"):
        clipkit.train(more, train=Torch(rows), resume=True)
    changed = [(pixels(path) // 2, captions) for path, captions in rows]
    with pytest.raises(RecipeError, match="data.train changed since step 2"):
        clipkit.train(more, train=changed, identity="content", resume=True)
    clipkit.train(more, train=FORMS["pairs of arrays"](rows), identity="content", resume=True)
    assert len(read_lines(tmp_path / "b" / "metrics.jsonl")) == 4


def my_loss(image_features: Tensor, text_features: Tensor, scale: Tensor) -> Tensor:
    logits, pairs = scale * image_features @ text_features.T, torch.arange(len(image_features))
    return (F.cross_entropy(logits, pairs) + F.cross_entropy(logits.T, pairs)) / 2


class Watching(clipkit.Callback):
    """Adds a figure, stops after the third step, and remembers what it was called with."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def on_step(self, run: clipkit.Progress, row: dict[str, Any]) -> Mapping[str, float]:
        assert run.step == row["step"]
        if row["step"] == 3:
            run.stop("three are enough")
        return {"twice": 2 * row["loss"]}

    def on_evaluation(self, run: clipkit.Progress, figures: Mapping[str, float]) -> None:
        self.seen.append(("evaluation", run.step, "mean_recall" in figures))

    def on_checkpoint(self, run: clipkit.Progress, folder: Path) -> None:
        self.seen.append(("checkpoint", run.step, folder.is_dir()))

    def on_end(self, run: clipkit.Progress, result: Mapping[str, Any]) -> None:
        self.seen.append(("end", result["settings"]["steps"], (run.folder / "results.json").is_file()))


def test_a_loss_and_callbacks(recipe: Build, tmp_path: Path) -> None:
    changes = {"loss.duplicates": "negative", "train.micro_batch_size": 3}
    clipkit.train(recipe({**changes, "train.epochs": 1, "data.validation": None}))
    watching = Watching()
    result = clipkit.train(
        recipe({"output": str(tmp_path / "b"), "train.micro_batch_size": 3}), loss=my_loss, callbacks=[watching]
    )
    expected, found = (read_lines(tmp_path / name / "metrics.jsonl") for name in ("run", "b"))
    assert len(found) == 3
    assert found[0]["loss"] == pytest.approx(expected[0]["loss"], rel=1e-6)
    assert all(row["twice"] == 2 * row["loss"] for row in found)
    assert watching.seen == [
        *[(kind, step, True) for step in (2, 3) for kind in ("checkpoint", "evaluation")],
        ("end", 3, True),
    ]
    assert result["settings"]["python"] == {"loss": "my_loss", "callbacks": ["Watching"]}
    assert "three are enough" in (tmp_path / "b" / "log.txt").read_text()
    with pytest.raises(RecipeError, match="the loss given in Python changed"):
        clipkit.train(
            recipe({"output": str(tmp_path / "b")}), loss=lambda x, y, scale: my_loss(x, y, scale), resume=True
        )


def test_an_objective_replaces_that_of_the_recipe(recipe: Build) -> None:
    def doubled(default: clipkit.Objective) -> clipkit.Objective:
        return replace(default, value=lambda gathered, scalars, rows: 2 * default.value(gathered, scalars, rows))

    from clipkit.training.given import Given

    x = F.normalize(torch.randn(8, 24), dim=-1)
    gathered = {"image_features": x, "text_features": x.flip(0), "image_ids": torch.arange(8)}
    gathered["caption_ids"] = torch.arange(8)
    plans = [make_plan(recipe(), given=Given(objective=given)) for given in (None, doubled)]
    once, twice = (plan.objective.value(gathered, {"scale": torch.tensor(3.0)}, slice(0, 8)) for plan in plans)
    assert twice == 2 * once
    given = make_plan(recipe(), given=Given(objective=plans[1].objective)).objective
    assert given is plans[1].objective


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"loss": 3}, ["an int"]),
        ({"loss": lambda x: x}, ["fewer than two"]),
        ({"loss": lambda x, y, temperature: x}, ["temperature"]),
        ({"loss": torch.nn.Bilinear(2, 2, 1)}, ["Bilinear", "parameters"]),
        ({"loss": infonce, "objective": lambda one: one}, ["both"]),
        ({"callbacks": [Watching]}, ["the class Watching"]),
        ({"callbacks": Watching()}, ["a Watching", "[Watching()]"]),
        ({"model": "openai/clip"}, ["a str"]),
        ({"identity": "names"}, ["'names'"]),
        ({"train": 5}, ["an int"]),
    ],
)
def test_wrong_objects_are_refused_before_anything_is_written(
    arguments: Any, words: list[str], recipe: Build, tmp_path: Path
) -> None:
    with pytest.raises((RecipeError, DataError)) as raised:
        clipkit.train(recipe(), **arguments)
    assert all(word in str(raised.value) for word in words), raised.value
    assert not (tmp_path / "run" / "recipe.yaml").exists()


def test_a_loss_beside_the_loss_of_a_recipe_is_refused(recipe: Build) -> None:
    with pytest.raises(RecipeError, match="supcon"):
        clipkit.train(recipe({"loss.name": "supcon"}), loss=my_loss)


@pytest.mark.parametrize(("loss", "word"), [(lambda x, y: x, "shape"), (lambda x, y: 1.0, "a float")])
def test_a_loss_that_is_no_scalar_ends_the_run(loss: Any, word: str) -> None:
    from clipkit.training.objectives.python_loss import value_of_loss

    features = {"image_features": torch.ones(4, 2), "text_features": torch.ones(4, 2)}
    with pytest.raises(TrainingError, match=word):
        value_of_loss(loss)(features, {}, slice(0, 4))


@pytest.mark.parametrize(("figures", "word"), [({"loss": 1.0}, "loss"), ({"mine": float("nan")}, "nan")])
def test_figures_of_callbacks_are_new_and_finite(figures: dict[str, float], word: str) -> None:
    from clipkit.training.callbacks import Callbacks

    class Wrong(clipkit.Callback):
        def on_step(self, run: clipkit.Progress, row: dict[str, Any]) -> Mapping[str, float]:
            return figures

    progress = clipkit.Progress(None, Path("run"), 9, True)  # type: ignore[arg-type]
    with pytest.raises(TrainingError, match=word):
        Callbacks([Wrong()], progress).step({"step": 1, "loss": 2.0})
