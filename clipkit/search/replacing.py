"""Protection of an index from being replaced by mistake."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from clipkit.errors import OutputError

_NOUNS = {"image": "images", "text": "distinct captions"}


def check_not_replaced(
    folder: Path, source: str | None, before: Mapping[str, Mapping[bytes, int]], now: Mapping[str, Iterable[bytes]],
    former: Mapping[str, Any] | None,
) -> None:  # fmt: skip
    """Check that data from another source keep at least half of the images and captions of an index.

    Args:
        folder: folder of the index.
        source: source of the new data. None for a Python object, which is not checked.
        before: for each kind ("image", "text"), the keys (SHA-256) in the index with their rows.
        now: for each kind, the keys of the new data.
        former: manifest of the index; None for a new index.

    Raises:
        OutputError: more than half of the images or distinct captions would be removed.
    """
    if former is None or None in (source, former["source"]) or source == former["source"]:
        return
    for kind, rows in before.items():
        lost = len(rows.keys() - set(now[kind]))
        if 2 * lost > len(rows):
            raise OutputError(
                f"{folder}: was made from {former['source']}, and {source} would remove {lost:,} of the "
                f"{len(rows):,} {_NOUNS[kind]} of the index; give another folder with --out, or delete the index first"
            )
