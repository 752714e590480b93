"""Facts about a saved model that its card needs: the library and class that open it, and its base models."""

from collections.abc import Sequence
from dataclasses import dataclass

from clipkit.models.publish.provenance import Base, bases_of
from clipkit.recipe import ModelRecipe


@dataclass(frozen=True)
class Layout:
    """The form in which a model is saved."""

    library: str
    """transformers, open_clip or clipkit."""
    class_name: str | None
    """Class of transformers."""
    sides: tuple[str, ...]
    """Towers that the model has: image, text."""
    bases: tuple[Base, ...] = ()

    @property
    def repositories(self) -> list[str]:
        """Hub repositories of all bases, without repetition."""
        return list(dict.fromkeys(repository for base in self.bases for repository in base.repositories))


def layout_of(library: str, class_name: str | None, sides: Sequence[str], names: Sequence[str]) -> Layout:
    """Return the layout of a model built from the base models called `names`."""
    return Layout(library, class_name, tuple(sides), tuple(base for name in names for base in bases_of(name)))


def pretrained_names(recipe: ModelRecipe) -> list[str]:
    """Names of the models whose weights a recipe starts from."""
    if recipe.name is not None:
        return [recipe.name]
    return [tower.name for tower in (recipe.image, recipe.text) if tower.name is not None and tower.pretrained]
