"""Suggested recipe: values with reasons, written as YAML with comments."""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from clipkit.errors import OutputError, printable
from clipkit.files import write_whole
from clipkit.findings import counted, percent
from clipkit.recipe import Recipe
from clipkit.suggestion.data_facts import DataFacts
from clipkit.suggestion.machine_facts import MachineFacts
from clipkit.suggestion.model_facts import ModelFacts
from clipkit.suggestion.situation import Choice

_WIDTH = 110
_SECTIONS = ("model", "data", "loss", "optim", "train", "eval", "output")


@dataclass(frozen=True)
class Suggestion:
    """Suggested recipe with a reason for each value, and the facts on which it is based.

    Example:
        >>> suggestion = suggest("photos.csv", "openai/clip-vit-base-patch32")    # doctest: +SKIP
        >>> suggestion.choices["optim.lr"].value                                  # doctest: +SKIP
        1e-05
        >>> suggestion.save("photos.yaml")                                        # doctest: +SKIP
    """

    data: DataFacts
    model: ModelFacts
    machine: MachineFacts
    choices: Mapping[str, Choice]
    """Recipe key, e.g. `optim.lr` -> chosen value with its reason."""

    @property
    def recipe(self) -> Recipe:
        """Recipe with the chosen values, for `clipkit.train`."""
        return Recipe.from_dict(_nested({key: choice.value for key, choice in self.choices.items()}), "suggestion")

    def to_yaml(self) -> str:
        """Return the recipe as YAML, with comments: the facts, and the reason and source of each value."""
        lines = [f"# {line}" if line else "#" for line in self._header()]
        values = _nested(dict(self.choices))
        for section in _SECTIONS:
            if section in values:
                lines += _lines({section: values[section]}, "")
        return "\n".join(lines) + "\n"

    def to_dict(self) -> dict[str, Any]:
        """Return the facts, the values with their reasons, and the recipe, as a dict of JSON values."""
        return {
            "task": "suggest",
            "data": asdict(self.data) | {"findings": [finding.to_dict() for finding in self.data.findings]},
            "model": asdict(self.model),
            "machine": asdict(self.machine),
            "choices": [{"key": key, **asdict(choice)} for key, choice in self.choices.items()],
            "recipe": self.recipe.model_dump(mode="json", exclude_unset=True),
        }

    def save(self, file: str | Path) -> None:
        """Write the recipe to a new YAML file.

        Raises:
            OutputError: the file exists or cannot be written.
        """
        if Path(file).exists():
            raise OutputError(
                f"{file}: already exists, and clipkit suggest does not overwrite files; give another file"
            )
        try:
            write_whole(Path(file), self.to_yaml())
        except OSError as error:
            raise OutputError(f"{file}: cannot be written ({error.strerror}); give another file") from None

    def _header(self) -> list[str]:
        data, model, machine = self.data, self.model, self.machine
        size = f"at least {data.images:,} images" if data.is_stream else counted(data.images, "image")
        per_image = f"{counted(data.classes or 0, 'class')}, {data.captions_per_image:g} templates"
        if not data.has_labels:
            per_image = f"{data.captions_per_image:g} caption{'s' * (data.captions_per_image != 1)} per image"
        examined = f" ({data.examined:,} opened)" if data.examined < data.images else ""
        gpu = "" if machine.has_gpu else ", no GPU"
        kind = "sigmoid loss (SigLIP)" if model.has_bias else "softmax loss (CLIP)"
        paragraphs = [
            "Suggested by `clipkit suggest`. The comment of each key gives the reason for its value, and the "
            "source of the reason. Edit the recipe, then run:",
            "",
            "  clipkit train RECIPE.yaml",
            "",
            f"Data: {data.source}: {size}{examined}, {per_image} of {data.caption_tokens:.0f} tokens, short side "
            f"{data.short_side:.0f} pixels; {percent(data.share_duplicates)} of the images have a duplicate",
            f"Model: {model.title}: {model.library}, {model.parameters / 1e6:.1f} M parameters in {model.blocks[0]} + "
            f"{model.blocks[1]} blocks, {'new projections' if model.is_new else kind}, {model.context_length} tokens, "
            f"{model.image_size or 'any'} pixels",
            f"Machine: {machine.device}, {counted(machine.cores, 'core')}, {machine.memory / 1e9:.1f} GB{gpu}",
        ]
        if advice := self._advice():
            paragraphs += ["", "Before you train:", *(f"- {line}" for line in advice)]
        return [
            line
            for text in paragraphs
            for line in textwrap.wrap(printable(text), _WIDTH, subsequent_indent="  ", break_on_hyphens=False) or [""]
        ]

    def _advice(self) -> list[str]:
        lines = [finding.line() for finding in self.data.findings]
        if "data.validation" not in self.choices:
            lines.append(
                "without validation data, the last weights are kept instead of those of the best epoch: set "
                "data.validation"
            )
        if "eval.retention" not in self.choices and not self.model.is_new:
            lines.append(
                "tuning makes a model worse on other data (a small model lost 15 of 87 points; "
                "docs/benchmarks.md, What does tuning forget?): set eval.retention to data on which the "
                "model should not get worse (clipkit suggest --retention D); the recipe then also mixes the "
                "weights before and after training"
            )
        elif "eval.retention" in self.choices and "eval.interpolate" not in self.choices:
            lines.append(
                "forgetting is measured, but not limited: a mixture of the weights before and after training "
                "needs validation data and a pretrained whole model"
            )
        return lines


def _nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Convert a dict with dotted keys, such as `optim.lr`, to nested dicts.

    >>> _nested({"a.b.c": 1, "a.d": 2})
    {'a': {'b': {'c': 1}, 'd': 2}}
    """
    nested: dict[str, Any] = {}
    for key, value in values.items():
        *sections, last = key.split(".")
        inner = nested
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[last] = value
    return nested


def _lines(values: Mapping[str, Any], indent: str) -> list[str]:
    lines: list[str] = []
    for key, value in values.items():
        if isinstance(value, Choice):
            source = f" ({value.source})" if value.source else ""
            mark = f"{indent}# "
            lines += textwrap.wrap(
                printable(value.reason) + source,
                _WIDTH,
                initial_indent=mark,
                subsequent_indent=mark,
                break_on_hyphens=False,
            )
            lines.append(f"{indent}{key}: {_scalar(value.value)}")
        else:
            lines += [f"{indent}{key}:", *_lines(value, f"{indent}  ")]
    return lines


def _scalar(value: bool | float | str | Sequence[Any]) -> str:
    """Return a value as one line of YAML. 1e-05 becomes 1.0e-05, because YAML reads 1e-05 as a string."""
    if isinstance(value, float) and "e" in repr(value) and "." not in repr(value):
        mantissa, exponent = repr(value).split("e")
        return f"{mantissa}.0e{exponent}"
    text: str = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10**6)
    return text.removesuffix("\n").removesuffix("\n...")
