"""Search for images in an index of a dataset, by words, images and columns."""

from typing import TYPE_CHECKING

from clipkit.lazy import on_first_use

if TYPE_CHECKING:
    from clipkit.search.hit import Hit
    from clipkit.search.index import Index
    from clipkit.search.writing import embed

# Must list the same names as the imports above, which only type checkers run.
_NAMES = {"hit": "Hit", "index": "Index", "writing": "embed"}
__getattr__ = on_first_use(__name__, _NAMES)
