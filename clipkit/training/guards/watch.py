"""Rules that find problems of a run in its logs during training.

To add a rule, write a function, add a row to `STEP_RULES` or `EVALUATION_RULES`, and test it. A rule reads only the
facts of the run, e.g. its batch size, and the rows of metrics.jsonl, speed.jsonl and evaluations.jsonl. So `clipkit
doctor` can apply it to a finished run.
"""

import math
import statistics
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from clipkit.findings import Finding, Rule, apply
from clipkit.training.guards.logs import WINDOW, Facts, Logs, Row

_EVERY = 5
"""Number of logged steps between checks, to keep the cost low."""
_NEAR_CHANCE = 0.02
_LUCK = 4.0
"""Number of standard errors above chance at which pairs count as matched better than by chance."""
_COLLAPSED = 0.95
_FALLEN = 0.7
_EXPLODED = 20.0
_WAITING = 0.2
_LEARNED, _MEMORIZED = 0.2, 0.9
"""Smallest shares of training captions that rank their image first in a batch: as learned, and as memorized."""
_GAP = 3.0
"""Smallest ratio of the share of training captions to the share of validation captions that rank their image first."""
_PLATEAU, _RISING = 2, 1.02
"""Number of latest evaluations, and the factor by which one of them must exceed the earlier ones to count as rising."""
_PATIENCE = 3
_WORSE = 0.95
_FORGOTTEN = {"retention_similarity": 0.5}
"""Limits of retention, as a share of its value before training; similarities change in any fine-tuning."""
_FORGOTTEN_FIGURE = 0.9


class Watch(Logs):
    """Application of the rules to the logs of a run, row by row. Each rule reports at most one finding."""

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.findings: list[Finding] = []
        self._seen = 0

    def step(self, row: Row, speed: Row | None) -> list[Finding]:
        """Apply the rules to a logged step, and return the new findings.

        Args:
            row: row of the step in metrics.jsonl.
            speed: row of the step in speed.jsonl; None if it is missing.
        """
        self.rows.append(row)
        self.norms.append(row["grad_norm"])
        self._seen += 1
        # The first steps load data, allocate memory and compile.
        if speed is not None and self._seen > _EVERY:
            self.speeds.append(speed)
        if self._seen % _EVERY or len(self.rows) < WINDOW:
            return []
        return self._apply(STEP_RULES, row["step"])

    def evaluation(self, row: Row) -> list[Finding]:
        """Apply the rules to a row of evaluations.jsonl, and return the new findings."""
        self.evaluations.append(row)
        return self._apply(EVALUATION_RULES, row["step"])

    def _apply(self, rules: Sequence[Rule["Watch"]], step: int) -> list[Finding]:
        """Apply the rules that have reported nothing so far, and return the new findings."""
        known = {finding.name for finding in self.findings}
        found = apply([rule for rule in rules if rule.name not in known], self)
        new = [replace(finding, step=step) for finding in found]
        self.findings += new
        return new


def loss_at_chance(watch: Watch) -> Finding | None:
    """Report a model whose loss shows that it cannot distinguish matching pairs from other pairs."""
    level, loss = watch.facts.chance, watch.mean("loss")
    if not level or not watch.is_warm or loss is None or abs(loss - level) > _NEAR_CHANCE * level:
        return None
    # Not a finding: losses that differ although their mean is at this level, or pairs that are retrieved correctly.
    losses = [row["loss"] for row in watch.rows]
    if statistics.pstdev(losses) > _NEAR_CHANCE * level or watch.matches_pairs(_LUCK):
        return None
    return Finding(
        "loss_at_chance", "warning",
        f"the loss is {loss:.3f}, which is its value if all similarities are equal ({level:.3f}): the model "
        "does not distinguish matching pairs from others",
        "check that captions belong to their images (clipkit data preview, clipkit data check), then try an "
        "optim.lr ten times higher or lower, and a longer optim.warmup",
    )  # fmt: skip


def collapsed(watch: Watch) -> Finding | None:
    """Report a model that gives all images, or all texts, nearly the same features."""
    if not watch.is_warm:
        return None
    for side in watch.facts.sides:
        cosine = watch.mean(f"{side}_cosine")
        if cosine is not None and cosine > _COLLAPSED:
            return Finding(
                "collapsed", "warning",
                f"the features of different samples are nearly equal ({side}: mean cosine {cosine:.3f})",
                "lower optim.lr, lengthen optim.warmup, and check that the samples differ (clipkit data preview)",
            )  # fmt: skip
    return None


def scale_at_cap(watch: Watch) -> Finding | None:
    """Report a logit scale that has risen to its upper limit."""
    cap = watch.facts.largest_scale
    if cap is None or watch.facts.start_scale > 0.95 * cap:  # a pretrained CLIP starts at the cap
        return None
    if not all(row.get("scale", 0.0) >= 0.999 * cap for row in watch.rows):
        return None
    return Finding(
        "scale_at_cap", "warning",
        f"the logit scale has risen to its upper limit of {cap:.4g}: the pairs of a batch are too easy to match",
        "use a larger train.batch_size, more augmentation or fewer epochs",
    )  # fmt: skip


