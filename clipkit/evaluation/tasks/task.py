"""Common interface of all evaluation tasks.

Each task is a module of this folder with an object `TASK`, and a row in `clipkit/tasks.py`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import numpy as np
from numpy.typing import NDArray

from clipkit.data import Classes, LabeledImages, Templates
from clipkit.embedding.bars import Bars
from clipkit.embedding.features import Cache
from clipkit.errors import DataError
from clipkit.evaluation.examples import Kind
from clipkit.evaluation.figures import Columns, Means
from clipkit.evaluation.result_object import Result
from clipkit.images import Stored
from clipkit.models import DualEncoder
from clipkit.processes import Processes
from clipkit.tasks import TASKS


@dataclass(frozen=True)
class TaskData:
    """Data for one evaluation. Classes, templates and training data are used only by some tasks."""

    data: Any
    """Images with captions or labels for the evaluation."""
    classes: Classes | None = None
    """Class names; None: the class names of the data."""
    templates: Templates | None = None
    """Prompts; None: the prompts of the data."""
    train: LabeledImages | None = None
    """Labeled training images."""

    @property
    def images(self) -> list[Sequence[Path | Stored]]:
        """Images of the evaluation data, and images of the training data if there is any."""
        return [part.images for part in (self.data, self.train) if part is not None]


class Options(TypedDict):
    """Keyword arguments of all evaluation functions. They do not affect the metrics."""

    cache: Cache
    processes: Processes
    progress: bool | Bars
    batch_size: NotRequired[int | None]
    predictions: NotRequired[Path | None]


@dataclass(frozen=True, eq=False)
class Answers:
    """Outcome of every query of one kind (e.g. text queries), for the comparison of two models query by query.

    Args:
        kind: kind of the queries, image or text.
        queries: text or image name of each query. None: there are too many queries to store.
        values: rank of the correct answer, or share of correct answers, for each query.
        are_ranks: True if `values` are ranks.
        images: name of each query's image, or None for a query without an image. None: unknown.
        answered: top answer of the model to each query. None: unknown.
        answered_kind: kind of the answers in `answered`, image or text.
        right: correct answer to each query, if it is a text. None: unknown.
    """

    kind: Kind
    queries: Sequence[str] | None
    values: NDArray[np.float64]
    are_ranks: bool
    images: Sequence[str | None] | None = None
    answered: Sequence[str] | None = None
    answered_kind: Kind = "text"
    right: Sequence[str] | None = None


@dataclass(frozen=True)
class Task:
    """An evaluation task, as a set of functions.

    Args:
        read: function that reads the data from a source.
        run: function that evaluates a model on the data.
        columns: function that returns the per-query values of a result, from which metrics and intervals are computed.
        answers: function that returns the outcomes of all queries of a result.
        texts: function that returns all texts that the task encodes. None: the task needs no text tower.
    """

    read: Callable[[str], Any]
    run: Callable[[DualEncoder, TaskData, Options], Result]
    columns: Callable[[Mapping[str, Any]], tuple[Columns, Means]]
    answers: Callable[[Mapping[str, Any]], list[Answers]]
    texts: Callable[[TaskData], Sequence[str]] | None


def task_of(name: str) -> Task:
    """Return the task with this name.

    Raises:
        DataError: there is no such task.
    """
    if name not in TASKS:
        raise DataError(f"{name!r} is not an evaluation task; use one of {', '.join(TASKS)}")
    task: Task = import_module(f"clipkit.evaluation.tasks.{name}").TASK
    return task
