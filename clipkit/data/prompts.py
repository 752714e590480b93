"""Class names and prompts for zero-shot classification, read from files or built in."""

from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path

from clipkit.errors import DataError
from clipkit.files import is_file
from clipkit.opening import read_text
from clipkit.parsing import parse_json

# Templates with {c} for the class name; or a list of prompts for each class (Pratt et al. 2023, CuPL).
Templates = Sequence[str] | Mapping[str, Sequence[str]]
# Class names that are also the labels; or one or several names for each label.
Classes = Sequence[str] | Mapping[str, str | Sequence[str]]

_NAMED_TEMPLATES = {"imagenet": "OPENAI_IMAGENET_TEMPLATES", "imagenet_simple": "SIMPLE_IMAGENET_TEMPLATES"}


def read_classes(source: str) -> Classes:
    """Read class names from a file, or return a built-in list.

    Args:
        source: a text file with one name per line; a JSON file with a list of names, or an object that maps each label
            to a name or several names; or `imagenet`, the 1,000 classes by WordNet ID with the names of open_clip.

    Raises:
        DataError: the file or set is missing or has another format.
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
        f"{source}: write a list of names, or an object that maps each label to its names, such as "
        '{"n02123045": ["tabby"]}'
    )


def read_templates(source: str) -> Templates:
    """Read prompts from a file, or return a built-in list.

    Args:
        source: a text file with one prompt per line, with `{c}` for the class; a JSON file with a list of prompts, or
            an object that maps each class to its prompts; or `imagenet` and `imagenet_simple`, CLIP's 80 and 7 prompts.

    Raises:
        DataError: the file or set is missing or has another format.
    """
    if source in _NAMED_TEMPLATES and not Path(source).exists():
        import open_clip

        return [template("{c}") for template in getattr(open_clip, _NAMED_TEMPLATES[source])]
    content = _lines_or_json(source, "prompts", list(_NAMED_TEMPLATES))
    match content:
        case list() if content and _are_strings(content):
            return content
        case dict() if content and all(_are_strings(sentences) for sentences in content.values()):
            return content
    raise DataError(
        f"{source}: write a list of prompts, or an object that maps each class to its prompts, such as "
        '{"cat": ["a cat", "a sleeping cat"]}'
    )


def read_lines(path: Path) -> list[str]:
    """Return the lines of a text file that are not empty.

    Raises:
        DataError: the file cannot be read, or is empty.
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


def prompts_of(label: str, names: Sequence[str], templates: Templates) -> list[str]:
    """Return the prompts of a class: every name inserted into every template, or the prompts listed for the class.

    Raises:
        DataError: a template has no {c}, or no prompts are listed for the class.
    """
    if isinstance(templates, Mapping):
        sentences = templates.get(label) or templates.get(names[0])
        if not sentences:
            raise DataError(f"the class {names[0]!r} has no prompts; give at least one")
        return list(sentences)
    for template in templates:
        if "{c}" not in template and "{}" not in template:
            raise DataError(f"the template {template!r} has no {{c}} for the class name; add it")
    return [template.replace("{c}", name).replace("{}", name) for name in names for template in templates]


def _lines_or_json(source: str, what: str, named: list[str]) -> object:
    """Return the content of a JSON file, or the lines of another file."""
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
        raise DataError(f"{path}: is not valid JSON ({error}); fix it") from None


def _are_strings(content: object) -> bool:
    return isinstance(content, list) and all(isinstance(text, str) for text in content)
