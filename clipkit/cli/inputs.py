"""Checks of models and files on the command line, before slow imports such as torch."""

from pathlib import Path
from typing import TYPE_CHECKING

from clipkit.errors import DataError, ModelError
from clipkit.files import is_file
from clipkit.overwriting import check_no_run
from clipkit.run_files import RunFiles

if TYPE_CHECKING:
    from clipkit.recipe import Recipe

# Largest size in bytes of a table that is read before the command starts; reading takes a fraction of a second.
_SMALL = 8 << 20


def check_models(*names: str) -> None:
    """Check that the folder or the Hub repository of each model exists.

    Skips names that begin with `open_clip:`, because `load` checks them.

    Raises:
        ModelError: a folder or repository does not exist.
    """
    from clipkit.models.hub import check_repository

    for name in names:
        if not name.startswith("open_clip:"):
            check_repository(name)


def check_recipe_inputs(recipe: "Recipe", resume: bool, overwrite: bool) -> None:
    """Check the data, the models and the output folder of a recipe before training starts.

    Raises:
        DataError: a file is missing, or a small table is invalid or has fewer pairs than a batch.
        ModelError: the model's folder or repository does not exist.
        OutputError: the output folder contains a run, and neither `resume` nor `overwrite` is True.
    """
    from clipkit.data.sources.read import check_exists

    output, data = RunFiles(recipe.output), recipe.data
    if output.is_marked:
        check_no_run(output, resume, overwrite)
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
    _check_small_tables(recipe)


def _check_small_tables(recipe: "Recipe") -> None:
    """Read the small tables of a recipe, so that their errors are reported before training starts.

    Raises:
        DataError: a table is invalid, or the training data has fewer pairs than a batch.
    """
    from clipkit.data import EpochSampler, join, read_pairs, split

    data, columns = recipe.data, recipe.columns
    if isinstance(data.validation, str) and _is_small_table(data.validation):
        read_pairs(data.validation, **columns, broken=("images",))
    if not all(_is_small_table(source.source) for source in data.sources):
        return
    pairs = [read_pairs(source.source, **columns, broken=("images",)) for source in data.sources]
    train = join(pairs, [source.weight for source in data.sources])
    if isinstance(data.validation, float):
        train, _ = split(train, data.validation)
    EpochSampler(train, recipe.captions(labeled=train.classes is not None), recipe.train.batch_size, recipe.train.seed)


def _is_small_table(source: str) -> bool:
    from clipkit.data.sources.columns import split_options

    path = Path(split_options(source)[0]).expanduser()
    return path.suffix.lower() in (".csv", ".tsv", ".jsonl") and is_file(path) and path.stat().st_size <= _SMALL


def check_run(folder: Path) -> None:
    """Check that a folder is a run.

    Raises:
        DataError: the folder is missing or is not a run.
    """
    if not RunFiles(folder).is_run:
        what = "is not a run folder (it has no recipe.yaml)" if folder.is_dir() else "folder not found"
        raise DataError(f"{folder}: {what}; give the output folder of a run")


def check_file(file: Path, advice: str) -> None:
    """Check that a file exists.

    Raises:
        DataError: the file is missing.
    """
    if not is_file(file):
        raise DataError(f"{file}: file not found; {advice}")
