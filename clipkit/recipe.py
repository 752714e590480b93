"""A recipe: everything that determines a run, typed, validated once at the edge, and never checked again after that.

>>> recipe = Recipe.from_dict({"model": {"name": "my/clip"}, "data": {"train": "train.csv"}, "output": "runs/a"})
>>> recipe.optim.lr
1e-05
>>> print(recipe.override({"optim.lr": 5e-6}).optim.lr)
5e-06
"""

import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    Tag,
    ValidationError,
    model_validator,
)

from clipkit import catalogue
from clipkit.errors import RecipeError


class Section(BaseModel):
    """A part of a recipe: read-only, and closed to unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def _check_tune(tune: str) -> str:
    if tune not in ("full", "head", "frozen") and not re.fullmatch(r"last:[1-9]\d*", tune):
        raise ValueError("must be full, last:N (the last N blocks), head (the projection) or frozen")
    return tune


# Which parameters of a tower learn. A projection that is new always learns: frozen, it would be noise.
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
    config: dict[str, Any] = {}
    """With `pretrained: false`: values for the transformers configuration, as hidden_size or num_hidden_layers."""


class ModelRecipe(Section):
    """One whole dual encoder by `name`, or two towers with new projections between them."""

    name: str | None = None
    image: ImageTowerRecipe = ImageTowerRecipe()
    text: TextTowerRecipe = TextTowerRecipe()
    embed_dim: PositiveInt | None = None
    """Width of the shared space of a composed model; 512 where this is not given."""
    projection: Literal["linear", "mlp"] = "linear"
    """Of a composed model, after a LayerNorm: one linear map, or two with a GELU between them."""
    temperature: PositiveFloat | None = None
    """Starting temperature of a composed model, 1 / exp(logit_scale); 0.07 where this is not given."""
    bias: float | None = None
    """Starting logit bias of a composed model, for the sigmoid loss: -10 in SigLIP; without it there is none."""

    @model_validator(mode="after")
    def _one_way_to_name_a_model(self) -> Self:
        towers = (self.image.name, self.text.name)
        if self.name is None and None in towers:
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


class DataRecipe(Section):
    """Where the pairs come from."""

    train: str
    validation: str | None = None
    captions: Literal["one", "all"] = "one"
    """one: one caption of each picture an epoch, another one each time; all: every caption each epoch."""
    augment: Literal["crop", "none"] = "crop"
    """crop: a random resized crop in training; none: the model's own evaluation preprocessing."""
    crop_scale: tuple[PositiveFloat, PositiveFloat] = (0.8, 1.0)
    """Share of the picture's area that the random crop keeps, lowest and highest."""
    workers: int = Field(default=4, ge=0)
    """Loader processes on each process of the run; 0 loads in the run itself."""

    @model_validator(mode="after")
    def _scale_is_a_range(self) -> Self:
        low, high = self.crop_scale
        if not low <= high <= 1:
            raise ValueError(f"crop_scale is {[low, high]}: it must rise and end at most at 1, as [0.8, 1.0]")
        return self


def _check_loss(name: str) -> str:
    known = catalogue.losses()
    if name not in known:
        near = difflib.get_close_matches(name, known, 1, 0.5)
        advice = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
        raise ValueError(f"{name!r} is no loss; {advice}")
    return name


LossName = Annotated[str, AfterValidator(_check_loss)]


def _one_or_several(value: object) -> str:
    return "several" if isinstance(value, list) else "one"


class LossOptions(Section):
    """What losses can be told; `clipkit train --help` says which heeds what."""

    duplicates: Literal["positive", "ignore", "negative"] = "positive"
    """What another pair of the batch with the same picture or the same caption is."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Share of each target that is spread over the whole batch."""
    margin: float | None = Field(default=None, gt=0, le=2)
    """In cosine or euclidean distance; the loss's own (triplet 0.2, contrastive 0.5) where this is not given."""
    mining: Literal["all", "semihard", "hard"] = "hard"
    """Which triplets count."""
    distance: Literal["cosine", "euclidean"] = "cosine"
    teacher: str | None = Field(default=None, min_length=1)
    """The model to learn similarities from, named as any model."""

    def unheeded(self, names: Sequence[str]) -> list[str]:
        """Options that were given and that none of these losses heeds."""
        heeded = {option for name in names for option in catalogue.losses()[name].options}
        own = LossOptions.model_fields
        return [key for key in own if key not in heeded and getattr(self, key) != own[key].default]


class LossTerm(LossOptions):
    """One loss of a sum."""

    name: LossName
    weight: float = Field(default=1.0, gt=0, allow_inf_nan=False)


