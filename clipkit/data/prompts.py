"""Class names and prompts for zero-shot classification, from files or by name."""

import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path

from clipkit.errors import DataError

# Prompts with {c} where the class name goes; or for each class its own sentences (Pratt et al. 2023, CuPL).
Templates = Sequence[str] | Mapping[str, Sequence[str]]
# Class names, which the labels are; or for each label its name, or several.
Classes = Sequence[str] | Mapping[str, str | Sequence[str]]

_NAMED_TEMPLATES = {"imagenet": "OPENAI_IMAGENET_TEMPLATES", "imagenet_simple": "SIMPLE_IMAGENET_TEMPLATES"}


def read_classes(source: str) -> Classes:
    """Class names to choose among.

    Args:
        source: a text file with a name a line; a JSON file, a list of names or an object of label to name or names;
            or `imagenet`, the 1,000 classes by WordNet id with the names that open_clip uses.

    Raises:
        DataError: there is no such file or set, or it does not hold that.
    """
    if source == "imagenet" and not Path(source).exists():
        from open_clip import IMAGENET_CLASSNAMES

        synsets = (files("timm.data._info") / "imagenet_synsets.txt").read_text(encoding="utf-8").split()
        return dict(zip(synsets, IMAGENET_CLASSNAMES, strict=True))
    if not source.endswith(".json"):
        return read_lines(_existing(source, "class names", ["imagenet"]))
    own = _json(_existing(source, "class names", ["imagenet"]))
    wrong = DataError(
        f'{source}: must be a list of names, or an object of label to name or names, as {{"n02123045": ["tabby"]}}'
    )
    match own:
        case list() if own and all(isinstance(name, str) for name in own):
            return own
        case dict() if own and all(isinstance(names, str) or (_sentences(names) and names) for names in own.values()):
            return own
    raise wrong


def read_templates(source: str) -> Templates:
    """Prompts.

    Args:
        source: a text file with a prompt a line, `{c}` standing for the class; a JSON file, a list of prompts or an
            object of class to sentences; or `imagenet` and `imagenet_simple`, CLIP's 80 and 7 prompts.

    Raises:
        DataError: there is no such file or set, or it does not hold that.
    """
    if source in _NAMED_TEMPLATES and not Path(source).exists():
        import open_clip

        return [template("{c}") for template in getattr(open_clip, _NAMED_TEMPLATES[source])]
    file = _existing(source, "prompts", list(_NAMED_TEMPLATES))
    if file.suffix != ".json":
        return read_lines(file)
    own = _json(file)
    if isinstance(own, list) and own and _sentences(own):
        return own
    if isinstance(own, dict) and own and all(_sentences(sentences) for sentences in own.values()):
        return own
    raise DataError(
        f"{file}: must be a list of prompts, or an object of class to sentences, as "
        '{"cat": ["a cat", "a sleeping cat"]}'
    )


def read_lines(path: Path) -> list[str]:
    """The lines of a text file that are not empty.

    Raises:
        DataError: it cannot be read, or has none.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as lines of text ({error})") from None
    if not lines:
        raise DataError(f"{path}: is empty; write one entry a line")
    return lines


def prompts_of(label: str, names: Sequence[str], templates: Templates) -> list[str]:
    """All prompts of one class: every name in every template, or its own sentences.

    Raises:
        DataError: a template has no place for the name, or the class has no sentences.
    """
    if isinstance(templates, Mapping):
        own = templates.get(label) or templates.get(names[0])
        if not own:
            raise DataError(
                f"the class-specific prompts have none for {names[0]!r}; give at least one sentence a class"
            )
        return list(own)
    for template in templates:
        if "{c}" not in template and "{}" not in template:
            raise DataError(f"the template {template!r} has no place for the class name; write {{c}} where it goes")
    return [template.replace("{c}", name).replace("{}", name) for name in names for template in templates]


def _existing(source: str, what: str, named: list[str]) -> Path:
    try:
        if Path(source).is_file():
            return Path(source)
    except OSError:  # too long for a name
        pass
    raise DataError(f"{source[:80]}: cannot be read, there is no such file; {what} by name are {', '.join(named)}")


def _json(path: Path) -> object:
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: is not valid JSON ({error})") from None


def _sentences(own: object) -> bool:
    return isinstance(own, list) and all(isinstance(sentence, str) for sentence in own)
