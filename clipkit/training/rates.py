"""Kinds of weights (adapters, pretrained and new), each with a separate learning rate."""

from typing import Literal

from torch import nn

from clipkit.models.adapters.attach import is_of_adapter
from clipkit.recipe import Recipe

Kind = Literal["adapter", "pretrained", "new"]
KINDS: tuple[Kind, ...] = ("adapter", "pretrained", "new")
"""Kinds of weights; the first one that is trained is the main one."""


def is_pretrained(recipe: Recipe) -> bool:
    """Return whether `model.name` names a model with pretrained weights."""
    name = recipe.model.name or "open_clip:"
    if name.startswith("python:"):  # modules of a Python program, whose weights may come from anywhere
        return False
    return not name.startswith("open_clip:") or "/" in name or "?" in name


def trained_rates(recipe: Recipe, model: nn.Module) -> dict[Kind, float]:
    """Return the peak learning rate of each kind of weights that is trained.

    The order is adapter, pretrained, new.
    """
    kinds = {kind_of(name, recipe) for name, parameter in model.named_parameters() if parameter.requires_grad}
    return {kind: getattr(recipe.optim.rates, kind) for kind in KINDS if kind in kinds}


def kind_of(parameter: str, recipe: Recipe) -> Kind:
    """Return the kind of a parameter at the start of training, from its name: adapter, pretrained or new.

    Example:
        >>> recipe = Recipe.from_dict({"model": {"name": "my/clip"}, "data": {"train": "a.csv"}, "output": "run"})
        >>> kind_of("logit_scale", recipe), kind_of("view_heads.image.layers.0.weight", recipe)
        ('pretrained', 'new')
    """
    if is_of_adapter(parameter):
        return "adapter"
    part, _, rest = parameter.partition(".")
    if part == "view_heads":
        return "new"
    if recipe.model.name is not None and recipe.model.name.startswith("python:"):
        return "pretrained" if rest.startswith("trunk.") else "new"
    if recipe.model.name is not None:
        return "pretrained" if is_pretrained(recipe) else "new"
    loaded = {"image": recipe.model.image.pretrained, "text": recipe.model.text.pretrained}
    return "pretrained" if loaded.get(part, False) and rest.startswith("trunk.") else "new"