class LossRecipe(LossOptions):
    """The objective: a loss, or a list of losses with their weights and options, which are added up."""

    name: Annotated[
        Annotated[LossName, Tag("one")] | Annotated[list[LossTerm], Tag("several")], Discriminator(_one_or_several)
    ] = "infonce"

    @property
    def terms(self) -> list[LossTerm]:
        """The losses, one or several."""
        if isinstance(self.name, list):
            return self.name
        return [LossTerm(name=self.name, **{key: getattr(self, key) for key in LossOptions.model_fields})]

    @property
    def names(self) -> list[str]:
        """Of the losses."""
        return [term.name for term in self.terms]

    @model_validator(mode="after")
    def _options_are_heeded(self) -> Self:
        if isinstance(self.name, list):
            if not self.name:
                raise ValueError("name is an empty list; name at least one loss")
            if self.unheeded([]):
                raise ValueError(f"{self.unheeded([])[0]} stands beside a list of losses; give it to one of them")
        if all(catalogue.losses()[name].fields["needs"].startswith("another loss") for name in self.names):
            raise ValueError(
                f"{' + '.join(self.names)} is least where all features are the same; put it in a list with another "
                "loss, as infonce"
            )
        for term in self.terms:
            if term.unheeded([term.name]):
                raise ValueError(
                    f"{term.unheeded([term.name])[0]} is no option of {term.name}, which heeds "
                    f"{', '.join(catalogue.losses()[term.name].options) or 'none'}"
                )
            if "teacher" in catalogue.losses()[term.name].options and term.teacher is None:
                raise ValueError(f"{term.name} needs a teacher; name a model as teacher")
        return self


class OptimRecipe(Section):
    """The optimiser, with linear warmup and cosine decay to zero."""

    name: Literal["adamw", "sgd"] = "adamw"
    """sgd is plain: no momentum, and betas and eps are not its own."""
    lr: PositiveFloat = 1e-5
    """Peak learning rate, reached after warmup. 1e-5 fine-tunes a pretrained CLIP; new towers want 1e-3 or so."""
    weight_decay: NonNegativeFloat = 0.1
    """None on biases, normalisations, embeddings of position and class, and the scale."""
    betas: tuple[float, float] = (0.9, 0.98)
    eps: PositiveFloat = 1e-6
    warmup: NonNegativeFloat = 0.1
    """Below 1 a share of the run, from 1 on a number of steps."""
    clip: PositiveFloat | None = 1.0
    """Largest norm of the gradient; null to leave it."""


class TrainRecipe(Section):
    """The loop."""

    epochs: PositiveInt = 5
    batch_size: int = Field(default=512, ge=2)
    """Pairs in the global batch, so the number of negatives: a property of the problem, not of the machine."""
    micro_batch_size: PositiveInt | Literal["auto"] = "auto"
    """Pairs with their graph in memory at once on one process; it does not change the result. auto: what fits."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """auto: bf16 on a GPU that has it, else fp16 on a GPU, fp32 on a CPU."""
    seed: int = Field(default=0, ge=0)
    log_every: PositiveInt = 1
    gradient_checkpointing: bool = False
    """Keep less of the graph and compute it again: a third more time for a fraction of the memory."""
    compile: bool = False
    """torch.compile for both trunks."""
    ema: float | None = Field(default=None, gt=0, lt=1)
    """Decay of the averaged weights, as 0.999; with it they are what is evaluated and kept. null: none."""
    timeout_minutes: PositiveFloat = 10.0
    """How long processes wait for one that does not answer."""


class CheckpointRecipe(Section):
    """What is kept to resume from."""

    every_steps: PositiveInt = 500
    """There is one before each evaluation and at the end, too."""
    every_minutes: PositiveFloat | None = 15.0
    """Also whenever the last one is so old; null: never for its age."""
    keep_last: PositiveInt = 2
    keep_best: PositiveInt = 1
    """Those with the best evaluations, besides the last ones."""


Metric = Literal[
    "mean_recall",
    "image_retrieval_recall@1",
    "image_retrieval_recall@5",
    "image_retrieval_recall@10",
    "text_retrieval_recall@1",
    "text_retrieval_recall@5",
    "text_retrieval_recall@10",
]


class EvalRecipe(Section):
    """Retrieval on the validation pairs while training; the best epoch's weights are the ones kept."""

    every_epochs: PositiveInt = 1
    metric: Metric = "mean_recall"


