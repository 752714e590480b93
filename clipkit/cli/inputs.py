"""Checks of the models and files that a user names, before libraries that take seconds to import."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from clipkit.recipe import Recipe


def check_models(*names: str) -> None:
    """Check that each name leads to a folder or a Hub repository; `open_clip:` names are left to `load`.

    Raises:
        ModelError: a name leads nowhere.
    """
    from clipkit.models.hub import check_repository

    for name in names:
        if not name.startswith("open_clip:"):
            check_repository(name)


def check_recipe_inputs(recipe: "Recipe") -> None:
    """Check that the files and the model of a recipe exist.

    Raises:
        DataError: a file is missing.
        ModelError: the model's name leads nowhere.
    """
    from clipkit.data.sources.read import check_exists

    data = recipe.data
    sources = [source.source for source in data.sources]
    for source in (*sources, data.validation, data.labelled, data.labelled_test):
        if isinstance(source, str):
            check_exists(source)
    if recipe.model.name is not None:
        check_models(recipe.model.name)