def scale_falls(watch: Watch) -> Finding | None:
    """Report a logit scale that falls steadily."""
    scales = [row["scale"] for row in watch.rows if "scale" in row]
    if len(scales) < WINDOW or scales[-1] > _FALLEN * watch.facts.start_scale:
        return None
    if any(later > earlier for earlier, later in pairwise(scales)):
        return None
    return Finding(
        "scale_falls", "warning",
        f"the logit scale decreases steadily, from {watch.facts.start_scale:.4g} to {scales[-1]:.4g}: the "
        "model becomes less certain about the pairs",
        "captions may describe several images of the batch, or be assigned to wrong images: run clipkit data "
        "check, and lower optim.lr",
    )  # fmt: skip


def gradient_explodes(watch: Watch) -> Finding | None:
    """Report gradient norms that are far larger than usual."""
    earlier = list(watch.norms)[:-_EVERY]
    usual = statistics.median(earlier)
    high = [norm for norm in list(watch.norms)[-_EVERY:] if norm > _EXPLODED * usual]
    if len(high) < 3 or not watch.is_warm:
        return None
    return Finding(
        "gradient_explodes", "warning",
        f"the gradient norm is {max(high):.3g}; it was usually {usual:.3g}",
        "lower optim.lr, set optim.clip: 1.0, and use train.precision: bf16 or fp32 instead of fp16",
    )  # fmt: skip


def one_direction(watch: Watch) -> Finding | None:
    """Report a model that retrieves well in one direction only, e.g. from image to text."""
    accuracies = {side: watch.mean(f"{side}_accuracy") for side in watch.facts.sides}
    known = {side: value for side, value in accuracies.items() if value is not None}
    if len(known) < 2 or not watch.is_warm:
        return None
    (better, high), (worse, low) = sorted(known.items(), key=lambda item: -item[1])
    if high < max(0.2, 10 / watch.facts.batch_size) or low > high / 4:
        return None
    return Finding(
        "one_direction", "warning",
        f"within a batch, retrieval works from {better} to {worse} ({high:.0%} correct), but not from {worse} to "
        f"{better} ({low:.0%})",
        f"many samples ({worse}) may be similar to each other, or one tower may hardly learn; check the "
        "captions, model.image.tune and model.text.tune",
    )  # fmt: skip


def data_wait(watch: Watch) -> Finding | None:
    """Report a run that spends much of its time waiting for data."""
    if len(watch.speeds) < WINDOW:
        return None
    waited = sum(row["data_wait_seconds"] for row in watch.speeds)
    share = waited / max(1e-9, waited + sum(row["step_seconds"] for row in watch.speeds))
    if share <= _WAITING:
        return None
    return Finding(
        "data_wait", "warning",
        f"the run spends {share:.0%} of its time waiting for data",
        "raise data.workers, or store the images in a smaller size (clipkit data prepare)",
    )  # fmt: skip


def validation_worse(watch: Watch) -> Finding | None:
    """Report a run whose last three evaluations are clearly worse than its best evaluation."""
    metric = watch.facts.metric
    values = [row[metric] for row in watch.evaluations if metric is not None and metric in row]
    if len(values) <= _PATIENCE:
        return None
    best = max(values[:-_PATIENCE])
    last = values[-_PATIENCE:]
    if best <= 0 or max(last) > _WORSE * best:
        return None
    return Finding(
        "validation_worse", "warning",
        f"{metric} was {best:.4f}, but at most {max(last):.4f} in the last {_PATIENCE} evaluations",
        "the best weights are kept; next time, use fewer epochs, a lower optim.lr, or eval.patience, which "
        "ends such a run early",
    )  # fmt: skip


def validation_at_chance(watch: Watch) -> Finding | None:
    """Report a model that matches training pairs well, but validation pairs only as often as by chance."""
    learned = _training_and_validation(watch)
    if learned is None or not learned.is_at_chance:
        return None
    return Finding(
        "validation_at_chance", "warning",
        f"{learned}, which is chance ({learned.chance:.1%}): the model has learned nothing that applies to "
        "other pairs",
        "check that each caption belongs to its image, in the training and the validation data (clipkit data "
        "preview D: a shuffled column or a shifted row is a common cause); if the captions are correct, the "
        "model only memorizes the training pairs: start from a pretrained model, or use more data",
    )  # fmt: skip


