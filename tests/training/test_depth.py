"""Numbers of blocks, and layer-wise decay of the learning rate, against timm's implementation of BEiT's."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.optim import param_groups_layer_decay

import clipkit
from clipkit.models import compose
from clipkit.recipe import ModelRecipe, OptimRecipe, Recipe
from clipkit.training.depth import block_numbers, layer_factors
from clipkit.training.groups import group_lines, peaks_of
from clipkit.training.optimizer import build_optimizer
from clipkit.training.plan import make_plan
from clipkit.training.weights import Weights
from tests.models.families import FAMILIES, build
from tests.models.test_from_open_clip import architectures  # noqa: F401, a fixture
from tests.training.test_run import COMPOSED

Build = Callable[..., Recipe]


def layer_of_beit(name: str, count: int) -> int:
    """Return the layer of a parameter as `get_num_layer_for_vit` of BEiT and EVA-CLIP does."""
    if name in ("cls_token", "mask_token", "pos_embed", "reg_token") or name.startswith("patch_embed"):
        return 0
    return int(name.split(".")[1]) + 1 if name.startswith("blocks") else count + 1


@pytest.mark.parametrize("name", ["test_vit", "test_vit2"])
def test_factors_are_those_of_beit_and_timm(name: str) -> None:
    section = {"image": {"name": f"timm:{name}", "pretrained": False}, "embed_dim": 8}
    found = layer_factors(compose(ModelRecipe.model_validate(section)), 0.75)
    native: Any = timm.create_model(name)
    names = {id(parameter): name for name, parameter in native.named_parameters()}
    groups = param_groups_layer_decay(native, layer_decay=0.75)
    of_timm = {names[id(parameter)]: group["lr_scale"] for group in groups for parameter in group["params"]}
    trunk = {name[len("image.trunk.native.") :]: factor for name, factor in found.items() if ".trunk." in name}
    count = len(native.blocks)
    assert count > 2
    for part, factor in trunk.items():
        assert factor == pytest.approx(0.75 ** (count + 1 - layer_of_beit(part, count)), rel=1e-12)
        if not part.startswith("norm"):  # timm puts the final norm into the last block, BEiT above it
            assert factor == pytest.approx(of_timm[part], rel=1e-12), part
    assert {value for name, value in found.items() if not name.startswith("image.trunk.")} == {1.0}


QUICK = ("clip", "siglip", "tiny-clip", "tiny-sigmoid")
OPEN_CLIP = ("tiny-clip", "tiny-custom", "tiny-sigmoid", "tiny-coca", "tiny-resnet")


@pytest.mark.usefixtures("architectures")
@pytest.mark.parametrize(
    "family",
    [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in (*FAMILIES, *OPEN_CLIP)],
)
def test_every_family_decays_from_the_output_to_the_embeddings(family: str, tmp_path: Path) -> None:
    source = f"open_clip:{family}" if family in OPEN_CLIP else str(build(family, tmp_path / family))
    model = clipkit.load(source)
    found = layer_factors(model, 0.5)
    assert found.keys() == dict(model.named_parameters()).keys()
    for side, tower in model.sides.items():
        count, numbers = len(tower.blocks), block_numbers(tower)
        assert set(numbers.values()) == set(range(1, count + 1))
        for name, number in numbers.items():
            layer = round(count + 1 + math.log2(found[f"{side}.{name}"]))
            allowed = {number} | ({0} if number == 1 else set()) | ({count + 1} if number == count else set())
            assert layer in allowed, name
        heads = [name for name, _ in tower.named_parameters() if name not in numbers]
        assert all(found[f"{side}.{name}"] == 1.0 for name in heads)
    embeddings = [name for name in found if "token_embedding" in name or "word_embeddings" in name]
    assert embeddings
    assert {found[name] for name in embeddings} == {0.5 ** (len(model.text.blocks) + 1)}


def test_convolutional_tower_decays_by_its_blocks() -> None:
    section = {"image": {"name": "timm:test_convnext", "pretrained": False}, "embed_dim": 8}
    model = compose(ModelRecipe.model_validate(section))
    found, count = layer_factors(model, 0.5), len(model.image.blocks)
    for number, block in enumerate(model.image.blocks, 1):
        assert {found[f"image.trunk.{name}"] for name in block} == {0.5 ** (count + 1 - number)}


def test_groups_have_the_rate_of_their_kind_times_the_factor() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    factors = {name: 0.5 if name.startswith("0.") else 1.0 for name, _ in model.named_parameters()}
    optimizer = build_optimizer(
        Weights(model).trained, OptimRecipe(), lambda name: "new" if "2." in name else "pretrained", factors
    )
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert [rates[id(layer.weight)] for layer in model] == [0.5e-5, 1e-5, 1e-3]  # type: ignore[arg-type]
    assert optimizer.param_groups[0]["lr"] == 1e-5  # the main rate comes first


@pytest.mark.slow
def test_run_with_layer_decay_moves_lower_blocks_less(recipe: Build, tmp_path: Path, tiny_clip: Path) -> None:
    changes = {"optim.name": "sgd", "optim.lr": 0.1, "optim.clip": None, "train.epochs": 1, "data.augment": "none"}
    moved = {}
    for decay in (None, 0.5):
        clipkit.train(recipe({**changes, "optim.layer_decay": decay, "train.batch_size": 16}), overwrite=True)
        tuned, start = (clipkit.load(folder).state_dict() for folder in (tmp_path / "run", tiny_clip))
        moved[decay] = {name: (tuned[name] - start[name]).double() for name in tuned}
    # One step of SGD: the update is the gradient times the rate.
    for name, factor in layer_factors(clipkit.load(tiny_clip), 0.5).items():
        torch.testing.assert_close(moved[0.5][name], factor * moved[None][name], rtol=1e-3, atol=1e-7)
    assert "blocks 1 to 3 of 3" in (tmp_path / "run" / "log.txt").read_text()


def test_plan_has_a_rate_for_each_layer(recipe: Build) -> None:
    plan = make_plan(recipe({"optim.layer_decay": 0.5}))
    assert plan.schedule.peak == plan.peaks[0] == 1e-3
    assert sorted(set(plan.peaks)) == [1e-3 * 0.5**layer for layer in range(4, -1, -1)]
    lines = group_lines(plan.model, peaks_of(plan.weights.trained, plan.optimizer.param_groups, plan.peaks), {})
    assert [" ".join(line.split()) for line in lines] == [
        "trained parameters peak learning rate",
        "image blocks 1 to 3 of 3 32,480 6.25e-05 to 0.001",
        "image projection 768 0.001",
        "text blocks 1 to 3 of 3 108,608 6.25e-05 to 0.001",
        "text projection 768 0.001",
        "scale 1 0.001",
    ]


def test_two_kinds_with_decay_log_the_undecayed_rates(recipe: Build) -> None:
    plan = make_plan(recipe({"model": COMPOSED, "optim.layer_decay": 0.5, "optim.lr": {"new": 1e-3}}))
    assert plan.schedule.peak == 1e-3
    assert plan.other_rates == {}
