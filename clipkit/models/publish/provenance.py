"""Origin of a model's weights: its base models, their Hub repositories, and their licenses."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from clipkit.errors import ModelError
from clipkit.models.hub import local_folder
from clipkit.parsing import parse_yaml
from clipkit.run_files import RunFiles

_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Base:
    """A pretrained model that another model was trained or built from."""

    name: str
    """Public name of the model; for a folder, without its path."""
    repositories: tuple[str, ...] = ()
    """Hub repository of the model; for a folder, the base models listed on its card."""
    license: str | None = None
    """License identifier on the model's card."""
    license_name: str | None = None
    """Name of a license that has no identifier on the Hub."""
    license_link: str | None = None


def bases_of(names: Iterable[str]) -> tuple[Base, ...]:
    """Return the base models with the given names; names of models with random weights are skipped."""
    return tuple(base for name in names for base in _bases(name))


def _bases(name: str) -> Iterator[Base]:
    if re.fullmatch(r"(open_clip:[^/?]+|python: .*)?", name):
        return
    header: dict[str, Any] = {}
    timm = _timm_source(name)
    if timm is not None:
        repository, header = timm
    else:
        repository = _repository(name)
        header = card_header(repository or name)
    repositories = [repository] if repository is not None else _as_list(header.get("base_model"))
    terms = [str(header[key]) if header.get(key) else None for key in ("license_name", "license_link")]
    licenses = _as_list(header.get("license"))
    yield Base(
        public_name(name),
        tuple(repository for repository in repositories if _REPOSITORY.fullmatch(repository)),
        licenses[0] if len(licenses) == 1 else None,  # several licenses: the card does not say which part has which
        *terms,
    )


def public_name(name: str) -> str:
    """Return a model name that reveals no local folders: of a path, only the last part."""
    if name.startswith("open_clip:"):
        architecture, option, weights = name.partition("?weights=")
        return f"{architecture}{option}{PurePath(weights).name}"
    if name.startswith("timm:") or _repository(name) is not None:
        return name
    prefix = "hf:" if name.startswith("hf:") else ""
    return prefix + (PurePath(name.removeprefix("hf:")).name or name)


def license_of(name: str) -> str | None:
    """Return the license that a model's card states, or several separated by commas; None if it states none."""
    stated = card_header(name).get("license")
    return ", ".join(map(str, stated)) if isinstance(stated, list) else stated and str(stated)


def card_header(name: str) -> dict[str, Any]:
    """Return the YAML header of a model card; {} if the header is missing or invalid.

    Args:
        name: folder, run or Hub repository that contains the card.
    """
    if name.startswith("open_clip:"):
        return {}
    try:
        folder = local_folder(name.removeprefix("hf:"), model_types=())
        for card in (folder / "README.md", RunFiles(folder).model / "README.md"):
            if card.is_file():
                parts = card.read_text(encoding="utf-8").split("---\n", 2)
                header = parse_yaml(parts[1]) if len(parts) == 3 and not parts[0].strip() else None
                return header if isinstance(header, dict) else {}
    except (ModelError, OSError, ValueError):
        pass
    return {}


def _repository(name: str) -> str | None:
    """Return the Hub repository of a model name, or None if the model is not on the Hub."""
    if name.startswith("open_clip:"):
        return _open_clip_repository(name.removeprefix("open_clip:"))
    name = re.sub("^(hf:|timm:hf[-_]hub:)", "", name)
    return name.partition("@")[0] if re.fullmatch(r"[\w.-]+/[\w.-]+(@.+)?", name) and not Path(name).exists() else None


def _open_clip_repository(name: str) -> str | None:
    import open_clip

    architecture, slash, tag = name.partition("/")
    if not slash:
        return None
    repository = str((open_clip.get_pretrained_cfg(architecture, tag) or {}).get("hf_hub", "")).strip("/")
    return repository if _REPOSITORY.fullmatch(repository) else None


def _timm_source(name: str) -> tuple[str | None, dict[str, Any]] | None:
    """Return the Hub repository and the license of a timm model's weights; None if `name` is not a timm model."""
    from timm.models import get_pretrained_cfg

    if not name.startswith("timm:"):
        return None
    config = get_pretrained_cfg(name.removeprefix("timm:"))
    return (config.hf_hub_id, {"license": config.license}) if config is not None else None


def _as_list(value: object) -> list[str]:
    return [str(item) for item in (value if isinstance(value, list) else [value]) if item]
