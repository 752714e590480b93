"""What every part of a recipe is."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A part of a recipe: read-only, and closed to unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)
