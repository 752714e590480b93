"""How a recipe is run: optimiser, loop, checkpoints, evaluation."""

import difflib
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, NonNegativeFloat, PositiveFloat, PositiveInt

from clipkit.recipe.section import Section


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


TRACKERS = ("aim", "clearml", "comet_ml", "dvclive", "mlflow", "swanlab", "tensorboard", "trackio", "wandb")


def _check_tracker(name: str) -> str:
    if name not in TRACKERS:
        near = difflib.get_close_matches(name, TRACKERS, 1, 0.5)
        raise ValueError(
            f"{name!r} is no tracker that Accelerate knows; "
            + (f"did you mean {near[0]}?" if near else f"it knows {', '.join(TRACKERS)}")
        )
    return name


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
    log_with: list[Annotated[str, AfterValidator(_check_tracker)]] = Field(default=[])
    """Accelerate's trackers, as [tensorboard, wandb], beside the files of the run."""
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


CAPTION_METRICS = (
    "mean_recall",
    *(f"{side}_retrieval_recall@{k}" for side in ("image", "text") for k in (1, 5, 10)),
)
LABEL_METRICS = ("knn_acc1", "lp_acc1", "knn_mean_per_class_recall", "lp_mean_per_class_recall")


def view_metrics(tower: str) -> tuple[str, ...]:
    """Of the views of images (`image`) or captions (`text`), those of which more is better."""
    return tuple(f"{tower}_view_recall@{k}" for k in (1, 5, 10))


_METRICS = ("auto", *CAPTION_METRICS, *LABEL_METRICS, *view_metrics("image"), *view_metrics("text"))


def _check_metric(name: str) -> str:
    if name not in _METRICS:
        near = difflib.get_close_matches(name, _METRICS, 1, 0.5)
        raise ValueError(f"{name!r} is no metric; did you mean {near[0]}?" if near else f"{name!r} is no metric")
    return name


class EvalRecipe(Section):
    """Measuring while training; the best epoch's weights are the ones kept."""

    every_epochs: PositiveInt = 1
    metric: Annotated[str, AfterValidator(_check_metric)] = "auto"
    """By which the best weights are chosen. auto: mean_recall with captions, else the recall of views."""
    retention: str | None = None
    """A small set of what the model should not forget, with classes or with captions, measured at the start and at each
    evaluation. null: of a pretrained model its own similarities on held-out pairs."""
    patience: PositiveInt | None = None
    """Evaluations without a better one after which the run ends; null: it goes on to its last epoch."""
    interpolate: bool = False
    """After training, measure weights between start and end (alpha 0, 0.25, 0.5, 0.75, 1) and keep those with the
    highest mean of eval.metric and retention."""
