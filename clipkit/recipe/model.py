"""The model of a recipe."""

import re
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, PositiveFloat, PositiveInt, model_validator

from clipkit.recipe.section import Section

TUNE_METHODS = {
    "full": "all parameters",
    "last:N": "the last N blocks and the projection",
    "head": "the projection",
    "frozen": "nothing but a new projection",
}
"""Tuning methods and what each of them trains; `clipkit.models.tuning` holds the code."""


def parse_tune(tune: str) -> tuple[str, int]:
    """Split a tuning method into its row of `TUNE_METHODS` and its number N, 0 if it takes none.

    >>> parse_tune("last:2")
    ('last:N', 2)
    """
    if tune in TUNE_METHODS and not tune.endswith(":N"):
        return tune, 0
    if (numbered := re.fullmatch(r"(\w+):([1-9]\d*)", tune)) and f"{numbered[1]}:N" in TUNE_METHODS:
        return f"{numbered[1]}:N", int(numbered[2])
    methods = ", ".join(f"{name} ({trains})" for name, trains in TUNE_METHODS.items())
    raise ValueError(f"{tune!r} is not a tuning method; use one of {methods}")


def _check_tune(tune: str) -> str:
    parse_tune(tune)
    return tune


Tune = Annotated[str, AfterValidator(_check_tune)]


class ImageTowerRecipe(Section):
    """The image tower."""

    name: str | None = None
    """`timm:NAME` or a folder that timm wrote; with a text tower's name it makes a composed model."""
    pretrained: bool = True
    tune: Tune = "full"
    image_size: PositiveInt | None = None
    """Side of the square input in pixels; the tower's own size where this is not given."""


class TextTowerRecipe(Section):
    """The text tower."""

    name: str | None = None
    """`hf:NAME` (a Hub repository; with `pretrained: false` also a model type such as hf:bert) or a folder."""
    pretrained: bool = True
    tune: Tune = "full"
    tokenizer: str | None = None
    """`open_clip:ARCH`, `hf:NAME` or a folder; the tower's own tokenizer where this is not given."""
    context_length: PositiveInt | None = None
    """Longest caption in tokens; what is longer is cut. The tokenizer's own limit where this is not given."""
    pooling: Literal["auto", "mean", "cls", "last"] = "auto"
    """How token states become one vector; auto takes what the folder says (sentence-transformers), else mean."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Of the tower's dropout layers in training. Above 0 the cut into micro-batches is part of the run."""
    config: dict[str, Any] = Field(default={})
    """With `pretrained: false`: values for the transformers configuration, as hidden_size or num_hidden_layers."""


class ModelRecipe(Section):
    """One whole dual encoder by `name`, two towers with new projections between them, or, for views, one tower."""

    name: str | None = None
    image: ImageTowerRecipe = ImageTowerRecipe()
    text: TextTowerRecipe = TextTowerRecipe()
    embed_dim: PositiveInt | None = None
    """Width of the shared space of a composed model; 512 where this is not given. One tower has a projection only where
    it is."""
    projection: Literal["linear", "mlp"] = "linear"
    """Of a composed model, after a LayerNorm: one linear map, or two with a GELU between them."""
    temperature: PositiveFloat | None = None
    """Starting temperature of a composed model, 1 / exp(logit_scale); 0.07 where this is not given."""
    bias: float | None = None
    """Starting logit bias of a composed model, for the sigmoid loss: -10 in SigLIP; without it there is none."""

    @model_validator(mode="after")
    def _one_way_to_name_a_model(self) -> Self:
        if self.name is None and self.image.name is None and self.text.name is None:
            raise ValueError("needs either name (a whole model) or both image.name and text.name (two towers)")
        if self.name is not None:
            own = {
                "image.name": self.image.name,
                "image.image_size": self.image.image_size,
                "text.name": self.text.name,
                "text.tokenizer": self.text.tokenizer,
                "text.context_length": self.text.context_length,
                "text.config": self.text.config or None,
                "embed_dim": self.embed_dim,
                "projection": self.projection if self.projection != "linear" else None,
                "temperature": self.temperature,
                "bias": self.bias,
            }
            given = [key for key, value in own.items() if value is not None]
            if given:
                raise ValueError(
                    f"{given[0]} is for two towers; the model {self.name} brings its own: remove one of the two"
                )
        return self

    def has(self, tower: str) -> bool:
        """Whether there is an image, or a text tower."""
        own = self.image.name if tower == "image" else self.text.name
        return self.name is not None or own is not None
