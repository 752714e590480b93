"""Recipe sections `optim`, `train`, `checkpoint` and `eval`: optimizer, training loop, checkpoints and evaluation."""

import difflib
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Discriminator, Field, Tag, model_validator

from clipkit.recipe.model import parse_tune
from clipkit.recipe.section import Count, Minutes, Section

Beta = Annotated[float, Field(ge=0, lt=1)]
Rate = Annotated[float, Field(gt=0, le=1000)]


class LearningRates(Section):
    """Peak learning rates of pretrained weights, new weights and adapters."""

    pretrained: Rate = 1e-5
    """Learning rate of pretrained weights."""
    new: Rate = 1e-3
    """Learning rate of new weights: projections, heads for views, towers without pretrained weights, a new scale."""
    adapter: Rate = 1e-4
    """Learning rate of the adapters of `tune: lora` and `tune: dora`."""


def _one_or_several(value: Any) -> str:
    return "several" if isinstance(value, Mapping | LearningRates) else "one"


Share = Annotated[float, Field(gt=0, lt=1)]


def _check_starts(starts: dict[str, float]) -> dict[str, float]:
    for method in starts:
        if method != "full" and parse_tune(method)[0] != "last:N":
            raise ValueError(f"has the key {method!r}; use last:N (the last N blocks) or full (all blocks)")
    return starts


class OptimRecipe(Section):
    """Settings of the optimizer; the learning rate has a linear warmup and a cosine decay to zero."""

    name: Literal["adamw", "sgd"] = "adamw"
    """Name of the optimizer; sgd has no momentum and does not use betas and eps."""
    lr: Annotated[
        Annotated[Rate, Tag("one")] | Annotated[LearningRates, Tag("several")], Discriminator(_one_or_several)
    ] = LearningRates()
    """Peak learning rate, which is reached after warmup: one number for all weights, or different numbers for
    pretrained weights, new weights and adapters, e.g. {pretrained: 1e-5, new: 1e-3, adapter: 1e-4}."""
    weight_decay: float = Field(default=0.1, ge=0, le=1000)
    """Weight decay; not applied to biases, normalization layers, position and class embeddings, and the scale."""
    betas: tuple[Beta, Beta] = (0.9, 0.98)
    eps: float = Field(default=1e-6, ge=1e-30, le=1)
    warmup: float = Field(default=0.1, ge=0, le=1e9)
    """Length of the warmup: a share of all steps if below 1, otherwise a number of steps."""
    clip: float | None = Field(default=1.0, ge=1e-9, le=1e9)
    """Maximum norm of the gradient; null: no clipping."""
    layer_decay: float | None = Field(default=None, gt=0, le=1)
    """Layer-wise decay: the learning rate of a block is this factor, e.g. 0.75, times the learning rate of the next
    block toward the output. null: all blocks have the same learning rate."""
    unfreeze: (
        Annotated[
            Annotated[Share, Tag("one")]
            | Annotated[dict[str, Share], AfterValidator(_check_starts), Field(min_length=1), Tag("several")],
            Discriminator(_one_or_several),
        ]
        | None
    ) = None
    """Gradual unfreezing: the share of the run after which blocks start to learn, e.g. {last:2: 0.1, full: 0.3}. With a
    single number, e.g. 0.3, blocks start one after another: the last block starts first, and the first block starts
    after 30 % of the run. Projections always learn from the first step. null: blocks also learn from the first step.
    """
    pull_to_start: float | None = Field(default=None, gt=0, le=1e6)
    """Weight of the L2-SP penalty: the squared distance between the pretrained weights and their initial values is
    added to the loss. null: no penalty."""
    warm_moments: Count | None = None
    """Number of first steps in which AdamW only estimates its moments and changes no weights (TuneCLIP). null: 0."""

    @model_validator(mode="after")
    def _sgd_has_no_moments(self) -> Self:
        if self.warm_moments is not None and self.name == "sgd":
            raise ValueError(
                "warm_moments applies to optim.name: adamw, not to sgd, which has no moments; remove optim.warm_moments"
            )
        return self

    @property
    def rates(self) -> LearningRates:
        """Peak learning rates of pretrained weights, new weights and adapters; all equal if `lr` is a number."""
        if isinstance(self.lr, LearningRates):
            return self.lr
        return LearningRates(pretrained=self.lr, new=self.lr, adapter=self.lr)


TRACKERS = ("aim", "clearml", "comet_ml", "dvclive", "mlflow", "swanlab", "tensorboard", "trackio", "wandb")


