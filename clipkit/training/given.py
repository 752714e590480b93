"""Python objects that a user gives to `train` in place of the keys of a recipe."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from clipkit.data import Pairs, read_pairs
from clipkit.data.sources.objects import name_of_object
from clipkit.embedding.hashes import content_hashes
from clipkit.embedding.shared import scan_shared
from clipkit.errors import RecipeError
from clipkit.images import kind_of
from clipkit.models import DualEncoder
from clipkit.processes import Processes
from clipkit.recipe import Recipe
from clipkit.training.callbacks import Callback, checked_callbacks
from clipkit.training.objectives.objective import Objective
from clipkit.training.objectives.python_loss import checked_loss, code_hash

IN_PYTHON = "python:"
"""Beginning of the values of a recipe that name an object of a Python program."""

GivenObjective = Objective | Callable[[Objective], Objective]


@dataclass(frozen=True)
class Given:
    """Python objects that replace keys of a recipe, e.g. a model; passed as arguments of `train`."""

    train: object = None
    validation: object = None
    model: DualEncoder | None = None
    loss: Callable[..., Any] | None = None
    objective: GivenObjective | None = None
    callbacks: Sequence[Callback] = ()
    identity: Literal["content"] | None = None
    outputs: Mapping[str, Tensor] = field(default_factory=dict)
    """Outputs of frozen trunks for all images or captions of `train`, by the name of the features."""

    def __post_init__(self) -> None:
        if self.identity not in (None, "content"):
            raise RecipeError(f"identity is {self.identity!r}; give 'content', or leave out identity")
        if self.model is not None and not isinstance(self.model, DualEncoder):
            raise RecipeError(
                f"model is {kind_of(self.model)}, not a DualEncoder; give clipkit.load(…), "
                "clipkit.DualEncoder.from_modules(…), or model.name in the recipe"
            )
        if self.loss is not None and self.objective is not None:
            raise RecipeError(
                "both loss and objective are given, but an objective already contains a loss; give only one of the two"
            )
        if self.loss is not None:
            checked_loss(self.loss)
        checked_callbacks(self.callbacks)

    def recipe(self, recipe: "str | Path | Recipe | Mapping[str, Any]", overrides: Mapping[str, Any]) -> Recipe:
        """Return the recipe, in which each key that a Python object replaces contains the object's name.

        Args:
            recipe: a YAML file, a Recipe, or a dict of its sections. It may omit the keys that given objects replace.
            overrides: changes to the recipe.

        Raises:
            RecipeError: the recipe is invalid, or an object contradicts it.
        """
        changes = {**overrides, **self._named()}
        if isinstance(recipe, Mapping):
            whole = Recipe.from_dict(merged_recipe(recipe, changes))
        elif isinstance(recipe, Recipe):
            whole = recipe.override(changes)
        else:
            whole = Recipe.from_yaml(recipe, changes)
        if self.loss is not None and whole.loss != type(whole.loss)():
            raise RecipeError(
                f"loss is given in Python, but the recipe also sets loss.name {'+'.join(whole.loss.names)}; "
                "remove loss.name from the recipe, or leave out the argument loss"
            )
        if (self.loss is not None or self.objective is not None) and list(whole.objective) != ["captions"]:
            raise RecipeError(
                "a loss or an objective in Python can replace only the objective captions, but the recipe has "
                f"objective {'+'.join(whole.objective)}; remove objective from the recipe"
            )
        return whole

    def _named(self) -> dict[str, Any]:
        named: dict[str, Any] = {}
        for key, data in (("data.train", self.train), ("data.validation", self.validation)):
            if data is not None:
                named[key] = data if isinstance(data, str) else str(data) if isinstance(data, Path) else name_of(data)
        if self.model is not None:
            named |= {"model.name": self.model.name}
        return named

    def read(self, role: Literal["train", "validation"], processes: Processes, **columns: Any) -> Pairs | None:
        """Read pairs from the training or validation data that the user gave in Python.

        The result is None if the user gave no object, or only a path, which is in the recipe.

        Raises:
            DataError: the object is not data, or lacks a column.
        """
        data = getattr(self, role)
        if data is None or isinstance(data, str | Path):
            return None
        pairs = data if isinstance(data, Pairs) else read_pairs(data, **columns)
        if self.identity == "content" and pairs.has_images:
            found = scan_shared(pairs.images, lambda images: dict(enumerate(content_hashes(images))), processes)
            content = b"".join(found[position] for position in range(len(pairs.images)))
            pairs = replace(pairs, content=hashlib.sha256(content).hexdigest())
        return pairs

    @property
    def notes(self) -> list[str]:
        """Return log lines that name the loss, the objective and the callbacks given in Python."""
        return [f"{name} in Python: {value}" for name, value in self.facts().items()]

    def facts(self) -> dict[str, Any]:
        """Return the names of the loss, the objective and the callbacks given in Python, for results.json."""
        facts: dict[str, Any] = {}
        for name, given in (("loss", self.loss), ("objective", self.objective)):
            if given is not None:
                facts[name] = getattr(given, "__qualname__", type(given).__name__)
        if self.callbacks:
            facts["callbacks"] = [type(callback).__name__ for callback in self.callbacks]
        return facts

    def identity_parts(self) -> dict[str, str]:
        """Return hashes of the code of a loss and an objective given in Python.

        A resumed run compares these hashes with those of the first run.
        """
        given = {"the loss given in Python": self.loss, "the objective given in Python": self.objective}
        return {name: code_hash(function) for name, function in given.items() if function is not None}


def name_of(data: object) -> str:
    """Return the text that represents a Python data object in a recipe, e.g. "python: list of 16 rows"."""
    return f"{IN_PYTHON} {data.name if isinstance(data, Pairs) else name_of_object(data)}"


def merged_recipe(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the sections of a recipe with overrides applied."""
    from clipkit.recipe.overrides import merged

    return merged(values, changes)
