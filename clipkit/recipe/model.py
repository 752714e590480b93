"""Recipe section `model`: a complete dual encoder, or two towers with new projections."""

import re
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from clipkit.recipe.layers import Layers, check_tower
from clipkit.recipe.lora import LoraRecipe
from clipkit.recipe.section import Section, Temperature, Width

TUNE_METHODS = {
    "full": "all parameters",
    "last:N": "the last N blocks and the projection",
    "head": "the projection",
    "lora": "low-rank adapters of linear layers, and a new projection",
    "dora": "low-rank adapters with magnitudes of rows, and a new projection",
    "frozen": "only a new projection",
}
"""Tuning methods with the parameters that each of them trains; implemented in `clipkit.models.tuning`."""

ADAPTER_METHODS = ("lora", "dora")
"""Tuning methods that add adapters to frozen weights."""


def parse_tune(tune: str) -> tuple[str, int]:
    """Split a tuning method such as `last:2` into its key in `TUNE_METHODS` and its number (0 if none).

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
    """Settings of the image tower."""

    name: str | None = None
    """`timm:NAME` or a folder written by timm. `image.name` and `text.name` together define a new model of two towers.
    """
    pretrained: bool = True
    tune: Tune = "full"
    lora: LoraRecipe = LoraRecipe()
    """Adapters of `tune: lora` and `tune: dora`."""
    image_size: Width | None = None
    """Side of the square input in pixels. null: the default size of the tower."""
    layers: Layers | None = None
    """Layers whose concatenated outputs are the input of the projection, e.g. [output, mean:4, probabilities]; see
    docs/two_towers.md. auto: selected by the retrieval results on a part of the training pairs. null: auto with
    `start: cca`, otherwise only the tower's output.
    """


class TextTowerRecipe(Section):
    """Settings of the text tower."""

    name: str | None = None
    """`hf:NAME` (a Hub repository; with `pretrained: false` also a model type such as hf:bert) or a folder."""
    pretrained: bool = True
    tune: Tune = "full"
    lora: LoraRecipe = LoraRecipe()
    """Adapters of `tune: lora` and `tune: dora`."""
    tokenizer: str | None = None
    """`open_clip:ARCH`, `hf:NAME` or a folder. null: the tokenizer of the tower."""
    context_length: int | None = Field(default=None, ge=1, le=10**6)
    """Maximum number of tokens; longer captions are truncated. null: the limit of the tokenizer."""
    pooling: Literal["auto", "mean", "cls", "last"] = "auto"
    """Pooling of the token states into one vector. auto: the pooling configured in a sentence-transformers folder,
    otherwise mean."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Rate of the tower's dropout layers in training. If above 0, the result depends on micro_batch_size."""
    layers: Layers | None = None
    """Layers whose concatenated outputs are the input of the projection, e.g. [mean:6, mean:5, cls, max]. auto and
    null: as for the image tower."""
    config: dict[str, Any] = Field(default={})
    """Values of the tower's transformers configuration, e.g. {hidden_size: 256}; only with `pretrained: false`."""