def _check_tracker(name: str) -> str:
    if name not in TRACKERS:
        near = difflib.get_close_matches(name, TRACKERS, 1, 0.5)
        raise ValueError(
            f"{name!r} is not a tracker of Accelerate; "
            + (f"did you mean {near[0]}?" if near else f"choose from {', '.join(TRACKERS)}")
        )
    return name


class TrainRecipe(Section):
    """Settings of the training loop."""

    epochs: Count = 5
    batch_size: int = Field(default=512, ge=2, le=2**24)
    """Pairs in the global batch over all processes; the batch size determines the number of negatives."""
    micro_batch_size: Count | Literal["auto"] = "auto"
    """Pairs per forward pass on one process; it does not affect the result. auto: as many as memory allows."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Numeric precision. auto: bf16 on a GPU that supports it, fp16 on other GPUs, fp32 on a CPU."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    log_every: Count = 1
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: a third more time, but far less memory."""
    shard: bool = False
    """Distribute the parameters of the trunks, their gradients and the optimizer's state over the processes (FSDP2),
    for a model that does not fit on one GPU."""
    cpu_offload: bool = False
    """With `shard`: keep the distributed parameters, gradients and optimizer state in CPU memory."""
    compile: bool = False
    """Compile both trunks with torch.compile."""
    ema: float | None = Field(default=None, gt=0, lt=1)
    """Decay of the averaged weights, e.g. 0.999; the averaged weights are evaluated and kept. null: no averaging."""
    log_with: list[Annotated[str, AfterValidator(_check_tracker)]] = Field(default=[])
    """Trackers of Accelerate, e.g. [tensorboard, wandb], in addition to the files of the run."""
    timeout_minutes: Minutes = 10.0
    """Timeout for a process that does not respond, in minutes."""

    @model_validator(mode="after")
    def _shards_are_offloaded(self) -> Self:
        if self.cpu_offload and not self.shard:
            raise ValueError("cpu_offload needs train.shard: true; set train.shard: true, or remove train.cpu_offload")
        return self


class CheckpointRecipe(Section):
    """Settings of the checkpoints from which a run can resume."""

    every_steps: Count = 500
    """Steps between checkpoints; one is also written before each evaluation and at the end."""
    every_minutes: Minutes | None = 15.0
    """Also write a checkpoint if the last one is older than this number of minutes; null: only by `every_steps`."""
    keep_last: Count = 2
    keep_best: Count = 1
    """Number of checkpoints with the best evaluations that are kept in addition to the last checkpoints."""


CAPTION_METRICS = (
    "mean_recall",
    *(f"{side}_retrieval_recall@{k}" for side in ("image", "text") for k in (1, 5, 10)),
)
LABEL_METRICS = ("knn_acc1", "lp_acc1", "knn_mean_per_class_recall", "lp_mean_per_class_recall")


def view_metrics(tower: str) -> tuple[str, ...]:
    """Return the names of the metrics of retrieval between two views of an image or of a caption."""
    return tuple(f"{tower}_view_recall@{k}" for k in (1, 5, 10))


_METRICS = ("auto", *CAPTION_METRICS, *LABEL_METRICS, *view_metrics("image"), *view_metrics("text"))


def _check_metric(name: str) -> str:
    if name not in _METRICS:
        near = difflib.get_close_matches(name, _METRICS, 1, 0.5)
        advice = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(_METRICS)}"
        raise ValueError(f"{name[:200]!r} is not a metric; {advice}")
    return name


class EvalRecipe(Section):
    """Settings of the evaluations during training; the weights with the best evaluation are kept."""

    every_epochs: Count = 1
    metric: Annotated[str, AfterValidator(_check_metric)] = "auto"
    """Metric that selects the best weights. auto: mean_recall with captions, otherwise the recall of views."""
    retention: str | None = None
    """Source of a small dataset, labeled or with captions, on which the model should not get worse. It is evaluated at
    the start and at each evaluation. null: instead, similarities on held-out pairs are compared with those of the
    pretrained model."""
    patience: Count | None = None
    """End the run after this many evaluations without a new best result; null: run all epochs."""
    interpolate: bool | Annotated[int, Field(ge=2, le=1001)] = False
    """After training, evaluate interpolations between the initial and final weights, and keep the best weights. true:
    five values of alpha from 0 to 1; a number, e.g. 11: this number of values."""
    max_forgetting: float | None = Field(default=None, ge=0, le=1)
    """Maximum allowed loss of retention when `interpolate` selects the weights with the highest eval.metric, e.g. 0.01
    (one percentage point). null: select the weights with the highest mean of eval.metric and retention."""
