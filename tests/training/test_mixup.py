"""`data.mixup`: stored features of each pair are mixed with those of another pair."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import clipkit
from clipkit.errors import RecipeError
from clipkit.models.towers import TRUNK_FEATURES
from clipkit.recipe import Recipe
from clipkit.training.folder.run_log import RunLog
from clipkit.training.mixup import Mixup, mixed
from clipkit.training.opening import tower_inputs
from clipkit.training.plan import make_plan
from tests.conftest import losses_of
from tests.forked import together
from tests.training import several_runs
from tests.training.folder.test_resume import interrupted

pytestmark = pytest.mark.usefixtures("own_cache")

Build = Callable[..., Recipe]
MIXED: dict[str, Any] = {
    "data.mixup": 0.7, "model.image.tune": "head", "model.text.tune": "head", "data.validation": None,
    "data.store": None,
}  # fmt: skip


def test_draws_depend_on_the_step_and_the_position_alone() -> None:
    mixup = Mixup(1.0, np.arange(3, 900), seed=4, batch_size=4000)
    shares, partners = mixup.draw(7, slice(0, 4000))
    parts = [mixup.draw(7, rows) for rows in (slice(0, 1300), slice(1300, 4000))]
    assert torch.equal(shares, torch.cat([part for part, _ in parts]))
    assert torch.equal(partners, torch.cat([part for _, part in parts]))
    assert 0.5 <= shares.min() < 0.51 < 0.99 < shares.max() <= 1
    assert shares.mean() == pytest.approx(0.75, abs=0.01)  # of max(λ, 1 − λ) with a uniform λ
    assert (partners.min(), partners.max()) == (3, 899)
    for other in (mixup.draw(8, slice(0, 4000)), Mixup(1.0, mixup.captions, 5, 4000).draw(7, slice(0, 4000))):
        assert not torch.equal(other[0], shares)
        assert not torch.equal(other[1], partners)


def test_features_are_mixed_as_a_loop_does(recipe: Build) -> None:
    plan = make_plan(recipe({**MIXED, "data.captions": "all"}))
    inputs = tower_inputs(plan, RunLog(False))
    rows, of_caption = slice(0, 8), plan.data.train.pairs.image_of_caption
    mixup = Mixup(0.7, np.arange(len(of_caption)), plan.recipe.train.seed, 8)

    def batches() -> Any:
        return inputs.batches(plan.sampler.slices(2, 5, rows), 0)

    plain = [(batch.image_ids, batch.caption_ids, batch.caption_rows) for batch in batches()]
    count = 0
    for step, batch in enumerate(mixed(batches(), plan, inputs, 2), 2):
        shares, partners = mixup.draw(step, rows)
        ids = (batch.image_ids, batch.caption_ids, batch.caption_rows)
        assert all(torch.equal(one, other) for one, other in zip(ids, plain[count], strict=True))
        for row in range(8):
            share, partner = float(shares[row]), int(partners[row])
            own = {"image_features": int(batch.image_ids[row]), "text_features": int(batch.caption_rows[row])}
            other = {"image_features": int(of_caption[partner]), "text_features": partner}
            for name, store in inputs.stores.items():
                expected = share * store[own[name]].double() + (1 - share) * store[other[name]].double()
                found = batch.inputs[name][TRUNK_FEATURES][row].double()
                torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
        count += 1
    assert count == 3


def test_unreadable_images_are_no_partners(recipe: Build) -> None:
    plan = make_plan(recipe(MIXED))
    inputs = tower_inputs(plan, RunLog(False))
    inputs.bad = dict.fromkeys(range(0, 16, 2), "unreadable")
    inputs.stores["image_features"][::2] = float("nan")
    slices = plan.sampler.slices(0, 6, slice(0, 8))
    for batch in mixed(inputs.batches(slices, 0), plan, inputs, 0):
        of_nan = batch.inputs["image_features"][TRUNK_FEATURES].isnan().any(dim=1)
        assert torch.equal(of_nan, batch.image_ids % 2 == 0)


def test_micro_batches_and_resume_give_the_same_run(recipe: Build, tmp_path: Path) -> None:
    whole = recipe({**MIXED, "checkpoint.every_steps": 1})
    clipkit.train(whole)
    expected = losses_of(whole)
    small = recipe({**MIXED, "train.micro_batch_size": 3, "output": str(tmp_path / "small")})
    clipkit.train(small)
    assert losses_of(small) == pytest.approx(expected, abs=1e-5)
    halted = recipe({**MIXED, "checkpoint.every_steps": 1, "output": str(tmp_path / "halted")})
    interrupted(halted, 3)
    clipkit.train(halted, resume=True)
    assert losses_of(halted) == expected


@pytest.mark.slow
def test_two_processes_give_the_losses_of_one(recipe: Build, tmp_path: Path) -> None:
    one = recipe({**MIXED, "optim.name": "sgd", "train.batch_size": 7})
    clipkit.train(one)
    two = recipe({**MIXED, "optim.name": "sgd", "train.batch_size": 7, "output": str(tmp_path / "two")})
    (tmp_path / "two.yaml").write_text(two.to_yaml())
    together(2, several_runs.__file__, str(tmp_path / "two.yaml"))
    assert losses_of(two) == pytest.approx(losses_of(one), abs=1e-5)


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"model.text.tune": "last:2"}, ("model.text.tune: last:2", "model.text.tune: frozen")),
        ({"data.augment": "crop"}, ("augment",)),
        ({"data.views": 2, "data.store": {}}, ("data.views",)),
        ({"data.samples": 100}, ("data.samples",)),
        ({"objective": {"captions": 1, "views": 1}, "views": {"image": {}}}, ("objective: captions",)),
        ({"loss.name": [{"name": "infonce"}, {"name": "distillation", "teacher": "a/b"}]}, ("teacher",)),
        ({"data.mixup": 0}, ("0",)),
    ],
)
def test_recipes_without_stored_outputs_are_refused(recipe: Build, changes: Any, parts: tuple[str, ...]) -> None:
    with pytest.raises(RecipeError) as caught:
        recipe({**MIXED, **changes})
    assert all(part in str(caught.value) for part in ("data.mixup", *parts)), caught.value


def test_a_projection_inside_the_trunk_is_refused(recipe: Build) -> None:
    plan = make_plan(recipe(MIXED))
    next(plan.model.text.trunk.parameters()).requires_grad_(True)
    with pytest.raises(RecipeError, match=r"data\.mixup.*text_features"):
        tower_inputs(plan, RunLog(False))
