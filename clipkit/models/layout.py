"""What a saved model is elsewhere: the library and class that open it, where it came from, under which licence."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipkit.models.absent import is_absent
from clipkit.models.composed import Composed
from clipkit.models.describe import licence_of, stated
from clipkit.models.dual_encoder import DualEncoder
from clipkit.models.from_open_clip import FromOpenClip
from clipkit.models.from_transformers import FromTransformers
from clipkit.recipe import ModelRecipe

_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Layout:
    """Of a model."""

    library: str
    """transformers, open_clip or clipkit."""
    class_name: str | None
    """transformers' class."""
    sides: tuple[str, ...]
    """image, text."""
    bases: tuple[str, ...]
    """Hub repositories that it was made of."""
    licences: tuple[str, ...]
    """Those of the bases, as far as they are stated."""
    pretrained: bool
    """Whether somebody else's weights are in it."""


def layout_of(model: DualEncoder, recipe: ModelRecipe | None = None) -> Layout:
    """What there is to say of a model, and of what it was made by a recipe."""
    backend: Any = model.backend
    library, class_name = "clipkit", None
    if isinstance(backend, FromTransformers):
        library, class_name = "transformers", type(backend.native).__name__
    elif isinstance(backend, FromOpenClip):
        library = "open_clip"
    assert isinstance(backend, FromTransformers | FromOpenClip | Composed)
    names = [model.name]
    if recipe is not None:
        names = [recipe.name] if recipe.name is not None else []
        names += [own.name for own in (recipe.image, recipe.text) if own.name is not None and own.pretrained]
    bases: list[str] = []
    licences: list[str] = []
    for name in filter(None, names):
        base = _repository(name)
        bases += [base] if base else _card_value(name, "base_model")
        licence = licence_of(name)
        licences += [licence] if licence else []
    sides = tuple(side for side, tower in (("image", model.image), ("text", model.text)) if not is_absent(tower))
    pretrained = [name for name in names if name and not re.fullmatch(r"open_clip:[^/?]+", name)]
    return Layout(
        library,
        class_name,
        sides,
        tuple(dict.fromkeys(bases)),
        tuple(dict.fromkeys(licences)),
        bool(pretrained),
    )


def _repository(name: str) -> str | None:
    """The Hub's name of a model, where it is one of the Hub's."""
    if name.startswith("open_clip:"):
        return _of_tag(name.removeprefix("open_clip:"))
    name = name.removeprefix("timm:timm/").removeprefix("hf:").partition("@")[0]
    return name if _REPOSITORY.fullmatch(name) and not Path(name).exists() else None


def _of_tag(name: str) -> str | None:
    import open_clip

    architecture, slash, tag = name.partition("/")
    if not slash:
        return None
    found = str((open_clip.get_pretrained_cfg(architecture, tag) or {}).get("hf_hub", "")).strip("/")
    return found if _REPOSITORY.fullmatch(found) else None


def _card_value(name: str, key: str) -> list[str]:
    """What the card in a local folder, or in the model of a run, states."""
    for card in (Path(name) / "README.md", Path(name) / "model" / "README.md"):
        if card.is_file():
            value = stated(card).get(key)
            return [str(own) for own in (value if isinstance(value, list) else [value]) if own]
    return []
