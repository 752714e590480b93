"""Class names and prompts for zero-shot classification, read from files or built in."""

import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path

from clipkit.errors import DataError
from clipkit.files import is_file
from clipkit.findings import Finding
from clipkit.opening import read_text
from clipkit.parsing import parse_json

# Templates, in which {c} is replaced by the class name; or a list of prompts for each class (Pratt et al. 2023, CuPL).
Templates = Sequence[str] | Mapping[str, Sequence[str]]
# Class names that equal the labels; or one or several names for each label.
Classes = Sequence[str] | Mapping[str, str | Sequence[str]]

_OF_IMAGENET = 1000
_NAMED_TEMPLATES = {"imagenet": "OPENAI_IMAGENET_TEMPLATES", "imagenet_simple": "SIMPLE_IMAGENET_TEMPLATES"}


def read_classes(source: str) -> Classes:
    """Return class names from a file, or the built-in class names of ImageNet.

    Args:
        source: a text file with one name per line; a JSON file with a list of names, or with an object that maps each
            label to one or several names; or `imagenet` for the names that open_clip uses, by WordNet ID.

    Raises:
        DataError: there is no such file or list, or its format is not supported.
    """
    if source == "imagenet" and not Path(source).exists():
        from open_clip import IMAGENET_CLASSNAMES

        synsets = (files("timm.data._info") / "imagenet_synsets.txt").read_text(encoding="utf-8").split()
        return dict(zip(synsets, IMAGENET_CLASSNAMES, strict=True))
    content = _lines_or_json(source, "class names", ["imagenet"])
    match content:
        case list() if content and _are_strings(content):
            return content
        case dict() if content and all(
            isinstance(names, str) or (_are_strings(names) and names) for names in content.values()
        ):
            return content
    raise DataError(
        f"{source}: does not contain class names; write a list of names, or an object that maps each label to its "
        'names, such as {"n02123045": ["tabby"]}'
    )


def read_templates(source: str) -> Templates:
    """Return prompt templates from a file, from a string, or from the built-in lists of CLIP.

    Args:
        source: one of the following. A single template, such as `a picture of {c}`, where `{c}` stands for the class.
            A text file with one template per line. A JSON file with a list of templates, or with an object that maps
            each class to its prompts. `imagenet` or `imagenet_simple`: CLIP's 80 or 7 templates.

    Raises:
        DataError: there is no such file or list, or its format is not supported.
    """
    if source in _NAMED_TEMPLATES and not Path(source).exists():
        import open_clip

        return [template("{c}") for template in getattr(open_clip, _NAMED_TEMPLATES[source])]
    if ("{c}" in source or "{}" in source) and not is_file(Path(source)) and not source.endswith((".txt", ".json")):
        return [source]
    content = _lines_or_json(source, "prompts", [*_NAMED_TEMPLATES, "or a prompt that contains {c}"])
    match content:
        case list() if content and _are_strings(content):
            return content
        case dict() if content and all(_are_strings(sentences) for sentences in content.values()):
            return content
    raise DataError(
        f"{source}: does not contain prompts; write a list of prompts, or an object that maps each class to its "
        'prompts, such as {"cat": ["a cat", "a sleeping cat"]}'
    )


def read_queries(source: str) -> list[str]:
    """Return the lines of a text file as search queries, or the given text as a single query.

    Args:
        source: an existing file, a name that ends in .txt, or a query.

    Raises:
        DataError: the file is missing, empty or unreadable.
    """
    file = Path(source)
    if is_file(file):
        return read_lines(file)
    if source.endswith(".txt"):
        raise DataError(f"{source}: file not found; give a text file with one query per line, or a single query")
    return [source]


def read_lines(path: Path) -> list[str]:
    """Return the nonempty lines of a text file, without surrounding spaces.

    Raises:
        DataError: the file is empty or unreadable.
    """
    try:
        lines = [line.strip() for line in read_text(path).splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path}: cannot be read as a text file ({error}); give a UTF-8 file with one entry per line"
        ) from None
    if not lines:
        raise DataError(f"{path}: is empty; write one entry per line")
    return lines


