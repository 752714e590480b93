"""Model cards: what a model is, how to use it, and what was measured, from result files."""

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

import yaml

from clipkit.models.card import card
from clipkit.models.layout import Layout
from clipkit.report.page import number, readable

# Hub names of what is measured.
_TASKS = {
    "retrieval": ("image-text-retrieval", "Image-text retrieval"),
    "zeroshot": ("zero-shot-image-classification", "Zero-shot image classification"),
    "probe": ("image-classification", "Linear probe"),
    "compositional": ("image-text-matching", "Near misses"),
    "views": ("image-feature-extraction", "Views of pictures"),
}


def model_card(
    layout: Layout, results: Sequence[Mapping[str, Any]] = (), recipe: Mapping[str, Any] | None = None
) -> str:
    """The text of a README.md, with the header that the Hub reads.

    Args:
        layout: of the model.
        results: what results files hold: of the run, or of evaluations.
        recipe: of the run.

    Example:
        >>> layout = Layout("open_clip", None, ("image", "text"), (), (), False)
        >>> "open_clip.create_model_from_pretrained" in model_card(layout)
        True
    """
    return card(
        layout,
        [*_figures(results), *_training(results, recipe)],
        trained=recipe is not None,
        eval_results=[own for result in results for own in _eval_results(result)],
    )


def _figures(results: Sequence[Mapping[str, Any]]) -> list[str]:
    parts: list[str] = []
    for result in results:
        if not result.get("metrics"):
            continue
        data = result["data"]
        counts = [f"{data[kind]:,} {kind}" for kind in ("images", "captions", "instances", "classes") if data.get(kind)]
        rows = ["| | value | 95 % interval | chance |", "| --- | --- | --- | --- |"]
        for name, figure in result["metrics"].items():
            if figure.get("value") is None:
                continue
            low, high = figure.get("low"), figure.get("high")
            interval = f"{number(name, low)} – {number(name, high)}" if low is not None and high is not None else "–"
            chance = figure.get("chance")
            rows.append(
                f"| {readable(name)} | {number(name, figure['value'])} | {interval} | "
                f"{number(name, chance) if chance is not None else '–'} |"
            )
        title = _TASKS.get(result["task"], ("", result["task"]))[1]
        name = _short(data.get("name", ""))
        note = f"{title} on {name} ({', '.join(counts)}); intervals are bootstrapped over pictures."
        if result.get("settings", {}).get("best"):
            note += " This data also chose the weights that are here."
        parts += [note, "\n".join(rows)]
    return ["## What was measured", *parts] if parts else []


def _training(results: Sequence[Mapping[str, Any]], recipe: Mapping[str, Any] | None) -> list[str]:
    if recipe is None:
        return []
    data, train, loss = recipe["data"], recipe["train"], recipe["loss"]
    sources = [data["train"]] if isinstance(data["train"], str) else [own["source"] for own in data["train"]]
    losses = [loss["name"]] if isinstance(loss["name"], str) else [own["name"] for own in loss["name"]]
    steps = next((r["settings"]["steps"] for r in results if "steps" in r.get("settings", {})), None)
    counts = next((r["settings"]["trained_on"] for r in results if "trained_on" in r.get("settings", {})), None)
    of = f" ({counts['images']:,} pictures, {counts['captions']:,} captions)" if counts else ""
    took = f", {steps:,} steps" if steps else ""
    objective = " + ".join(recipe["objective"])
    lines = [
        f"- data: {', '.join(map(_short, sources))}{of}",
        f"- objective: {objective}" + (f", loss {' + '.join(losses)}" if "captions" in recipe["objective"] else ""),
        f"- {train['epochs']} epochs{took} of {train['batch_size']:,} pairs, {recipe['optim']['name']} with a peak "
        f"learning rate of {recipe['optim']['lr']:g}, seed {train['seed']}",
    ]
    text = yaml.safe_dump(_without_paths(recipe), sort_keys=False, allow_unicode=True).rstrip()
    details = f"<details><summary>The complete recipe</summary>\n\n```yaml\n{text}\n```\n\n</details>"
    return ["## How it was trained", "\n".join(lines), details]


def _eval_results(result: Mapping[str, Any]) -> list[Any]:
    """The figures as the Hub's model-index has them."""
    from huggingface_hub import EvalResult

    kind, title = _TASKS.get(result["task"], (result["task"], result["task"]))
    name = _short(result["data"].get("name", "")) or "unnamed"
    return [
        EvalResult(
            task_type=kind,
            task_name=title,
            dataset_type=name,
            dataset_name=name,
            metric_type=metric,
            metric_name=readable(metric),
            metric_value=figure["value"],
        )
        for metric, figure in result.get("metrics", {}).items()
        if figure.get("value") is not None
    ]


def _short(source: str) -> str:
    """The name of a file or folder, without where it lies on somebody's machine."""
    source = str(source)
    return source if source.startswith(("hf:", "http://", "https://")) else PurePath(source).name or source


def _without_paths(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe as it is, but for folders of the machine that it ran on."""

    def short(key: str, value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: short(name, own) for name, own in value.items()}
        if isinstance(value, list):
            return [short(key, own) for own in value]
        is_path = isinstance(value, str) and key in (
            "train", "validation", "labelled", "labelled_test", "source", "output", "name", "tokenizer", "retention",
            "teacher",
        )  # fmt: skip
        return _short(value) if is_path and value.startswith(("/", "~", ".")) else value

    return {name: short(name, own) for name, own in recipe.items()}