class ModelRecipe(Section):
    """Settings of the model: a complete dual encoder (`name`), or one or two towers with new projections."""

    name: str | None = None
    image: ImageTowerRecipe = ImageTowerRecipe()
    text: TextTowerRecipe = TextTowerRecipe()
    embed_dim: Width | None = None
    """Dimension of the features that new projections compute. null: 512 with two towers (with `start: cca`, the number
    of coordinates that it chooses, at most 256); no projection with one tower. With `start: cca`, a larger number adds
    features that stay zero."""
    projection: Literal["linear", "mlp", "residual"] = "linear"
    """New projections. linear: LayerNorm, linear layer (with `start: cca`, without LayerNorm); mlp: LayerNorm, linear
    layer, GELU, linear layer; residual, only with `start: cca`: linear, plus two layers whose output is initially 0.
    """
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout rate of new projections with `start: cca`: on the input features of `projection: linear`, or in the
    hidden layer of `residual`."""
    start: Literal["auto", "random", "cca"] = "auto"
    """Initialization of the projections of two towers. cca: regularized canonical correlation analysis of the features
    of all training pairs, in closed form. auto: cca if both towers are pretrained and frozen and the objective is
    captions, otherwise random."""
    temperature: Temperature | None = None
    """Initial temperature of a model of two towers, 1 / exp(logit_scale). null: 0.07."""
    bias: float | None = Field(default=None, ge=-1000, le=1000)
    """Initial logit bias of a model of two towers, for the sigmoid loss; -10 in SigLIP. null: no bias."""

    @model_validator(mode="after")
    def _one_way_to_name_a_model(self) -> Self:
        if self.name is None and self.image.name is None and self.text.name is None:
            raise ValueError(
                "is empty; set model.name (a whole model), or model.image.name and model.text.name (two towers)"
            )
        check_tower(self.image.layers, "image")
        check_tower(self.text.layers, "text")
        if self.name is not None:
            of_towers = {
                "image.layers": self.image.layers,
                "text.layers": self.text.layers,
                "start": self.start if self.start != "auto" else None,
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
            given = [key for key, value in of_towers.items() if value is not None]
            if given:
                raise ValueError(
                    f"{given[0]} applies only to a model that is built from separate towers, but model.name loads the "
                    f"complete model {self.name}; remove model.{given[0]} or model.name"
                )
        return self

    @model_validator(mode="after")
    def _adapters_apply(self) -> Self:
        for side, tower in (("image", self.image), ("text", self.text)):
            if tower.tune not in ADAPTER_METHODS and tower.lora != LoraRecipe():
                raise ValueError(
                    f"{side}.lora applies only to tune: lora and tune: dora, but model.{side}.tune is "
                    f"{tower.tune}; remove model.{side}.lora, or change model.{side}.tune"
                )
            if tower.tune in ADAPTER_METHODS and self.name is None and not tower.pretrained:
                raise ValueError(
                    f"{side}.tune is {tower.tune}, which adapts pretrained weights, but "
                    f"model.{side}.pretrained is false; set model.{side}.tune: full"
                )
        return self

    @model_validator(mode="after")
    def _projection_fits_its_start(self) -> Self:
        if self.start == "cca" and (self.image.name is None or self.text.name is None):
            raise ValueError(
                "start: cca needs two towers; set model.image.name and model.text.name, or remove model.start"
            )
        if self.start == "cca" and self.projection == "mlp":
            raise ValueError(
                "start: cca does not support model.projection: mlp; set model.projection to linear or residual"
            )
        if self.projection == "residual" and not self.starts_with_cca:
            raise ValueError("projection: residual needs model.start: cca; set model.start: cca, or use linear or mlp")
        if self.dropout and not self.starts_with_cca:
            raise ValueError(
                "dropout needs two towers and model.start: cca; set model.start: cca, or remove model.dropout"
            )
        if not self.starts_with_cca and "auto" in (self.image.layers, self.text.layers):
            raise ValueError(
                "image.layers: auto and model.text.layers: auto need model.start: cca; set model.start: cca, or list "
                "the layers"
            )
        return self

    @property
    def starts_with_cca(self) -> bool:
        """True if `start` selects canonical correlation analysis (CCA) for the projections of two towers.

        `start: auto` selects CCA if both towers are pretrained and frozen, and `projection` is not mlp.
        """
        both = self.name is None and self.image.name is not None and self.text.name is not None
        frozen = all(tower.pretrained and tower.tune in ("frozen", "head") for tower in (self.image, self.text))
        return both and (self.start == "cca" or (self.start == "auto" and frozen and self.projection != "mlp"))

    @property
    def space(self) -> int:
        """Feature dimension of a model of two towers; with `start: cca`, the maximum feature dimension."""
        return self.embed_dim or (256 if self.starts_with_cca else 512)

    def has(self, tower: str) -> bool:
        """Return whether the model has the given tower, `image` or `text`."""
        section = self.image if tower == "image" else self.text
        return self.name is not None or section.name is not None