def memorization(watch: Watch) -> Finding | None:
    """Report a model that memorizes the training pairs.

    The model matches nearly all training pairs but far fewer validation pairs, and the validation no longer improves.
    """
    learned = _training_and_validation(watch)
    if learned is None or learned.is_at_chance or learned.training < _MEMORIZED:
        return None
    figures = [row["text_accuracy"] for row in watch.evaluations if "text_accuracy" in row]
    if len(figures) <= _PLATEAU or max(figures[-_PLATEAU:]) > _RISING * max(figures[:-_PLATEAU]):
        return None
    return Finding(
        "memorization", "warning",
        f"{learned}, and the share of validation captions no longer rises: the model memorizes the training pairs",
        "use fewer epochs, more data or augmentation (data.augment), tune fewer blocks (model.image.tune: last:4), and "
        "check that the captions belong to their images (clipkit data preview)",
    )  # fmt: skip


@dataclass(frozen=True)
class _Learned:
    """Text-to-image accuracy within a batch, for training captions and for validation captions."""

    training: float
    validation: float
    chance: float
    """Accuracy of a random choice."""
    is_at_chance: bool
    """True if the accuracy for validation captions is not clearly higher than `chance`."""

    def __str__(self) -> str:
        return (
            f"in a batch, {self.training:.0%} of the training captions find their image, but "
            f"{self.validation:.1%} of the validation captions do"
        )


def _training_and_validation(watch: Watch) -> _Learned | None:
    """Return the text-to-image accuracies if the model is clearly better on training than on validation captions.

    Otherwise, or if an accuracy was not measured, the result is None.
    """
    name, images = "text_accuracy", watch.facts.validation_images
    training, validation = watch.mean(name) if watch.rows else None, watch.evaluations[-1].get(name)
    if training is None or validation is None or images < 2 or len(watch.rows) < _EVERY:
        return None
    if training < max(_LEARNED, _GAP * validation) or not watch.matches_pairs(_LUCK):
        return None
    chance = 1 / min(watch.facts.batch_size, images)
    error = math.sqrt(chance * (1 - chance) / images)
    return _Learned(training, validation, chance, validation <= chance + _LUCK * error)


def forgetting(watch: Watch) -> Finding | None:
    """Report a large drop of retention, which means that the model has lost earlier abilities."""
    name, start = watch.facts.retention, watch.facts.retention_start
    if name is None or start is None or start <= 0 or name not in watch.evaluations[-1]:
        return None
    now = watch.evaluations[-1][name]
    if now > _FORGOTTEN.get(name, _FORGOTTEN_FIGURE) * start:
        return None
    return Finding(
        "forgetting", "warning",
        f"the model forgets: {name} was {start:.3f} before the first step and is {now:.3f} now",
        "lower optim.lr, tune fewer blocks (model.image.tune: last:4), or use a mixture of the weights "
        "before and after training (eval.interpolate: true, or clipkit merge --alpha)",
    )  # fmt: skip


STEP_RULES: tuple[Rule[Watch], ...] = (
    Rule("loss_at_chance", loss_at_chance,
         "the loss is within 2 % of its value for equal similarities (ln G for InfoNCE, ln(2G − 1) for "
         "NT-Xent, …), and the share of matched pairs in the batch is at chance"),
    Rule("collapsed", collapsed, "the mean cosine between different samples is above 0.95 for images or for texts"),
    Rule("scale_at_cap", scale_at_cap, "the logit scale was below its upper limit at the start and has reached it"),
    Rule("scale_falls", scale_falls, "the logit scale decreases steadily, to less than 0.7 of its initial value"),
    Rule("gradient_explodes", gradient_explodes, "the gradient's norm is 20 times its median"),
    Rule("one_direction", one_direction,
         "in the batch, retrieval in one direction is correct four times as often as in the other direction"),
    Rule("data_wait", data_wait, "more than 20 % of the time is spent waiting for data"),
)  # fmt: skip
EVALUATION_RULES: tuple[Rule[Watch], ...] = (
    Rule("validation_worse", validation_worse,
         "three evaluations in a row are 5 % below the best one; `eval.patience: N` would end the run"),
    Rule("validation_at_chance", validation_at_chance,
         "in a batch, at least 20 % of the training captions find their image, three times as many as "
         "validation captions, whose share is at chance: captions are assigned to wrong images, or the model "
         "memorizes"),
    Rule("memorization", memorization,
         "in a batch, at least 90 % of the training captions find their image, three times as many as validation "
         "captions, and the share of validation captions has not risen in two evaluations"),
    Rule("forgetting", forgetting, "retention has dropped by 10 % (by 50 % for the model's similarities, see below)"),
)  # fmt: skip


def replay(
    watch: Watch, metrics: Sequence[Row], speeds: Sequence[Row], evaluations: Sequence[Row]
) -> Iterator[Finding]:
    """Apply the rules to existing logs, and yield the findings in the order in which a run reports them.

    `watch` must be new, without any log row. The rows come from metrics.jsonl, speed.jsonl and evaluations.jsonl.
    """
    speed_of = {row["step"]: row for row in speeds}
    waiting = deque(evaluations)
    for row in metrics:
        yield from watch.step(row, speed_of.get(row["step"]))
        while waiting and waiting[0]["step"] <= row["step"]:
            yield from watch.evaluation(waiting.popleft())
    for row in waiting:
        yield from watch.evaluation(row)
