"""Settings for storing the outputs of frozen layers."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from clipkit.embedding.store_folder import Machine
from clipkit.processes import Processes
from clipkit.recipe.data import StoreRecipe, bytes_of


@dataclass
class Storing:
    """Settings for storing the outputs of frozen layers, for the training and the validation data of a run.

    Args:
        recipe: data type of the stored values, and the largest size on disk.
        processes: processes of the run.
        pairs: number of pairs that the run encodes over all epochs. Storing saves time only if this number is larger
            than the number of stored items.
        views: number of augmented views of each training image; None: images are stored without augmentation.
        seed: seed of the run, for the choice of views.
        workers: number of loader processes that augment images.
        autocast: function that returns the autocast context of the forward passes.
        log: function that logs one line.
    """

    recipe: StoreRecipe
    processes: Processes
    pairs: float
    views: int | None = None
    seed: int = 0
    workers: int = 0
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext
    log: Callable[[str], None] = lambda message: None
    taken: int = field(default=0, init=False)
    """Size in bytes of all stores that this run has opened or written so far."""

    @cached_property
    def machine(self) -> Machine:
        """This machine, with the processes of the run that it has."""
        return Machine.of(self.processes)

    @property
    def left(self) -> int:
        """Disk space in bytes that further stores of this run may use."""
        return max(0, bytes_of(self.recipe.disk) - self.taken)
