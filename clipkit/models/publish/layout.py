"""Properties of a saved model that its model card needs."""

from dataclasses import dataclass

from clipkit.models.publish.provenance import Base
from clipkit.recipe import ModelRecipe


@dataclass(frozen=True)
class Layout:
    """Properties of a saved model that its model card needs, e.g. the library that loads the model."""

    library: str
    """Library that loads the model: transformers, open_clip or clipkit; exports also sentence-transformers or onnx."""
    class_name: str | None
    """Name of the transformers class, if there is one."""
    sides: tuple[str, ...]
    """Towers that the model has: image, text."""
    bases: tuple[Base, ...] = ()
    sigmoid: bool = False
    """True if probabilities are sigmoids with a logit bias, instead of a softmax over the texts."""
    pad_to: int | None = None
    """Number of tokens to which all captions are padded, for text towers whose features depend on padding."""
    context_length: int | None = None
    """Number of tokens to which longer captions are truncated."""
    repairs: bool = False
    """True if captions must be repaired before the library tokenizes them, as open_clip does."""
    prepared_by_clipkit: tuple[str, ...] = ()
    """Towers whose preprocessing the exported files do not describe, so that clipkit must prepare their inputs."""
    source: str = ""
    """Name of the exported model, from which clipkit loads the preprocessing of `prepared_by_clipkit`."""
    clean: str | None = None
    """Python expression for a function that prepares captions instead of open_clip's repair; None: not needed."""

    @property
    def repositories(self) -> list[str]:
        """Hub repositories of all base models, without duplicates."""
        return list(dict.fromkeys(repository for base in self.bases for repository in base.repositories))


def pretrained_names(recipe: ModelRecipe) -> list[str]:
    """Return the names of the pretrained models that a recipe loads."""
    if recipe.name is not None:
        return [recipe.name]
    return [tower.name for tower in (recipe.image, recipe.text) if tower.name is not None and tower.pretrained]
