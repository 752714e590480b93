"""Interface of evaluation tasks, used by suites and comparisons.

Each task is one file of this folder with an object `TASK`, and one row in `clipkit/tasks.py`.
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
    """Data of a task, with classes, prompts and training data if the task uses them."""

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
        """Images of the evaluated data and, if any, of the training data."""
        return [part.images for part in (self.data, self.train) if part is not None]


class Options(TypedDict):
    """Keyword arguments that all evaluation functions share. They do not change the metrics."""

    cache: Cache
    processes: Processes
    progress: bool | Bars
    batch_size: NotRequired[int | None]
    predictions: NotRequired[Path | None]


@dataclass(frozen=True, eq=False)
class Answers:
    """Per-query results of one model for one kind of query; two models are compared query by query.

    Args:
        kind: kind of the query, image or text.
        queries: names of the queries; None: too many to store.
        values: rank of the correct answer, or share of correct answers, per query.
        are_ranks: True if `values` are ranks.
        images: image of each query, or None for a query without an image; None: unknown for all.
        answered: answer that the model ranked first for each query; None: not known.
        answered_kind: kind of the answers in `answered`, image or text.
        right: correct answer of each query, if it is shown as text.
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
    """An evaluation task.

    Args:
        read: function that returns the data of a source.
        run: function that evaluates a model.
        columns: function that returns the per-query values of a result, from which metrics and intervals are computed.
        answers: function that returns the answers to every query of a result.
        texts: function that returns all strings to encode; None: the task needs no text tower.
    """

    read: Callable[[str], Any]
    run: Callable[[DualEncoder, TaskData, Options], Result]
    columns: Callable[[Mapping[str, Any]], tuple[Columns, Means]]
    answers: Callable[[Mapping[str, Any]], list[Answers]]
    texts: Callable[[TaskData], Sequence[str]] | None


def task_of(name: str) -> Task:
    """Return a task by its name.

    Raises:
        DataError: there is no such task.
    """
    if name not in TASKS:
        raise DataError(f"{name!r} is not an evaluation task; use one of {', '.join(TASKS)}")
    task: Task = import_module(f"clipkit.evaluation.tasks.{name}").TASK
    return task
