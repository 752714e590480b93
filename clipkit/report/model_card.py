"""Model cards: what a model is, how to use it, and what was measured, from result files."""

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any
from urllib.parse import urlsplit

import yaml

from clipkit.models.publish.card import card
from clipkit.models.publish.layout import Layout
from clipkit.models.publish.provenance import public_name
from clipkit.tasks import hub_name_of, number, readable, title_of


def model_card(
    layout: Layout, results: Sequence[Mapping[str, Any]] = (), recipe: Mapping[str, Any] | None = None
) -> str:
    """The text of a README.md, with the header that the Hub reads.

    Args:
        layout: of the model.
        results: what results files hold: of the run, or of evaluations.
        recipe: of the run.

    Example:
        >>> layout = Layout("open_clip", None, ("image", "text"))
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
        title = title_of(result["task"])
        name = _short(data.get("name", ""))
        note = f"{title} on {name} ({', '.join(counts)}); intervals are bootstrapped over images."
        if result.get("settings", {}).get("best"):
            note += " This data also chose the weights that are here."
        # A reader must know it; other findings are for who trains.
        leaked = [own["message"] for own in result.get("findings", []) if own["name"] == "validation_leaks"]
        note += "".join(f" Mind that {message}: the figures are too good." for message in leaked)
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
    of = f" ({counts['images']:,} images, {counts['captions']:,} captions)" if counts else ""
    took = f", {steps:,} steps" if steps else ""
    objective = " + ".join(recipe["objective"])
    lines = [
        f"- model: {_model(recipe['model'])}",
        f"- data: {', '.join(map(_short, sources))}{of}",
        f"- objective: {objective}" + (f", loss {' + '.join(losses)}" if "captions" in recipe["objective"] else ""),
        f"- {train['epochs']} epochs{took} of {train['batch_size']:,} pairs, {recipe['optim']['name']} with a peak "
        f"learning rate of {recipe['optim']['lr']:g}, seed {train['seed']}",
    ]
    terms = [loss] if isinstance(loss["name"], str) else loss["name"]
    lines += [f"- teacher: {public_name(own['teacher'])}" for own in terms if own.get("teacher")]
    text = yaml.safe_dump(_without_paths(recipe), sort_keys=False, allow_unicode=True).rstrip()
    details = f"<details><summary>The complete recipe</summary>\n\n```yaml\n{text}\n```\n\n</details>"
    return ["## How it was trained", "\n".join(lines), details]


def _model(model: Mapping[str, Any]) -> str:
    """What was trained, and which part of it."""
    if model["name"] is not None:
        towers = [f"{side} tower {model[side]['tune']}" for side in ("image", "text")]
        return f"{public_name(model['name'])}, tuned: {', '.join(towers)}"
    towers = [
        f"{side} tower {public_name(own['name'])} ({own['tune'] if own['pretrained'] else 'from random weights'})"
        for side in ("image", "text")
        if (own := model[side])["name"] is not None
    ]
    return " and ".join(towers) + (f", new projections to {model['embed_dim'] or 512}" if len(towers) == 2 else "")


def _eval_results(result: Mapping[str, Any]) -> list[Any]:
    """The figures as the Hub's model-index has them."""
    from huggingface_hub import EvalResult

    name = _short(result["data"].get("name", "")) or "unnamed"
    repository, _, split = name.removeprefix("hf:").partition(":")
    return [
        EvalResult(
            task_type=hub_name_of(result["task"]),
            task_name=title_of(result["task"]),
            dataset_type=repository,
            dataset_name=repository,
            dataset_split=split or None,
            metric_type=metric,
            metric_name=readable(metric),
            metric_value=figure["value"],
        )
        for metric, figure in result.get("metrics", {}).items()
        if figure.get("value") is not None
    ]


def _short(source: str) -> str:
    """The name of data for others: not where it lies on somebody's machine, nor a key to an address."""
    source = str(source).partition("?")[0]
    if source.startswith(("http://", "https://")):
        parts = urlsplit(source)
        return f"{parts.scheme}://{parts.hostname}{parts.path}"
    if source.startswith("hf:"):
        return source
    return PurePath(source).name or source


# Keys of a recipe whose values name models, and data.
_MODELS = ("teacher", "tokenizer")
_DATA = ("train", "source", "validation", "labelled", "labelled_test", "retention", "output")


def _without_paths(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe as it is, but for folders of the machine that it ran on."""

    def short(key: str, value: Any, section: str) -> Any:
        if isinstance(value, Mapping):
            return {name: short(name, own, section) for name, own in value.items()}
        if isinstance(value, list):
            return [short(key, own, section) for own in value]
        if not isinstance(value, str):
            return value
        if key in _MODELS or (section == "model" and key == "name"):
            return public_name(value)
        return _short(value) if key in _DATA else value

    return {name: short(name, own, name) for name, own in recipe.items()}
