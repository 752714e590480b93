"""Suggestions for a name that does not exist."""

import difflib
from collections.abc import Iterable

_LISTED = 20


def closest(name: str, names: Iterable[str], count: int = 1) -> str:
    """Return advice for an unknown name: the most similar names, or a list of all names if none is similar.

    At most `count` similar names are suggested. Names that start with the unknown name count as the most similar.

    Example:
        >>> closest("infonse", ["infonce", "sigmoid"])
        'did you mean infonce?'
        >>> closest("x", ["infonce", "sigmoid"])
        'choose one of infonce, sigmoid'
    """
    known = sorted(names)
    near = [other for other in known if name and other.startswith(name)]
    near = (near or difflib.get_close_matches(name, known, count, cutoff=0.5))[:count]
    if near:
        return f"did you mean {' or '.join(near)}?"
    return f"choose one of {', '.join(known[:_LISTED])}{', …' * (len(known) > _LISTED)}"
