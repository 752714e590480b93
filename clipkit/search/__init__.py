"""Search: an index of a dataset's features, and queries by words, images and columns."""

from typing import TYPE_CHECKING

from clipkit.lazy import on_first_use

if TYPE_CHECKING:
    from clipkit.search.hit import Hit
    from clipkit.search.index import Index
    from clipkit.search.writing import embed

# Kept in step with the imports above, which type checkers read.
_NAMES = {"hit": "Hit", "index": "Index", "writing": "embed"}
__getattr__ = on_first_use(__name__, _NAMES)
