"""Saving of the best model of a run, and of its adapters."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from clipkit.models.adapters.attach import adapted_layers
from clipkit.models.adapters.files import save_adapters
from clipkit.models.publish.push import signed
from clipkit.recipe import Recipe
from clipkit.report.model_card import model_card
from clipkit.training.folder.run_folder import RunFolder
from clipkit.training.model import kept_heads
from clipkit.training.plan import Plan
from clipkit.training.rates import is_pretrained


def keep_model(plan: Plan, folder: RunFolder, results: Sequence[Mapping[str, Any]] = ()) -> None:
    """Save the current model of a run, in place of the model that was saved before.

    Adapters are merged into the saved model. They are also saved separately if their base model can be loaded again.

    Args:
        results: results to show in the model card.
    """
    folder.replace_model(lambda aside: save_kept_model(plan, aside, results))
    has_adapters = any(True for _ in adapted_layers(plan.model))
    if has_adapters and _is_loadable(plan.recipe):
        folder.replace_adapter(lambda aside: save_adapters(plan.model, aside, plan.recipe.model))


def _is_loadable(recipe: Recipe) -> bool:
    """Return whether the base model of the adapters can be loaded again, because all its weights are pretrained."""
    model = recipe.model
    if model.name is not None:
        return is_pretrained(recipe)
    return all(tower.pretrained for tower in (model.image, model.text) if tower.name is not None)


def save_kept_model(plan: Plan, folder: Path, results: Sequence[Mapping[str, Any]] = ()) -> None:
    """Save the model, its model card, and the view heads that the recipe keeps.

    Args:
        folder: folder for the model.
        results: results to show in the model card.
    """
    model, recipe = plan.model, plan.recipe
    heads = model.view_heads
    model.view_heads = kept_heads(recipe, model)
    try:
        model.save(folder)
        card = model_card(plan.layout, results, recipe.model_dump(mode="json"))
        (folder / "README.md").write_text(signed(card), encoding="utf-8")
    finally:
        model.view_heads = heads
