"""What a run needs before its first step: processes, the model as it is trained, the micro-batch."""

import hashlib
from collections.abc import Iterator
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from clipkit.data import Pairs
from clipkit.errors import ModelError, RecipeError
from clipkit.models import DualEncoder, Tower, compose, load
from clipkit.processes import Processes
from clipkit.recipe import ModelRecipe, Recipe
from clipkit.training.inputs import TowerInputs
from clipkit.training.micro_batch import find_micro_batch_size
from clipkit.training.objective import needs


def model_of(recipe: Recipe) -> DualEncoder:
    """The model of the recipe as it is trained.

    In evaluation mode, so without dropout and drop path and with BatchNorm's statistics as they came, but for what
    the recipe asks for: dropout, and the statistics of a tower that starts from scratch.

    Raises:
        ModelError: the model cannot be had, or lacks what the recipe asks of it.
    """
    own = recipe.model
    model = compose(own) if own.name is None else load(own.name, device="cpu")
    if needs(recipe.loss, "bias") and model.logit_bias is None:
        way_out = "set model.bias, as -10" if own.name is None else "take loss.name: infonce"
        raise ModelError(f"loss.name: sigmoid needs a logit bias, which {model.name} does not have; {way_out}")
    model.image.tune(own.image.tune)
    model.text.tune(own.text.tune)
    learns = any(p.requires_grad for tower in (model.image, model.text) for p in tower.parameters())
    if not learns and not needs(recipe.loss, "scale"):
        raise RecipeError(
            f"model.image.tune and model.text.tune are frozen, and the loss {' + '.join(recipe.loss.names)} heeds no "
            "scale: nothing would learn; tune a tower"
        )
    model.eval()
    for norm in _scratch_batch_norms(model, own):
        norm.train()
    if own.text.dropout > 0:
        _set_dropout(model.text, own.text.dropout)
    if recipe.train.gradient_checkpointing:
        for tower in (model.image, model.text):
            _checkpoint_gradients(tower)
    if recipe.train.compile:
        # In place, so that the names of the parameters stay.
        model.image.trunk.compile(dynamic=True)
        model.text.trunk.compile(dynamic=True)
    return model


def micro_batch_size_of(
    recipe: Recipe,
    model: DualEncoder,
    inputs: TowerInputs,
    pairs: Pairs,
    processes: Processes,
    accelerator: Accelerator,
    found: int | None,
) -> int:
    """The micro-batch of the recipe, or the largest that fits.

    Args:
        recipe: asks for a size or for what fits.
        model: the model.
        inputs: of its towers.
        pairs: the data.
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
        wrong = pairs.negatives if inputs.negatives and pairs.negatives is not None else []
        image, text = inputs.example(2, max([*pairs.captions, *wrong], key=len))
        encoded = [(model.image, image), (model.text, text), *([(model.text, text)] if wrong else [])]
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
