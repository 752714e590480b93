"""What a run needs before its first step: processes, the model as it is trained, the micro-batch."""

import hashlib
from collections.abc import Iterator
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from clipkit.errors import ModelError, RecipeError
from clipkit.models import DualEncoder, Tower, compose, load
from clipkit.models.absent import check_present, is_absent
from clipkit.models.memory import trunk_width
from clipkit.models.tuning import tune as apply_tune
from clipkit.models.view_heads import ViewHead
from clipkit.processes import Processes
from clipkit.recipe import ModelRecipe, Recipe
from clipkit.training.inputs import TowerInputs
from clipkit.training.micro_batch import find_micro_batch_size
from clipkit.training.objectives.loss_sum import needs


def model_of(recipe: Recipe) -> DualEncoder:
    """The model of the recipe as it is trained.

    In evaluation mode, so without dropout and drop path and with BatchNorm's statistics as they came, but for what
    the recipe asks for: dropout, and the statistics of a tower that starts from scratch.

    Raises:
        ModelError: the model cannot be had, or lacks what the recipe asks of it.
    """
    own = recipe.model
    model = compose(own) if own.name is None else load(own.name, device="cpu")
    captions = "captions" in recipe.objective
    if captions or recipe.image_views is not None or recipe.data.labelled is not None:
        check_present(model.name, image=model.image)
    if captions or recipe.text_views is not None:
        check_present(model.name, text=model.text)
    if captions and needs(recipe.loss, "bias") and model.logit_bias is None:
        way_out = "set model.bias, as -10" if own.name is None else "take loss.name: infonce"
        raise ModelError(f"loss.name: sigmoid needs a logit bias, which {model.name} does not have; {way_out}")
    for tower, tune in ((model.image, own.image.tune), (model.text, own.text.tune)):
        if not is_absent(tower):
            apply_tune(tower, tune)
    model.view_heads = _view_heads(recipe, model)
    if not _learns(recipe, model):
        raise RecipeError(
            "of what the objective sees nothing is tuned, and it heeds no scale: nothing would learn; set "
            "model.image.tune or model.text.tune"
        )
    model.eval()
    for norm in _scratch_batch_norms(model, own):
        norm.train()
    if own.text.dropout > 0:
        _set_dropout(model.text, own.text.dropout)
    if recipe.train.gradient_checkpointing:
        for tower in (model.image, model.text):
            if not is_absent(tower):
                _checkpoint_gradients(tower)
    if recipe.train.compile:
        for tower in (model.image, model.text):
            tower.trunk.compile(dynamic=True)  # in place, so that the names of the parameters stay
    return model


def _view_heads(recipe: Recipe, model: DualEncoder) -> nn.ModuleDict:
    """Those that the views ask for: kept ones that the model came with, where they are alike, else new ones."""
    heads = nn.ModuleDict()
    for side, views, tower in (
        ("image", recipe.image_views, model.image),
        ("text", recipe.text_views, model.text),
    ):
        if views is None or views.head is None:
            continue
        before = model.view_head(side)
        made = before.recipe if isinstance(before, ViewHead) else None
        alike = made is not None and made.model_copy(update={"keep": views.head.keep}) == views.head
        heads[side] = before if before is not None and alike else ViewHead(views.head, trunk_width(tower))
    return heads


def _learns(recipe: Recipe, model: DualEncoder) -> bool:
    """Whether anything that stays does."""
    captions = "captions" in recipe.objective
    parts: list[nn.Module] = [model.image, model.text] * captions
    for side, views, tower in (
        ("image", recipe.image_views, model.image),
        ("text", recipe.text_views, model.text),
    ):
        if views is not None:
            parts.append(tower if views.head is None else tower.trunk)
            if views.head is not None and views.head.keep:
                parts.append(model.view_heads[side])
    return any(p.requires_grad for part in parts for p in part.parameters()) or (
        captions and needs(recipe.loss, "scale")
    )


def micro_batch_size_of(
    recipe: Recipe,
    model: DualEncoder,
    inputs: TowerInputs,
    processes: Processes,
    accelerator: Accelerator,
    found: int | None,
) -> int:
    """The micro-batch of the recipe, or the largest that fits.

    Args:
        recipe: asks for a size or for what fits.
        model: the model.
        inputs: of what the objective sees.
        processes: who takes part.
        accelerator: mixed precision.
        found: what fitted before the run was interrupted: the same cut gives the same bits.

    Raises:
        RecipeError: the cut would change what BatchNorm learns.
    """
    batch_size, asked = recipe.train.batch_size, recipe.train.micro_batch_size
    rows = -(-batch_size // processes.count)
    if asked != "auto" or found is not None:
        size = min(found or int(asked), rows)
    else:
        examples = inputs.example(2)
        encoded = [(encoder.tower, examples[name]) for name, encoder in inputs.encoders.items()]
        size = find_micro_batch_size(model, encoded, rows, processes, accelerator)
    if learns_batch_norm(model, recipe.model) and (processes.count > 1 or size < rows):
        raise RecipeError(
            f"BatchNorm would learn its statistics from {processes.count} × {size} rows at a time instead of the "
            f"batch of {batch_size}; take one process and train.micro_batch_size: {batch_size}, a smaller batch, or a "
            "tower with LayerNorm (as timm:convnext_atto or a ViT)"
        )
    return size


def learns_batch_norm(model: DualEncoder, recipe: ModelRecipe) -> bool:
    """Whether BatchNorm's statistics are learned, which depend on what is run at once."""
    return any(True for _ in _scratch_batch_norms(model, recipe))


def fingerprint(model: nn.Module) -> str:
    """Hash of the parameters that do not learn, which no checkpoint holds."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            digest.update(name.encode())
            digest.update(parameter.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _scratch_batch_norms(model: DualEncoder, recipe: ModelRecipe) -> Iterator[nn.Module]:
    for tower, own in ((model.image, recipe.image), (model.text, recipe.text)):
        if recipe.name is None and not own.pretrained:
            yield from (m for m in tower.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm))


def _set_dropout(tower: Tower, rate: float) -> None:
    layers = [module for module in tower.trunk.modules() if isinstance(module, nn.Dropout)]
    if not layers:
        raise ModelError(f"model.text.dropout is {rate}, but this text tower has no dropout layers; set it to 0")
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
        layer.training = True  # they look at it; what is inside them stays in evaluation mode
