"""Function `suggest`: examine the data, the model and the machine, and choose the values of a recipe."""

import re
from pathlib import Path
from typing import Any

from clipkit.data.pairs import read_pairs
from clipkit.data.sources.columns import split_options
from clipkit.errors import ModelError
from clipkit.suggestion.data_facts import data_facts, with_templates
from clipkit.suggestion.machine_facts import machine_facts
from clipkit.suggestion.model_facts import model_facts
from clipkit.suggestion.rules import RULES
from clipkit.suggestion.situation import Choice, Situation
from clipkit.suggestion.written import Suggestion

_LABELS = (
    "the captions of an image are templates, filled with its class name; to change the templates, write templates=FILE"
)


def suggest(
    data: str,
    model: str | None = None,
    *,
    image_tower: str | None = None,
    text_tower: str | None = None,
    validation: str | None = None,
    retention: str | None = None,
) -> Suggestion:
    """Suggest a recipe for this data, this model and this machine, with a reason for each key.

    Give either `model`, or both `image_tower` and `text_tower`. Up to 2,000 images are opened. Nothing is trained or
    written.

    Args:
        data: source of images with captions or labels, any value of the recipe key `data.train`.
        model: name of a pretrained model, any value of `model.name`.
        image_tower: name of an image tower, any value of `model.image.name`.
        text_tower: name of a text tower, any value of `model.text.name`.
        validation: source of validation data; None: a share of the training images.
        retention: data on which the model should not get worse. With this data, the recipe interpolates between the
            weights before and after training.

    Raises:
        UserError: the data or the model cannot be read or does not fit, or model and towers are both given or missing.

    Example:
        >>> suggestion = clipkit.suggest("photos.csv", "openai/clip-vit-base-patch32")    # doctest: +SKIP
        >>> print(suggestion.to_yaml())                                                   # doctest: +SKIP
        >>> clipkit.train(suggestion.recipe)                                              # doctest: +SKIP
    """
    if (model is None) == (image_tower is None and text_tower is None):
        raise ModelError(
            "give either a model (--model), or an image tower and a text tower (--image-tower and --text-tower)"
        )
    measured, token_counts = model_facts(model, image_tower, text_tower)
    facts = data_facts(data, token_counts, measured.context_length, measured.image_size)
    if validation is not None:
        validation = with_templates(validation, read_pairs(validation))
    choices = {key: Choice(name) for key, name in measured.names.items()}
    choices["data.train"] = Choice(facts.source, _LABELS if facts.has_labels else "")
    machine, chosen = machine_facts(), dict[str, Any]()
    for rule in RULES:
        choice = rule.choose(Situation(facts, measured, machine, validation, retention, chosen))
        if choice is not None:
            chosen[rule.key], choices[rule.key] = choice.value, choice
    choices["output"] = Choice(_run_folder(data), "the new folder of the run")
    return Suggestion(facts, measured, machine, choices)


def _run_folder(data: str) -> str:
    """Return an unused run folder in `runs`, named after the data."""
    name = split_options(data)[0].rstrip("/").rpartition("/")[2].rpartition(":")[2].partition(".")[0]
    stem = re.sub(r"[^\w-]+", "_", name).strip("_-") or "suggested"
    names = (f"runs/{stem}" if number == 1 else f"runs/{stem}_{number}" for number in range(1, 10**6))
    return next(folder for folder in names if not Path(folder).exists())
