"""Entry point of training: the function `train`."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from clipkit.evaluation import Result
from clipkit.image_formats import pixel_limit
from clipkit.models import DualEncoder
from clipkit.models.publish.layout import pretrained_names
from clipkit.processes import Processes, accelerator_of
from clipkit.recipe import Recipe
from clipkit.training.callbacks import Callback
from clipkit.training.failures import failures_in_one_line
from clipkit.training.folder.run_folder import RunFolder, claimed
from clipkit.training.given import Given, GivenObjective
from clipkit.training.plan import make_plan
from clipkit.training.run import run
from clipkit.training.stop import StopRequest


def train(
    recipe: str | Path | Recipe | Mapping[str, Any],
    overrides: Mapping[str, Any] | None = None,
    *,
    train: object = None,
    validation: object = None,
    model: DualEncoder | None = None,
    loss: Callable[..., Tensor] | None = None,
    objective: GivenObjective | None = None,
    callbacks: Sequence[Callback] = (),
    identity: Literal["content"] | None = None,
    resume: bool = False,
    overwrite: bool = False,
) -> Result:
    """Train a model from a recipe and fill its run folder.

    SIGINT (Ctrl-C), SIGTERM and SIGUSR1 stop the run after it has written a checkpoint.

    Args:
        recipe: a YAML file, a Recipe, or a dict of its sections. A file or a dict may omit the keys that the other
            arguments replace.
        overrides: changes to the recipe, e.g. `{"optim.lr": 1e-5}`.
        train: training data instead of `data.train`: a dataset of `datasets` or torch, a dict of columns, a DataFrame,
            or a sequence of (image, caption) pairs, (image, captions) pairs or dicts. Images are paths, PIL images,
            arrays or bytes.
        validation: validation data instead of `data.validation`.
        model: model instead of `model.name`. It is trained in place, and has the best weights afterwards.
        loss: function that returns a scalar loss (docs/python.md). Its first arguments are image_features (G, D) and
            text_features (G, D). It gets scale, bias, image_ids, caption_ids and rows only if it has arguments with
            these names.
        objective: an Objective, or a function that converts the recipe's Objective to another one.
        callbacks: called after steps, evaluations and checkpoints, and at the end.
        identity: with "content", all images of `train` and `validation` are read once, so that a run on images in
            memory can be resumed. With None, such a run cannot be resumed. A run on files, tables of paths or
            datasets of `datasets` can be resumed in both cases.
        resume: continue from the newest undamaged checkpoint of the run in `output`. Without a checkpoint, the run
            starts from the beginning. A finished run is left unchanged. Everything that determines the weights after a
            step must be the same. Epochs, evaluation, logging, checkpoints, workers and the location of the data may
            change.
        overwrite: replace the run in `output`.

    Returns:
        The content of `results.json`: the metrics of the best weights on the validation pairs.

    Raises:
        UserError: the recipe, the data, the model or the output is invalid or unsupported; nothing was changed.
        TrainingError: the run cannot continue; the saved files are complete.
        Interrupted: a signal stopped the run. The exception is a KeyboardInterrupt.

    Example:
        >>> train("recipes/finetune_clip.yaml", {"data.train": "mine.csv"})    # doctest: +SKIP
    """
    given = Given(train, validation, model, loss, objective, callbacks, identity)
    recipe = given.recipe(recipe, overrides or {})
    with StopRequest() as stop, pixel_limit(recipe.data.max_pixels), failures_in_one_line():
        accelerator = accelerator_of(recipe.train.precision, recipe.train.timeout_minutes)
        folder = RunFolder(recipe.output)
        with claimed(folder, Processes(accelerator), resume, overwrite, _inputs(recipe)):
            return run(make_plan(recipe, accelerator, given), folder, stop, resume)


def _inputs(recipe: Recipe) -> list[str]:
    """Return the data sources and the pretrained models that a recipe names."""
    data = recipe.data
    sources = [source.source for source in data.sources]
    named = [*sources, data.validation, data.labelled, data.labelled_test, *pretrained_names(recipe.model)]
    return [name for name in named if isinstance(name, str)]