def paired_names(where: str, labels: Sequence[str], classes: Classes) -> dict[str, str]:
    """Return a mapping from each label to its class name.

    The first of these rules that fits is applied:
    1. `classes` is a mapping that contains all labels.
    2. The names equal the labels, apart from case, hyphens and underscores.
    3. The labels are numbers, which are positions in the list of names (see `positions_of_numbers`). In this case, the
       result also contains names whose number is not among the labels.
    4. `classes` is a list with as many names as there are labels. Names and labels are paired in order.

    Args:
        where: location of the names, for messages.
        labels: labels of the data, in alphabetical order.
        classes: a list of names, or a mapping from labels to names. If a label has several names, the first is used.

    Raises:
        DataError: the names do not fit the labels.

    Example:
        >>> paired_names("names.txt", ["1", "10", "2"], ["ant", "bee", "cat"])
        {'1': 'ant', '2': 'bee', '10': 'cat'}
    """
    if isinstance(classes, Mapping):
        first = {label: names if isinstance(names, str) else names[0] for label, names in classes.items()}
        if all(label in first for label in labels):
            return {label: first[label] for label in labels}
        names = list(first.values())
    else:
        names = list(classes)
    plain = {_plain(name): name for name in names}
    if len(plain) == len(names) and {_plain(label) for label in labels} == plain.keys():
        return {label: plain[_plain(label)] for label in labels}
    numbered = positions_of_numbers(labels, len(names))
    if numbered is not None:
        label_at = {position: label for label, position in numbered.items()}
        shift = int(labels[0]) - numbered[labels[0]]
        return {label_at.get(position, str(position + shift)): name for position, name in enumerate(names)}
    if isinstance(classes, Mapping):
        unnamed = next(label for label in labels if label not in classes)
        raise DataError(f"{where}: has no name for the class {unnamed!r}; give a name for each class")
    if len(names) == len(labels):
        return dict(zip(labels, names, strict=True))
    raise DataError(
        f"{where}: has {len(names)} names for {len(labels)} classes ({labels[0]!r}, …); give one name per line, in the "
        "alphabetical order of the classes (in numerical order if the classes are numbers)"
    )


def positions_of_numbers(labels: Sequence[str], count: int) -> dict[str, int] | None:
    """Return the position of each label in a list of `count` classes, if all labels are numbers.

    - With `count` labels, the labels in numerical order have the positions 0, 1, …
    - With fewer labels from 0 to at most `count` − 1, with 0 among them, the position is the label.
    - With fewer labels from 1 to `count`, with `count` among them, the position is the label minus 1.
    - Otherwise, the result is None.
    """
    if not labels or not all(label.isdecimal() for label in labels) or len(set(map(int, labels))) < len(labels):
        return None
    ordered = sorted(labels, key=int)
    low, high = int(ordered[0]), int(ordered[-1])
    if len(labels) == count:
        return {label: position for position, label in enumerate(ordered)}
    if (low == 0 and high < count) or (low > 0 and high == count):
        return {label: int(label) - (low > 0) for label in ordered}
    return None


def code_findings(name: str, classes: Sequence[str]) -> list[Finding]:
    """Report class names that are numbers or WordNet IDs, which would make meaningless prompts."""
    codes = [one for one in classes if re.fullmatch(r"n\d{8}", one)]
    numbers = [one for one in classes if re.fullmatch(r"\d+(\.\d*)?", one)]
    if not codes and len(numbers) < len(classes):
        return []
    what, example = ("WordNet IDs", codes[0]) if codes else ("numbers", numbers[0])
    table = "ImageNet's names (classes=imagenet)" if codes or len(classes) == _OF_IMAGENET else ""
    return [
        Finding(
            "coded_class_names",
            "warning",
            f"{name}: the class names are {what}, which give prompts such as 'a photo of a {example}.'",
            f"give {table}{', or ' * bool(table)}a file of names (classes=FILE): add ?classes=… to the data, or use "
            "--classes …; next to class folders, a file classnames.txt also works",
            count=len(codes or numbers),
            share=len(codes or numbers) / len(classes),
            examples=tuple((codes or numbers)[:3]),
        )
    ]


def _plain(name: str) -> str:
    return " ".join(re.split(r"[\s_-]+", name.casefold()))


def prompts_of(label: str, names: Sequence[str], templates: Templates) -> list[str]:
    """Return the prompts of a class.

    If `templates` is a list, each of the class's `names` is inserted into each template. If `templates` is a mapping,
    the result is the list of prompts for `label`, or for the first name.

    Raises:
        DataError: a template has no {c}, or the mapping has no prompts for the class.
    """
    if isinstance(templates, Mapping):
        sentences = templates.get(label) or templates.get(names[0])
        if not sentences:
            raise DataError(f"the class {names[0]!r} has no prompts; add at least one prompt for this class")
        return list(sentences)
    for template in templates:
        if "{c}" not in template and "{}" not in template:
            raise DataError(f"the prompt {template!r} has no {{c}} for the class name; add {{c}}")
    return [template.replace("{c}", name).replace("{}", name) for name in names for template in templates]


def _lines_or_json(source: str, what: str, named: list[str]) -> object:
    """Return the content of a JSON file, or the lines of a text file.

    If the file is missing, the error message suggests the built-in lists: `what` says what they contain, and `named`
    has their names.
    """
    path = Path(source)
    if not is_file(path):
        raise DataError(
            f"{source[:80]}: file not found; give a file, or one of the built-in {what}: {', '.join(named)}"
        )
    if path.suffix != ".json":
        return read_lines(path)
    try:
        return parse_json(read_text(path))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: is not valid JSON ({error}); fix the file") from None


def _are_strings(content: object) -> bool:
    return isinstance(content, list) and all(isinstance(text, str) for text in content)
