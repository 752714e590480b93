"""Base class of all recipe sections."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """Base class of recipe sections: read-only; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)
