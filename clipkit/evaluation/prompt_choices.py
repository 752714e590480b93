"""Effect of the prompts on zero-shot accuracy: other class names and other templates on the same images."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from clipkit.data import Templates, prompts_of, read_templates
from clipkit.embedding.features import Features
from clipkit.evaluation.classifier import TEMPLATES, ClassNames, classifier_of, prompt_features
from clipkit.evaluation.figures import Column, Queries, figures
from clipkit.metrics import similarity
from clipkit.models.token_counts import token_counter

_NUMBERED = re.compile(r"^\d+[.\s_-]+(?=\D)")  # CUB: 001.Black_footed_Albatross
_JOINED = re.compile(r"(?<=[a-z])(?=[A-Z])")  # EuroSAT: AnnualCrop


def cleaned(name: str) -> str:
    """Return a class name as separate words: without a leading number, without underscores, and with CamelCase split.

    Example:
        >>> [cleaned(name) for name in ("001.Black_footed_Albatross", "AnnualCrop", "ice cream", "7")]
        ['Black footed Albatross', 'Annual Crop', 'ice cream', '7']
    """
    words = _JOINED.sub(" ", _NUMBERED.sub("", name.strip()))
    return " ".join(re.split(r"[\s_]+", words)).strip() or name


@dataclass(frozen=True)
class _Choice:
    names: str
    title: str
    classes: ClassNames
    templates: Templates

    def prompts(self) -> list[str]:
        """Return the distinct prompts of all classes."""
        pairs = zip(self.classes.labels, self.classes.names, strict=True)
        return list(dict.fromkeys(one for label, names in pairs for one in prompts_of(label, names, self.templates)))


def _title(templates: Templates, known: Mapping[str, Templates]) -> str:
    if isinstance(templates, Mapping):
        return "sentences per class"
    same = (title for title, others in known.items() if list(others) == list(templates))
    return next(same, f"{len(templates)} given")


def prompt_choices(
    features: Features,
    classes: ClassNames,
    templates: Templates,
    image_features: Float[Tensor, "N D"],
    labels: Int[Tensor, " N"],
) -> list[dict[str, Any]]:
    """Return the zero-shot accuracy with the user's prompts and with several common prompts.

    The first row is for the user's prompts. The other rows combine class names with templates. The class names are the
    given names and, if they differ, the cleaned names (see `cleaned`). The templates are `{c}` (the class name alone),
    the default template, and CLIP's sets of 7 and 80 templates.

    Returns:
        One dict per row:

        - names: "given" or "cleaned".
        - templates: description of the templates.
        - prompts: number of distinct prompts.
        - cut: number of prompts that are longer than the context of the text tower.
        - acc1: top-1 accuracy.
        - difference: accuracy minus the accuracy of the first row.
        - low, high: ends of the paired 95 % interval of the difference.
    """
    known: dict[str, Templates] = {
        "none": ["{c}"],
        "1 (default)": TEMPLATES,
        "7 (CLIP's best)": read_templates("imagenet_simple"),
        "80 (CLIP's)": read_templates("imagenet"),
    }
    plain = replace(classes, names=[[cleaned(name) for name in names] for names in classes.names])
    variants = {"given": classes} | ({"cleaned": plain} if plain.names != classes.names else {})
    rows = [_Choice("given", _title(templates, known), classes, templates)]
    for kind, names in variants.items():
        for title, of_title in known.items():
            if kind != "given" or list(of_title) != list(templates) or isinstance(templates, Mapping):
                rows.append(_Choice(kind, title, names, of_title))
    count = token_counter(features.model)
    context = features.model.text.tokenize.context_length
    measured: list[dict[str, Any]] = []
    first: np.ndarray[Any, Any] | None = None
    for row in rows:
        prompts = row.prompts()
        classifier = classifier_of(prompt_features(features, row.classes, row.templates))
        right = (similarity(image_features, classifier).argmax(dim=1).cpu() == labels.cpu()).double().numpy()
        first = right if first is None else first
        difference = figures({"acc1": Column(Queries(np.arange(len(right))), right - first)}, {})["acc1"]
        measured.append(
            {
                "names": row.names,
                "templates": row.title,
                "prompts": len(prompts),
                "cut": sum(length > context for length in count(prompts)),
                "acc1": float(right.mean()),
                "difference": difference["value"],
                "low": difference["low"],
                "high": difference["high"],
            }
        )
    return measured
