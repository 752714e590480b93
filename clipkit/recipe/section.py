"""Base class of all recipe sections."""

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from clipkit.errors import HALF

Count = Annotated[int, Field(ge=1, le=10**9)]
Width = Annotated[int, Field(ge=1, le=2**16)]
Weight = Annotated[float, Field(ge=1e-6, le=1e6)]
Temperature = Annotated[float, Field(ge=1e-3, le=1e3)]
Minutes = Annotated[float, Field(gt=0, le=525_600)]  # a year


class Section(BaseModel):
    """Base class of recipe sections, whose instances are read-only.

    Unknown keys are errors, numbers must be finite, and `true` is not accepted as the number 1.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _values_fit(cls, values: Any) -> Any:
        for name, field in cls.model_fields.items() if isinstance(values, Mapping) else ():
            value = values.get(name)
            parts: Iterable[Any] = value if isinstance(value, list | tuple) else ()
            if isinstance(value, Mapping) and get_origin(field.annotation) is dict:  # other mappings are sections
                parts = value.values()
            if any(isinstance(part, bool) for part in (value, *parts)) and not contains(field.annotation, bool, Any):
                raise _invalid(
                    name, value, "true and false (also yes, no, on, off) are not valid here; give another value"
                )
            if any(isinstance(part, str) and "\0" in part for part in (value, *parts)):
                raise _invalid(name, value, "it contains a NUL character; remove this character")
            if any(isinstance(part, str) and HALF.search(part) for part in (value, *parts)):
                raise _invalid(
                    name,
                    value,
                    "it contains half of a character (a lone surrogate); remove this character, or rename the file",
                )
        return values


def _invalid(name: str, value: object, reason: str) -> PydanticCustomError:
    """Return the error for an invalid value of a key; `first_problem` adds the section to the message."""
    return PydanticCustomError(
        "value_of_key", "{name} is {value}: {reason}", {"name": name, "value": repr(value), "reason": reason}
    )


def contains(kind: Any, *sought: Any) -> bool:
    """Return whether a type annotation is one of the types `sought`, or contains one, e.g. in a union."""
    return kind in sought or get_origin(kind) in sought or any(contains(part, *sought) for part in get_args(kind))


def kind_of_key(section: type[Section], key: str) -> Any:
    """Return the type annotation of a recipe key such as `data.train`; None for an unknown key."""
    name, _, rest = key.partition(".")
    field = section.model_fields.get(name)
    if field is None or not rest:
        return None if field is None else field.annotation
    sections = [kind for kind in (field.annotation, *get_args(field.annotation)) if isinstance(kind, type)]
    return next((kind_of_key(kind, rest) for kind in sections if issubclass(kind, Section)), None)
