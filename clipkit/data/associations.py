"""Association tests in the format of WinoGAViL: which of several candidate images fit a word?"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipkit.data.listed_images import listed_image, listing_of
from clipkit.errors import DataError
from clipkit.files import is_file
from clipkit.opening import read_text
from clipkit.parsing import parse_json

_ROLES = ("cue", "candidates", "associations")


@dataclass(frozen=True)
class Associations:
    """K association tests. Each test has a word and candidate images, some of which fit the word."""

    name: str
    images: list[Path]
    cues: list[str]
    candidates: list[list[int]]
    """For each word, the positions of its candidates in `images`."""
    right: list[list[bool]]
    """For each word and each of its candidates, True if the candidate belongs to the word."""


def read_associations(source: str | Path) -> Associations:
    """Read association tests from a JSONL file or from a JSON file that contains a list.

    Each row is an object with three fields: `cue`, a word; `candidates`, a list of image names; and `associations`, the
    names of the candidates that fit the word.

    Args:
        source: path of the file, or `twemoji:associations` for a built-in test. Image names are relative to the folder
            of the file, or to FOLDER in `winogavil.jsonl?images=FOLDER`. The file extension of an image may be omitted.

    Raises:
        DataError: the file, a value or an image is missing or invalid.
    """
    path, folder = listing_of(source)
    folder = folder or path.parent
    images: dict[Path, int] = {}
    cues, candidates, right = [], [], []
    for number, row in enumerate(_rows(path), 1):
        where = f"{path}: row {number}"
        values: list[Any] = [row.get(role) if isinstance(row, dict) else None for role in _ROLES]
        cue, shown, chosen = values
        if not isinstance(cue, str) or not cue.strip() or not _are_names(shown) or not _are_names(chosen):
            raise DataError(
                f"{where} needs a word in cue and lists of image names in candidates and associations; fix the row"
            )
        if not set(chosen) <= set(shown) or len(set(shown)) < len(shown):
            raise DataError(
                f"{where}: an association is not among the candidates, or a candidate is listed twice; fix the row"
            )
        cues.append(cue.strip())
        candidates.append([images.setdefault(listed_image(folder, one, path), len(images)) for one in shown])
        right.append([one in chosen for one in shown])
    return Associations(str(path), list(images), cues, candidates, right)


def _rows(path: Path) -> list[Any]:
    if not is_file(path) or path.suffix not in (".json", ".jsonl"):
        raise DataError(
            f"{path}: is not an existing JSON or JSONL file; give a file whose rows have the fields {', '.join(_ROLES)}"
        )
    try:
        text = read_text(path)
        rows = parse_json(text) if path.suffix == ".json" else [parse_json(line) for line in text.splitlines() if line]
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as JSON ({error}); fix the file") from None
    if not isinstance(rows, list) or not rows:
        raise DataError(f"{path}: has no rows; add objects with the fields {', '.join(_ROLES)}")
    return rows


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(one, str) for one in value)
