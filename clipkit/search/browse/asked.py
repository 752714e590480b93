"""Requests of the web page, as classes that check their values."""

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from clipkit.errors import UserError

_Text = Annotated[str, Field(max_length=2000)]
_Row = Annotated[int, Field(ge=0)]
_Model = TypeVar("_Model", bound=BaseModel)
MOST_DROPPED = 100_000
MOST_ROWS = 20_000


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Query(_Strict):
    """Description of a list that the page shows, e.g. results of a search, near duplicates or outliers."""

    view: Literal["search", "all", "duplicates", "outliers", "captions", "labels", "rows"]
    index: int = Field(0, ge=0, le=1)
    words: list[_Text] = Field([], max_length=20)
    minus: list[_Text] = Field([], max_length=20)
    like: list[_Row] = Field([], max_length=20)
    images: list[_Text] = Field([], max_length=4)
    where: _Text = ""
    precision: float | None = Field(None, gt=0, lt=1)
    at_least: float = Field(0.97, ge=0, le=1)
    column: _Text = ""
    """Column with the labels, for a list of doubtful labels."""
    rows: list[_Row] = Field([], max_length=MOST_ROWS)
    """Rows to list, e.g. those selected on the map."""


class Compared(_Strict):
    """Request to search two indexes. Images are given by their rows in the first index."""

    query: Query
    count: int = Field(20, ge=1, le=100)


class Part(_Strict):
    """Part of a list: the position of its first item, and the number of items."""

    start: int = Field(0, ge=0)
    count: int = Field(60, ge=1, le=200)


class Asked(Part):
    """Request for part of a list."""

    query: Query


class Mapped(_Strict):
    """Request for the map of an index.

    The filter `where` selects images, and the labels in the column `color` determine the colors.
    """

    index: int = Field(0, ge=0, le=1)
    where: _Text = ""
    color: _Text = ""


class Dropped(_Strict):
    """An image or a caption that the user has marked to drop.

    `clipkit data check --fix --drop` reads a list of such entries.
    """

    row: int = Field(ge=0)
    caption: int | None = Field(None, ge=0)
    """Position of the caption among the captions of the image, from 0; None: the image with all captions."""
    reason: str = Field("", max_length=200)


class DropList(_Strict):
    """List of images and captions that the user has marked to drop."""

    index: int = Field(0, ge=0, le=1)
    entries: list[Dropped] = Field(max_length=MOST_DROPPED)


def parsed(kind: type[_Model], body: bytes) -> _Model:
    """Parse a JSON request as an object of the class `kind`.

    Raises:
        UserError: the request is not valid.
    """
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        first: Any = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"]))
        raise UserError(f"{key or 'the request'} is not valid: {first['msg']}; reload the page") from None
