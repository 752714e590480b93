"""Facts about a saved model that its card needs: the library and class that open it, and its base models."""

from dataclasses import dataclass

from clipkit.models.publish.provenance import Base
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
    sigmoid: bool = False
    """True if probabilities are sigmoids with a logit bias, instead of a softmax over the texts."""
    pad_to: int | None = None
    """Number of tokens that all captions are padded to, for text towers that depend on it."""

    @property
    def repositories(self) -> list[str]:
        """Hub repositories of all bases, without repetition."""
        return list(dict.fromkeys(repository for base in self.bases for repository in base.repositories))


def pretrained_names(recipe: ModelRecipe) -> list[str]:
    """Names of the models whose weights a recipe starts from."""
    if recipe.name is not None:
        return [recipe.name]
    return [tower.name for tower in (recipe.image, recipe.text) if tower.name is not None and tower.pretrained]
