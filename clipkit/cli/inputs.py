"""Checks of the models and files that a user names. They run before imports that take seconds."""

from pathlib import Path
from typing import TYPE_CHECKING

from clipkit.errors import DataError, ModelError
from clipkit.files import is_file
from clipkit.run_files import RunFiles

if TYPE_CHECKING:
    from clipkit.recipe import Recipe


def check_models(*names: str) -> None:
    """Check that each name is a folder or a Hub repository; `load` checks names that begin with `open_clip:`.

    Raises:
        ModelError: a folder or repository does not exist.
    """
    from clipkit.models.hub import check_repository

    for name in names:
        if not name.startswith("open_clip:"):
            check_repository(name)


def check_recipe_inputs(recipe: "Recipe") -> None:
    """Check that the files and the model of a recipe exist.

    Raises:
        DataError: a file is missing.
        ModelError: the model's folder or repository does not exist.
    """
    from clipkit.data.sources.read import check_exists

    data = recipe.data
    sources = [source.source for source in data.sources]
    for source in (*sources, data.validation, data.labelled, data.labelled_test, recipe.eval.retention):
        if isinstance(source, str):
            check_exists(source)
    if recipe.model.name is not None:
        check_models(recipe.model.name)
    image = recipe.model.image
    if image.name is not None and ":" not in image.name and not Path(image.name).is_dir():
        raise ModelError(
            f"model.image.name {image.name}: folder not found; give a folder, or a timm model as timm:NAME"
        )
    text = recipe.model.text
    for name in (text.name, text.tokenizer):
        if name is not None and not name.startswith(("hf:", "open_clip:")):
            check_models(name)
    check_models(*(loss.teacher for term in recipe.terms for loss in term.losses if loss.teacher is not None))


def check_run(folder: Path) -> None:
    """Check that a folder is a run.

    Raises:
        DataError: the folder is missing or is not a run.
    """
    if not RunFiles(folder).is_run:
        what = "is not a run folder (it has no recipe.yaml)" if folder.is_dir() else "folder not found"
        raise DataError(f"{folder}: {what}; give the output folder of a recipe")


def check_file(file: Path, advice: str) -> None:
    """Check that a file exists.

    Raises:
        DataError: the file is missing.
    """
    if not is_file(file):
        raise DataError(f"{file}: file not found; {advice}")