class Recipe(Section):
    """Everything that determines a run. Keys, defaults and meanings are the fields of the sections."""

    model: ModelRecipe
    data: DataRecipe
    loss: LossRecipe = LossRecipe()
    optim: OptimRecipe = OptimRecipe()
    train: TrainRecipe = TrainRecipe()
    checkpoint: CheckpointRecipe = CheckpointRecipe()
    eval: EvalRecipe = EvalRecipe()
    output: str
    """The run folder."""

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], source: str = "recipe") -> Self:
        """Validate `values`; an error names the key, and the nearest real one where the key is unknown."""
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            raise RecipeError(f"{source}: {_first_problem(error)}") from None

    @classmethod
    def from_yaml(cls, path: str | Path, overrides: Sequence[str] = ()) -> Self:
        """Read a YAML file and apply `key.sub=value` overrides before anything is validated."""
        path = Path(path)
        try:
            values = yaml.safe_load(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise RecipeError(f"{path}: there is no such recipe; give the path of a YAML file") from None
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(f"{path}: cannot be read as a recipe ({error})") from None
        except yaml.YAMLError as error:
            raise RecipeError(f"{path}: is not valid YAML: {' '.join(str(error).split())}") from None
        if not isinstance(values, dict):
            raise RecipeError(f"{path}: a recipe is a mapping of sections (model, data, train, …); this is not one")
        return cls.from_dict(_merged(values, parse_overrides(overrides)), source=str(path))

    def override(self, changes: Mapping[str, Any]) -> Self:
        """A new recipe with `{"optim.lr": 1e-5}` and the like applied."""
        return type(self).from_dict(_merged(self.model_dump(mode="json"), changes))

    def to_yaml(self) -> str:
        """The complete recipe, every default written out."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def parse_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    """`["optim.lr=1e-5", "data.validation=null"]` as a dict; values are read as YAML."""
    changes: dict[str, Any] = {}
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals or not key:
            raise RecipeError(f"{override!r} is not an override: write key.sub=value, as optim.lr=1e-5")
        try:
            changes[key] = yaml.safe_load(value)
        except yaml.YAMLError:
            changes[key] = value
    return changes


def _merged(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(values)
    for dotted, value in changes.items():
        section, dot, rest = dotted.partition(".")
        if dot:
            below = merged.get(section)
            if below is not None and not isinstance(below, Mapping):
                raise RecipeError(f"{dotted}={value}: {section} is a single value, not a section")
            merged[section] = _merged(below or {}, {rest: value})
        else:
            merged[section] = value
    return merged


def _known_keys(section: type[BaseModel], prefix: str = "") -> list[str]:
    keys = []
    for name, field in section.model_fields.items():
        keys.append(prefix + name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            keys += _known_keys(field.annotation, f"{prefix}{name}.")
    return keys


# What other tools call them.
_ELSEWHERE = {
    "learning_rate": "optim.lr",
    "wd": "optim.weight_decay",
    "grad_clip_norm": "optim.clip",
    "max_grad_norm": "optim.clip",
    "num_train_epochs": "train.epochs",
    "mixed_precision": "train.precision",
    "num_workers": "data.workers",
    "output_dir": "output",
}


def _first_problem(error: ValidationError) -> str:
    # An unknown key first: it is the likelier cause of a missing one than the other way round.
    problems = sorted(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")
    problem = problems[0]
    # Without the tags of a union's branches.
    key = ".".join(str(part) for part in problem["loc"] if part not in ("one", "several"))
    match problem["type"]:
        case "extra_forbidden":
            known = _known_keys(Recipe)
            siblings = [name for name in known if name.rpartition(".")[0] == key.rpartition(".")[0]]
            if key.startswith("loss.name."):
                siblings = [f"{key.rpartition('.')[0]}.{own}" for own in LossTerm.model_fields]
            last_part = {name.rpartition(".")[2]: name for name in reversed(known)}
            near = [_ELSEWHERE[last] for last in [key.rpartition(".")[2]] if last in _ELSEWHERE]
            near = (
                near
                or difflib.get_close_matches(key, siblings, 1, 0.5)
                or difflib.get_close_matches(key, known, 1, 0.6)
            )
            near = near or [last_part[n] for n in difflib.get_close_matches(key.rpartition(".")[2], last_part, 1, 0.6)]
            advice = f"did you mean {near[0]}?" if near else f"known keys are {', '.join(siblings or known)}"
            return f"{key} is not an option; {advice}"
        case "missing":
            return f"{key} is missing; every run needs it"
        case "value_error":
            return f"{key} {problem['msg'].removeprefix('Value error, ')}"
        case _:
            return f"{key} is {problem['input']!r}: {problem['msg'][0].lower()}{problem['msg'][1:]}"
