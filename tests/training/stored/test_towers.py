"""Runs with stored inputs: same losses and weights as with whole towers, reuse, views, budget and damage."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import clipkit
from clipkit.embedding.cached import stored_inputs, stores_folder
from clipkit.errors import RecipeError
from clipkit.recipe import Recipe
from clipkit.training.plan import make_plan
from tests.conftest import COLOURS, SHAPES, draw, losses_of, read_lines, write_csv

pytestmark = pytest.mark.usefixtures("own_cache")

Build = Callable[..., Any]

LAST = {
    "model.image.tune": "last:1", "model.text.tune": "last:1", "data.augment": "none", "data.captions": "all",
    "optim.name": "sgd", "optim.lr": 0.1, "optim.clip": None,
}  # fmt: skip


def run(recipe: Recipe) -> tuple[list[float], dict[str, torch.Tensor], str]:
    clipkit.train(recipe, overwrite=True)
    folder = Path(recipe.output)
    return losses_of(recipe), load_file(folder / "model" / "model.safetensors"), (folder / "log.txt").read_text()


@pytest.mark.slow
def test_losses_weights_and_figures_are_those_of_whole_towers(recipe: Build, tmp_path: Path) -> None:
    whole, weights, log = run(recipe({**LAST, "data.store": None, "output": str(tmp_path / "whole")}))
    assert "activations" not in log
    for changes in ({}, {"train.micro_batch_size": 3}):
        losses, again, log = run(recipe({**LAST, **changes}))
        assert losses == pytest.approx(whole, abs=1e-5)
        assert all(torch.allclose(again[name], weight, rtol=0, atol=1e-5) for name, weight in weights.items())
        assert "activations before native.encoder.layers.2 of the image tower for 16 images" in log
        assert "32 captions" in log
        evaluations = [json.loads((tmp_path / name / "results.json").read_text()) for name in ("run", "whole")]
        assert evaluations[0]["metrics"] == evaluations[1]["metrics"]
    assert "computed once" not in log  # the second run reused what the first had stored


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_bits(recipe: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changes = {**LAST, "data.augment": "crop", "data.views": 3, "checkpoint.every_steps": 2}
    _, whole, _ = run(recipe({**changes, "output": str(tmp_path / "whole")}))
    from clipkit.training import loop

    update, steps = loop.update, 0

    def killed(*arguments: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps == 6:
            raise KeyboardInterrupt
        return update(*arguments)

    monkeypatch.setattr(loop, "update", killed)
    with pytest.raises(KeyboardInterrupt):
        clipkit.train(recipe(changes))
    monkeypatch.setattr(loop, "update", update)
    shutil.rmtree(stores_folder())  # computed again
    clipkit.train(recipe(changes), resume=True)
    resumed = load_file(tmp_path / "run" / "model" / "model.safetensors")
    assert all(torch.equal(resumed[name], weight) for name, weight in whole.items())


def test_views_are_drawn_from_those_of_the_first_epochs(recipe: Build) -> None:
    from clipkit.training.folder.run_log import RunLog
    from clipkit.training.opening import tower_inputs

    changes = {**LAST, "data.augment": "crop", "data.crop_scale": [0.2, 0.4], "data.views": 2, "train.epochs": 6}
    plan = make_plan(recipe(changes))
    inputs = tower_inputs(plan, RunLog(False))
    inputs.store_parts()
    model, augment = plan.model, plan.objective.encoded["image_features"].make
    cut = model.image.cut
    assert cut is not None
    seen: dict[int, set[int]] = {}
    slices = list(plan.sampler.slices(0, plan.steps, slice(0, 8)))
    for samples, batch in zip(slices, inputs.batches(slices, 0), strict=True):
        for row, sample in enumerate(samples):
            image = clipkit.images.open_image(plan.data.train.pairs.images[sample.image])
            views = [augment(image, view, sample.image) for view in range(2)]
            pixels = torch.stack([model.image.ready(view)["pixel_values"] for view in views])
            with torch.no_grad():
                expected = cut.below({"pixel_values": pixels})["activations"]
            got = batch.inputs["image_features"]["activations"][row]
            same = [bool(torch.allclose(got, one, atol=1e-5)) for one in expected]
            assert sum(same) == 1
            seen.setdefault(sample.image, set()).add(same.index(True))
    assert all(views == {0, 1} for views in list(seen.values())[:8])


@pytest.mark.slow
def test_outputs_of_frozen_trunks_are_reused(recipe: Build, tmp_path: Path) -> None:
    frozen = {"model.image.tune": "head", "model.text.tune": "frozen", "data.augment": "none"}
    losses = [run(recipe({**frozen, **changes}))[0] for changes in ({"data.store": None}, {}, {})]
    assert losses[0] == losses[1] == losses[2]
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "outputs of the text tower" in log
    assert "computed once" not in log


@pytest.mark.slow
def test_what_does_not_fit_is_computed_in_each_step(recipe: Build) -> None:
    log = run(recipe({**LAST, "data.store.disk": "0.01MB"}))[2]
    assert "17.4 kB, float16" in log  # auto falls back to half precision, which does not fit either
    assert "data.store.disk" in log
    assert not stored_inputs()
    log = run(recipe({**LAST, "data.store.disk": "0.05MB"}))[2]
    assert "34.8 kB, float32" in log
    with pytest.raises(RecipeError, match=r"data\.views is 3: .*data\.store\.disk"):
        run(recipe({**LAST, "data.augment": "crop", "data.views": 3, "data.store.disk": "0.01MB"}))


@pytest.mark.slow
def test_damaged_files_are_computed_again(recipe: Build, caplog: pytest.LogCaptureFixture) -> None:
    before = run(recipe(LAST))[0]
    for stored in stored_inputs():
        file = next(stored.folder.glob("*.activations.bin"))
        content = bytearray(file.read_bytes())
        content[100] ^= 255
        file.write_bytes(content)
    after, _, log = run(recipe(LAST))
    assert after == before
    assert log.count("stored inputs are damaged") == len(stored_inputs())


@pytest.mark.slow
def test_a_changed_image_or_other_weights_are_not_mixed_up(recipe: Build, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    rows = []
    for number, (color, shape) in enumerate((color, shape) for color in COLOURS for shape in SHAPES):
        draw(color, shape).save(folder / f"{number}.png")
        rows.append([f"{number}.png", f"a {color} {shape}"])
    data = {"data.train": str(write_csv(folder / "data.csv", ["image", "caption"], rows)), "data.validation": None}
    run(recipe({**LAST, **data}))
    count = len(stored_inputs())
    draw("red", "cross", shift=9).save(folder / "0.png")
    run(recipe({**LAST, **data}))
    assert len(stored_inputs()) == count + 1  # the images, but not the captions
    run(recipe({**LAST, **data, "model.image.tune": "last:2"}))
    assert len(stored_inputs()) == count + 2


@pytest.mark.slow
def test_an_unreadable_image_is_replaced(recipe: Build, tmp_path: Path, shapes: Path) -> None:
    folder = tmp_path / "images"
    shutil.copytree(shapes, folder)
    (folder / "images" / "03.png").write_bytes(b"not an image")
    data = {"data.train": str(folder / "captions.csv"), "data.validation": None, "data.max_bad": 1}
    for changes in ({}, {}, {"data.augment": "crop", "data.views": 2}):
        clipkit.train(recipe({**LAST, **data, **changes}), overwrite=True)
        bad = read_lines(tmp_path / "run" / "bad_samples.jsonl")
        assert [row["file"].endswith("03.png") for row in bad] == [True]


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"model.image.tune": "full", "data.views": 2}, "model.image.tune"),
        ({"data.views": 2, "data.augment": "none"}, "augment"),
        ({"data.views": 2, "data.store": None}, "store"),
        ({"data.store.disk": "20"}, "20"),
    ],
)
def test_impossible_settings_are_refused(recipe: Build, changes: dict[str, Any], key: str) -> None:
    from clipkit.training.folder.run_log import RunLog
    from clipkit.training.opening import tower_inputs

    with pytest.raises(RecipeError, match=key):
        tower_inputs(make_plan(recipe({**LAST, "data.augment": "crop", **changes})), RunLog(False)).store_parts()
