"""What a saved model is elsewhere: the library and class that open it, where it came from, under which licence."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from clipkit.models.absent import is_absent
from clipkit.models.composed import Composed
from clipkit.models.describe import header_of
from clipkit.models.dual_encoder import DualEncoder
from clipkit.models.from_open_clip import FromOpenClip
from clipkit.models.from_transformers import FromTransformers
from clipkit.recipe import ModelRecipe

_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Base:
    """Somebody's weights that a model was made of."""

    name: str
    """As others may read it: of a folder, not where it lies."""
    repositories: tuple[str, ...] = ()
    """It on the Hub; of a folder, those that its own card names."""
    licence: str | None = None
    """As its card states it."""
    licence_name: str | None = None
    """Of one that the Hub has no name for."""
    licence_link: str | None = None


@dataclass(frozen=True)
class Layout:
    """Of a model."""

    library: str
    """transformers, open_clip or clipkit."""
    class_name: str | None
    """transformers' class."""
    sides: tuple[str, ...]
    """image, text."""
    bases: tuple[Base, ...] = ()

    @property
    def repositories(self) -> list[str]:
        """Of all bases, each once."""
        return list(dict.fromkeys(own for base in self.bases for own in base.repositories))


def layout_of(model: DualEncoder, recipe: ModelRecipe | None = None) -> Layout:
    """What there is to say of a model, and of what it was made by a recipe."""
    backend: Any = model.backend
    library, class_name = "clipkit", None
    if isinstance(backend, FromTransformers):
        library, class_name = "transformers", type(backend.native).__name__
    elif isinstance(backend, FromOpenClip):
        library = "open_clip"
    assert isinstance(backend, FromTransformers | FromOpenClip | Composed)
    sides = tuple(side for side, tower in (("image", model.image), ("text", model.text)) if not is_absent(tower))
    names = [model.name]
    if recipe is not None:
        towers = [own.name for own in (recipe.image, recipe.text) if own.name is not None and own.pretrained]
        names = [recipe.name] if recipe.name is not None else towers
    return Layout(library, class_name, sides, tuple(base for name in names for base in _bases(name)))


def public_name(name: str) -> str:
    """The name of a model for others: of a folder or file, not where it lies on somebody's machine."""
    if name.startswith("open_clip:"):
        architecture, option, weights = name.partition("?weights=")
        return f"{architecture}{option}{PurePath(weights).name}"
    if name.startswith("timm:") or _repository(name) is not None:
        return name
    prefix = "hf:" if name.startswith("hf:") else ""
    return prefix + (PurePath(name.removeprefix("hf:")).name or name)


def _bases(name: str) -> Iterator[Base]:
    """None of random weights."""
    if re.fullmatch(r"(open_clip:[^/?]+)?", name):
        return
    licence: dict[str, Any] = {}
    found = _of_timm(name)
    if found is not None:
        repository, licence = found
    else:
        repository = _repository(name)
        licence = header_of(repository or name)
    repositories = [repository] if repository is not None else _listed(licence.get("base_model"))
    terms = [str(licence[key]) if licence.get(key) else None for key in ("license_name", "license_link")]
    stated = _listed(licence.get("license"))
    yield Base(
        public_name(name),
        tuple(own for own in repositories if _REPOSITORY.fullmatch(own)),
        stated[0] if len(stated) == 1 else None,  # of several, nobody says which part has which
        *terms,
    )


def _repository(name: str) -> str | None:
    """The Hub's name of a model, where it is one of the Hub's."""
    if name.startswith("open_clip:"):
        return _of_tag(name.removeprefix("open_clip:"))
    name = re.sub("^(hf:|timm:hf[-_]hub:)", "", name)
    return name.partition("@")[0] if re.fullmatch(r"[\w.-]+/[\w.-]+(@.+)?", name) and not Path(name).exists() else None


def _of_tag(name: str) -> str | None:
    import open_clip

    architecture, slash, tag = name.partition("/")
    if not slash:
        return None
    found = str((open_clip.get_pretrained_cfg(architecture, tag) or {}).get("hf_hub", "")).strip("/")
    return found if _REPOSITORY.fullmatch(found) else None


def _of_timm(name: str) -> tuple[str | None, dict[str, Any]] | None:
    """Where timm has the weights of a model of its own from, and what it says of their licence."""
    from timm.models import get_pretrained_cfg

    if not name.startswith("timm:"):
        return None
    found = get_pretrained_cfg(name.removeprefix("timm:"))
    return (found.hf_hub_id, {"license": found.license}) if found is not None else None


def _listed(value: object) -> list[str]:
    return [str(own) for own in (value if isinstance(value, list) else [value]) if own]
