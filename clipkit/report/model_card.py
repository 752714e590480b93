"""Model cards: text about a model, its use, its training and its evaluation results."""

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any
from urllib.parse import urlsplit

import yaml

from clipkit.models.publish.card import card
from clipkit.models.publish.layout import Layout
from clipkit.models.publish.provenance import public_name
from clipkit.recipe import ModelRecipe
from clipkit.tasks import counts_of, hub_name_of, number, readable, shown_metrics, title_of


def model_card(
    layout: Layout, results: Sequence[Mapping[str, Any]] = (), recipe: Mapping[str, Any] | None = None
) -> str:
    """Return the text of a README.md, with the header that the Hub reads.

    Args:
        layout: layout of the model's files.
        results: results of the run or of evaluations, as dicts.
        recipe: recipe of the run; None: the model was not trained by clipkit.

    Example:
        >>> layout = Layout("open_clip", None, ("image", "text"))
        >>> "open_clip.create_model_from_pretrained" in model_card(layout)
        True
    """
    return card(
        layout,
        [*_results_section(results), *_training_section(results, recipe)],
        trained=recipe is not None,
        eval_results=[entry for result in results for entry in _eval_results(result)],
    )


def _results_section(results: Sequence[Mapping[str, Any]]) -> list[str]:
    parts: list[str] = []
    for result in results:
        if not result.get("metrics"):
            continue
        data = result["data"]
        rows = ["| | value | 95 % interval | chance |", "| --- | --- | --- | --- |"]
        for name in shown_metrics(result["metrics"]):
            figure = result["metrics"][name]
            if figure.get("value") is None:
                continue
            value, low, high, chance = (number(name, figure.get(part)) for part in ("value", "low", "high", "chance"))
            interval = f"{low} – {high}" if figure.get("low") is not None else "–"
            rows.append(f"| {readable(name)} | {value} | {interval} | {chance} |")
        title = title_of(result["task"])
        name = _short(data.get("name", ""))
        note = f"{title} on {name} ({counts_of(data)}); intervals are bootstrapped over images."
        if result.get("settings", {}).get("best"):
            note += " The weights were selected on the same data."
        # Readers of a card need only the finding about leaked images.
        for finding in result.get("findings", []):
            if finding["name"] in ("leaked_images", "validation_leaks"):  # the second name is from earlier versions
                count = finding.get("count") or "some"
                note += f" Warning: {count} training images are also in this data, so the values are too high."
        parts += [note, "\n".join(rows)]
    return ["## Evaluation results", *parts] if parts else []


def _training_section(results: Sequence[Mapping[str, Any]], recipe: Mapping[str, Any] | None) -> list[str]:
    if recipe is None:
        return []
    data, train, loss = recipe["data"], recipe["train"], recipe["loss"]
    sources = [data["train"]] if isinstance(data["train"], str) else [part["source"] for part in data["train"]]
    losses = [loss["name"]] if isinstance(loss["name"], str) else [term["name"] for term in loss["name"]]
    steps = next((r["settings"]["steps"] for r in results if "steps" in r.get("settings", {})), None)
    counts = next((r["settings"]["trained_on"] for r in results if "trained_on" in r.get("settings", {})), None)
    size = f" ({counts['images']:,} images, {counts['captions']:,} captions)" if counts else ""
    length = f", {steps:,} steps" if steps else ""
    objective = " + ".join(recipe["objective"])
    lines = [
        f"- model: {_model(recipe['model'])}",
        f"- data: {', '.join(map(_short, sources))}{size}",
        f"- objective: {objective}" + (f", loss {' + '.join(losses)}" if "captions" in recipe["objective"] else ""),
        f"- {train['epochs']} epochs{length} of {train['batch_size']:,} pairs, {recipe['optim']['name']} with a peak "
        f"learning rate of {_rates(recipe['optim']['lr'], results)}, seed {train['seed']}",
    ]
    terms = [loss] if isinstance(loss["name"], str) else loss["name"]
    lines += [f"- teacher: {public_name(term['teacher'])}" for term in terms if term.get("teacher")]
    text = yaml.safe_dump(_without_paths(recipe), sort_keys=False, allow_unicode=True).rstrip()
    details = f"<details><summary>The complete recipe</summary>\n\n```yaml\n{text}\n```\n\n</details>"
    return ["## Training", "\n".join(lines), details]


def _rates(lr: float | Mapping[str, float], results: Sequence[Mapping[str, Any]]) -> str:
    """Return the learning rates of a run from its results; from the recipe if no result contains them."""
    if isinstance(lr, float):
        return f"{lr:g}"
    used = next((r["settings"]["learning_rates"] for r in results if "learning_rates" in r.get("settings", {})), lr)
    return " and ".join(f"{rate:g} for {kind} weights" for kind, rate in used.items())


def _model(model: Mapping[str, Any]) -> str:
    """Return the name of the model or of its towers, and how each was tuned."""
    if model["name"] is not None:
        towers = [f"{side} tower {model[side]['tune']}" for side in ("image", "text")]
        return f"{public_name(model['name'])}, tuned: {', '.join(towers)}"
    towers = [
        f"{side} tower {public_name(tower['name'])} ({tower['tune'] if tower['pretrained'] else 'random weights'})"
        for side in ("image", "text")
        if (tower := model[side])["name"] is not None
    ]
    return " and ".join(towers) + (f", new projections to {ModelRecipe(**model).space}" if len(towers) == 2 else "")


def _eval_results(result: Mapping[str, Any]) -> list[Any]:
    """Return the metrics of a result as entries of the Hub's model-index."""
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
    """Return the public name of a data source, without local folders and without credentials in URLs."""
    source = str(source).partition("?")[0]
    if source.startswith(("http://", "https://")):
        parts = urlsplit(source)
        return f"{parts.scheme}://{parts.hostname}{parts.path}"
    if source.startswith("hf:"):
        return source
    return PurePath(source).name or source


# Recipe keys whose values name models or data.
_MODELS = ("teacher", "tokenizer")
_DATA = ("train", "source", "validation", "labelled", "labelled_test", "retention", "output")


def _without_paths(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of the recipe with public names instead of local paths."""

    def short(key: str, value: Any, section: str) -> Any:
        if isinstance(value, Mapping):
            return {name: short(name, inner, section) for name, inner in value.items()}
        if isinstance(value, list):
            return [short(key, item, section) for item in value]
        if not isinstance(value, str):
            return value
        if key in _MODELS or (section == "model" and key == "name"):
            return public_name(value)
        return _short(value) if key in _DATA else value

    return {name: short(name, value, name) for name, value in recipe.items()}
