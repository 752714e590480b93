"""Saving of the best model of a run, in the layout from which it was loaded."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from clipkit.models.publish.push import signed
from clipkit.report.model_card import model_card
from clipkit.training.model import kept_heads
from clipkit.training.plan import Plan


def save_kept_model(plan: Plan, folder: Path, results: Sequence[Mapping[str, Any]] = ()) -> None:
    """Save the model with its card, but without the view heads that the recipe does not keep.

    Args:
        plan: the plan of the run.
        folder: folder for the model.
        results: result files that the card shows.
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
