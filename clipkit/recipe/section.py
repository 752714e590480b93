"""The base class of every part of a recipe."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A section of a recipe: read-only; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)
