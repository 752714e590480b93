"""What an evaluation gives, as written to a results JSON."""

import hashlib
import json
import platform
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import numpy as np
from numpy.typing import ArrayLike

from clipkit.errors import DataError
from clipkit.evaluation.figures import Figure
from clipkit.images import Stored, as_data_uri
from clipkit.metrics.bootstrap import DRAWS


class Result(TypedDict):
    """An evaluation with everything needed to tell what was measured."""

    task: str
    model: str
    data: dict[str, Any]
    metrics: dict[str, Figure]
    settings: dict[str, Any]
    versions: dict[str, str]
    seconds: float
    examples: list[dict[str, Any]]
    """A few queries with their top answers, for the report."""
    queries: dict[str, list[Any]]
    """What each query got, so that two results can be compared query by query."""
    classes: NotRequired[list[dict[str, Any]]]
    """One row a class, or a category."""
    prompts: NotRequired[list[dict[str, Any]]]
    """The accuracy of each prompt by itself, and of the others without it."""
    map: NotRequired[list[dict[str, Any]]]
    """Where some of the images lie in two dimensions."""


# Every result is made with these.
INTERVAL = {"bootstrap_draws": DRAWS, "bootstrap_seed": 0, "interval": 0.95}


def versions() -> dict[str, str]:
    """The versions that can change a figure."""
    packages = {name: version(name) for name in ("torch", "transformers", "open_clip_torch", "timm", "pillow")}
    return {"clipkit": version("clipkit-torch"), "python": platform.python_version()} | packages


def data_hash(images: Iterable[bytes], texts: Iterable[str], *relations: ArrayLike) -> str:
    """SHA-256 over the images' content hashes, the texts, and which belongs to which; not over any path."""
    digest = hashlib.sha256()
    for image in images:
        digest.update(image)
    for text in texts:
        digest.update(f"{text}\0".encode())
    for relation in relations:
        digest.update(np.asarray(relation, dtype="<i8").tobytes())
    return digest.hexdigest()


def to_json(result: Mapping[str, Any]) -> str:
    """The text of a results JSON: readable, but for what single queries got, which is one line a list."""
    head = json.dumps({name: own for name, own in result.items() if name != "queries"}, indent=2, ensure_ascii=False)
    if not result.get("queries"):
        return head + "\n"
    lists = [
        f"    {json.dumps(name)}: {json.dumps(own, ensure_ascii=False)}" for name, own in result["queries"].items()
    ]
    return head.removesuffix("\n}") + ',\n  "queries": {\n' + ",\n".join(lists) + "\n  }\n}\n"


def shown(image: str | Path | Stored, side: int = 112) -> str:
    """An image in an example: its path, or, where it lies in a tar or a table, itself, as small as a report needs."""
    if not isinstance(image, Stored):
        return str(image)
    try:
        return as_data_uri(image, side)
    except DataError:
        return str(image)


def chosen_examples(count: int, of: int) -> list[int]:
    """Evenly spaced positions: examples that nobody picked for how they look."""
    return sorted({round(position) for position in np.linspace(0, of - 1, min(count, of))})
