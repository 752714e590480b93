"""Building, writing and reading of evaluation results."""

import hashlib
import json
import platform
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from clipkit.errors import DataError
from clipkit.evaluation.figures import Figure
from clipkit.evaluation.result_object import Result
from clipkit.findings import Finding
from clipkit.metrics.bootstrap import DRAWS
from clipkit.parsing import parse_json
from clipkit.versions import __version__, installed_version

# How every interval is computed.
INTERVAL = {"bootstrap_draws": DRAWS, "bootstrap_seed": 0, "interval": 0.95}


def build_result(
    task: str,
    model: str,
    data: Mapping[str, Any],
    metrics: Mapping[str, Figure],
    *,
    settings: Mapping[str, Any] | None = None,
    seconds: float = 0.0,
    classes: Sequence[dict[str, Any]] | None = None,
    groups: Sequence[dict[str, Any]] | None = None,
    examples: Sequence[dict[str, Any]] = (),
    prompts: Sequence[dict[str, Any]] | None = None,
    prompt_choices: Sequence[dict[str, Any]] | None = None,
    map: Sequence[dict[str, Any]] | None = None,
    queries: Mapping[str, list[Any]] | None = None,
    features: Mapping[str, int] | None = None,
    findings: Sequence[Finding] = (),
) -> Result:
    """Create a result. Parts that are None are left out.

    Args:
        task: name of the task.
        model: name of the model.
        data: name, counts and sha256 of the evaluation data.
        metrics: metrics by name.
        settings: other settings on which the metrics depend. The settings of the bootstrap are added.
        seconds: duration of the evaluation.
        classes: one row per class or category.
        groups: one row per group of images.
        examples: queries with their top answers.
        prompts: one row per prompt.
        prompt_choices: one row per choice of class names and templates.
        map: two-dimensional positions of items.
        queries: outcome of every query.
        features: numbers of computed and of cached features.
        findings: findings about the data; each becomes one line in `data["findings"]`.
    """
    if findings:
        data = {**data, "findings": [finding.line() for finding in findings]}
    everything: dict[str, Any] = {
        "task": task,
        "model": model,
        "data": dict(data),
        "metrics": dict(metrics),
        "classes": classes,
        "groups": groups,
        "settings": {**(settings or {}), **INTERVAL, **({} if features is None else {"features": dict(features)})},
        "versions": versions(),
        "seconds": round(seconds, 2),
        "examples": list(examples),
        "prompts": prompts,
        "prompt_choices": prompt_choices,
        "map": map,
        "queries": queries,
    }
    return Result({name: part for name, part in everything.items() if part is not None})


def versions() -> dict[str, str]:
    """Return the versions of all packages that can affect a metric."""
    packages = {
        name: installed_version(name) for name in ("torch", "transformers", "open_clip_torch", "timm", "pillow")
    }
    return {"clipkit": __version__, "python": platform.python_version()} | {
        name: version for name, version in packages.items() if version is not None
    }


def data_hash(images: Iterable[bytes], texts: Iterable[str], *relations: ArrayLike) -> str:
    """Return a SHA-256 hash of evaluation data, which does not depend on file paths.

    Args:
        images: hashes of the images.
        texts: the texts.
        relations: integer arrays that link images and texts, e.g. the position of each text's image.
    """
    digest = hashlib.sha256()
    for image in images:
        digest.update(image)
    for text in texts:
        digest.update(f"{text}\0".encode())
    for relation in relations:
        digest.update(np.asarray(relation, dtype="<i8").tobytes())
    return digest.hexdigest()


def to_json(result: Mapping[str, Any]) -> str:
    """Return a result as indented JSON. In the part `queries`, each list is on one line."""
    head = json.dumps({name: part for name, part in result.items() if name != "queries"}, indent=2, ensure_ascii=False)
    if not result.get("queries"):
        return head + "\n"
    lists = [
        f"    {json.dumps(name)}: {json.dumps(values, ensure_ascii=False)}"
        for name, values in result["queries"].items()
    ]
    return head.removesuffix("\n}") + ',\n  "queries": {\n' + ",\n".join(lists) + "\n  }\n}\n"


def read_result(file: str | Path) -> Result:
    """Read a result JSON, which `clipkit eval … --json` or a training run wrote.

    Raises:
        DataError: the file cannot be read or is not a result.
    """
    file = Path(file)
    advice = "give a file that clipkit eval … --json wrote, or results.json of a run"
    try:
        result = parse_json(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: cannot be read as a result JSON ({error}); {advice}") from None
    kinds = {"task": str, "model": str, "data": dict, "metrics": dict, "settings": dict}
    if not isinstance(result, dict):
        raise DataError(f"{file}: is not a result JSON; {advice}")
    for name, kind in kinds.items():
        if not isinstance(result.get(name), kind):
            raise DataError(f"{file}: is not a result JSON ({name!r} is missing or invalid); {advice}")
    for name, figure in result["metrics"].items():
        if not isinstance(figure, dict) or "value" not in figure:
            raise DataError(f"{file}: is not a result JSON (the metric {name!r} has no value); {advice}")
    return Result(result)
