"""Construction of the model of a run, ready for training."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from clipkit.catalogue import Need
from clipkit.errors import ModelError, RecipeError
from clipkit.models import DualEncoder, ImageTower, TextTower, Tower, compose, load
from clipkit.models.absent import check_present, is_absent
from clipkit.models.adapters.low_rank import LowRank
from clipkit.models.compiled import compile_trunk
from clipkit.models.memory import trunk_width
from clipkit.models.one_tower import check_whole
from clipkit.models.tuning import tune as apply_tune
from clipkit.models.view_heads import ViewHead
from clipkit.recipe import CaptionLossRecipe, Recipe, Side
from clipkit.training.micro_batch import scratch_batch_norms

Towers = dict[Side, ImageTower | TextTower]


def model_of(recipe: Recipe, given: DualEncoder | None = None) -> DualEncoder:
    """Return the model of the recipe, ready to be trained.

    The model is in evaluation mode, i.e. without dropout and drop path, and with fixed BatchNorm statistics. Exceptions
    are layers for which the recipe sets dropout, and BatchNorm layers of towers that start from scratch.

    Args:
        given: a model to train instead of the model that the recipe names; it is changed in place.

    Raises:
        ModelError: the model is missing, lacks a part that the recipe needs, or has weights that are not finite.
        RecipeError: the objective uses no trainable parameter.
    """
    section = recipe.model
    if given is not None:
        check_whole(given)
        model = given
    elif section.name is None:
        model = compose(section.model_copy(update={"start": recipe.start}))
    else:
        model = load(section.name, device="cpu")
    towers: Towers = {"image": model.image, "text": model.text}
    needed = {side for term in recipe.terms for side in term.towers}
    if recipe.data.labelled is not None:
        needed.add("image")
    check_present(model.name, **{side: tower for side, tower in towers.items() if side in needed})
    if Need.BIAS in recipe.needs and model.logit_bias is None:
        advice = "set model.bias, e.g. -10" if section.name is None else "set loss.name: infonce"
        raise ModelError(f"loss.name sigmoid needs a logit bias, which {model.name} does not have; {advice}")
    present = {side: tower for side, tower in towers.items() if not is_absent(tower)}
    for side, tower in present.items():
        chosen = section.image if side == "image" else section.text
        apply_tune(tower, chosen.tune, chosen.lora)
    model.view_heads = _view_heads(recipe, model, towers)
    _fix_scale_and_bias(model, recipe.loss)
    if not _is_trainable(recipe, model, towers):
        raise RecipeError(
            "the objective uses no trainable parameter, so nothing would be trained; set model.image.tune or "
            "model.text.tune"
        )
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    if not are_finite(list(trained.values())):
        name = next(name for name, weight in trained.items() if not are_finite([weight]))
        raise ModelError(f"{model.name}: the weights {name} are not finite numbers; use an undamaged model")
    model.eval()
    for norm in scratch_batch_norms(model, section):
        norm.train()
    if section.text.dropout > 0:
        _set_dropout(model.text, section.text.dropout)
    for tower in present.values():
        for layer in tower.head.modules():
            layer.training = isinstance(layer, nn.Dropout) and layer.p > 0
    for part in model.modules():
        if isinstance(part, LowRank) and part.dropout > 0:
            part.train()
    for tower in present.values():
        if recipe.train.gradient_checkpointing:
            _checkpoint_gradients(tower)
        if recipe.train.compile:
            compile_trunk(tower)
    return model


def are_finite(weights: Sequence[Tensor]) -> bool:
    """Return whether all weights are finite.

    The result is also False if a weight exceeds 1e19, because its norm overflows. Training cannot recover from this.
    """
    with torch.no_grad():  # one reduction on the device, which takes a fiftieth of the time of AdamW's update
        return not weights or bool(torch.stack(torch._foreach_norm(list(weights))).isfinite().all())


def kept_heads(recipe: Recipe, model: DualEncoder) -> nn.ModuleDict:
    """Return the view heads that the recipe saves with the model."""
    return nn.ModuleDict({side: model.view_heads[side] for term in recipe.terms for side in term.kept_heads})


def _view_heads(recipe: Recipe, model: DualEncoder, towers: Towers) -> nn.ModuleDict:
    """Return the view heads of the recipe.

    A saved head of the model is used if it has the same settings; otherwise, a new head is created.
    """
    heads = nn.ModuleDict()
    for side, head in ((side, head) for term in recipe.terms for side, head in term.heads.items()):
        saved = model.view_head(side)
        fits = isinstance(saved, ViewHead) and saved.recipe.model_copy(update={"keep": head.keep}) == head
        heads[side] = saved if saved is not None and fits else ViewHead(head, trunk_width(towers[side]))
    return heads


def _is_trainable(recipe: Recipe, model: DualEncoder, towers: Towers) -> bool:
    """Return whether the objective trains a parameter that is saved with the model."""
    parts: list[nn.Module] = []
    for term in recipe.terms:
        parts += [towers[side].trunk if side in term.heads else towers[side] for side in term.towers]
        parts += [model.view_heads[side] for side in term.kept_heads]
    learns_scale = Need.SCALE in recipe.needs and model.logit_scale.requires_grad
    return learns_scale or any(p.requires_grad for part in parts for p in part.parameters())


def _fix_scale_and_bias(model: DualEncoder, loss: CaptionLossRecipe) -> None:
    """Freeze the scale and the bias unless the recipe trains them.

    If the recipe gives a number, it becomes the fixed value. Otherwise, the fixed value is that of the model.
    """
    scale, bias = loss.logit_scale, loss.logit_bias
    if scale != "train":
        model.logit_scale.requires_grad_(False)
        if isinstance(scale, float):
            model.logit_scale.data.fill_(math.log(scale))
    if bias != "train" and model.logit_bias is not None:
        model.logit_bias.requires_grad_(False)
        if isinstance(bias, float):
            model.logit_bias.data.fill_(bias)


def _set_dropout(tower: Tower, rate: float) -> None:
    layers = [module for module in tower.trunk.modules() if isinstance(module, nn.Dropout)]
    if not layers:
        raise ModelError(
            f"model.text.dropout is {rate}, but this text tower has no dropout layers; set model.text.dropout: 0"
        )
    for layer in layers:
        layer.p = rate
        layer.train()


def _checkpoint_gradients(tower: Tower) -> None:
    native: Any = tower.trunk.native
    if hasattr(native, "set_grad_checkpointing"):  # timm
        native.set_grad_checkpointing(True)
        return
    from transformers.modeling_layers import GradientCheckpointingLayer

    layers = [module for module in native.modules() if isinstance(module, GradientCheckpointingLayer)]
    native.gradient_checkpointing_enable()
    for layer in layers:
        layer.training = True  # these modules read `training`; the modules inside them stay in evaluation mode
