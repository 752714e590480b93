"""Rules that choose the values of a suggested recipe.

To add a rule, write a function that takes a situation and returns a choice, or None to keep the default of the recipe
key. Add the rule to `RULES`, describe it in docs/suggest.md, and test it. A rule can read the choices of earlier rules.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from clipkit.findings import counted, duration
from clipkit.suggestion.situation import Choice, Situation

_FEW, _MANY, _HUGE = 2_000, 100_000, 1_000_000
"""Numbers of images at which the result of rules changes."""
_NIGHT = 12.0
"""Maximum hours that full tuning may take on a CPU."""
_B32 = 1.5e8
"""Number of parameters of CLIP ViT-B/32 and ViT-B/16, the models of most published learning rates."""
_TUNED = "docs/benchmarks.md, What does tuning forget?"
_TOWERS = "docs/two_towers.md"
_FLYP = "Goyal et al. 2023, FLYP"


@dataclass(frozen=True)
class Rule:
    """A recipe key, and the function that chooses its value."""

    key: str
    choose: Callable[[Situation], Choice | None]


def validation(s: Situation) -> Choice | None:
    """Choose the validation data: the data that the user gave, or a share of the training images."""
    if s.validation is not None:
        return Choice(s.validation, "selects the epoch whose weights are kept")
    if s.data.is_stream:
        return None
    count = s.data.images
    share = 0.2 if count < 1000 else 0.1 if count < 20_000 else round(max(2000 / count, 0.001), 3)
    twins = "; copies of a held-out image may remain in the training data" if s.data.share_duplicates > 0.01 else ""
    reason = (
        f"{round(share * count):,} images, chosen by the hash of their names, are held out to select the best "
        f"epoch{twins}"
    )
    return Choice(share, reason)


def tune(s: Situation) -> Choice:
    """Choose the tuning method of the image tower, e.g. `full` or `lora`."""
    model, machine = s.model, s.machine
    if model.is_new:
        start = "start at random, because a stream has no closed form" if s.data.is_stream else "start in closed form"
        return Choice("frozen", f"only the projections of the towers are trained; they {start}", _TOWERS)
    hours = s.hours(_usual_epochs(s))
    if not machine.has_gpu and hours > _NIGHT:
        method = "last:2" if hours / 3 <= _NIGHT else "head"
        part = "the last two blocks" if method == "last:2" else "the projections"
        reason = (
            f"without a GPU, full tuning would take about {duration(3600 * hours)}, so only {part} are "
            "trained, on stored outputs of the frozen layers. On a machine with a GPU, use full"
        )
        return Choice(method, reason, "docs/speed.md, Stored inputs")
    if model.training_bytes > 0.9 * machine.memory:
        reason = (
            f"full tuning needs {model.training_bytes / 1e9:.1f} GB even for one pair, and this machine has "
            f"{machine.memory / 1e9:.1f} GB; adapters need no gradients and moments of the frozen weights"
        )
        return Choice("lora", reason, "Hu et al. 2022, LoRA")
    if s.images < _FEW:
        reason = (
            f"{s.images:,} images are a small dataset. In 80 runs of ViT-B/32, LoRA kept a zero-shot accuracy "
            "of 45 to 58 % on CIFAR-100, full tuning 9 to 11 %. Your data may behave differently: if "
            "forgetting matters, compare with full"
        )
        return Choice("lora", reason, "arXiv 2604.16410")
    reason = (
        f"{s.images:,} images, about {duration(3600 * hours)} on this machine; in our tests on a small model, "
        "full tuning learned the most and forgot the least"
    )
    return Choice("full", reason, _TUNED)


def tune_text(s: Situation) -> Choice:
    """Choose the tuning method of the text tower: the same as for the image tower."""
    return Choice(s.tune, "the same method as for the image tower")


def captions(s: Situation) -> Choice:
    """Choose whether an epoch uses one caption or all captions of an image."""
    several = s.data.captions_per_image >= 2
    if several and s.model.is_new and not s.data.is_stream and not s.data.has_labels:
        reason = (
            f"all {s.data.captions_per_image:g} captions of an image are used; with frozen towers this costs "
            "little time"
        )
        return Choice("all", reason, f"{_TOWERS}, Settings")
    what = "templates" if s.data.has_labels else "captions"
    if several:
        return Choice("one", f"each epoch uses a different one of the {s.data.captions_per_image:g} {what} of an image")
    return Choice("one", "one caption per image")


def workers(s: Situation) -> Choice:
    """Choose the number of processes that load images."""
    most = 8 if s.machine.has_gpu else 2
    return Choice(
        max(1, min(most, s.machine.cores - 1)),
        f"processes that load images; this machine has {counted(s.machine.cores, 'core')}",
    )


def samples(s: Situation) -> Choice | None:
    """Choose the number of pairs in an epoch of a stream."""
    if not s.data.is_stream:
        return None
    reason = (
        "number of pairs in the first shard × (number of shards − 1); use a lower number if the run reports that "
        "the stream ended"
    )
    return Choice(s.data.images, reason)


def loss(s: Situation) -> Choice:
    """Choose the loss: sigmoid for a model with a logit bias, otherwise InfoNCE."""
    if s.model.has_bias:
        return Choice("sigmoid", "the model has a logit bias, so it was trained with the sigmoid loss", "Zhai et al. "
                      "2023, SigLIP")  # fmt: skip
    labels = " Prompts of one class are positives of each other" if s.data.has_labels else ""
    how = (
        "for frozen towers, it was better than sigmoid in our tests"
        if s.model.is_new
        else "the loss of CLIP's pretraining"
    )
    return Choice("infonce", f"{how}.{labels}" if labels else how, _FLYP if labels else "Radford et al. 2021, CLIP")


def logit_scale(s: Situation) -> Choice | None:
    """Freeze the logit scale if the scale is high and the batch is small."""
    size = int(s.chosen["train.batch_size"])
    if s.model.is_new or s.model.has_bias or s.model.scale <= 95 or size > 64:
        return None
    reason = (
        f"with {size} pairs and a logit scale of {s.model.scale:.0f} the loss is near 0, so a trained logit "
        "scale would change at random"
    )
    return Choice("freeze", reason, "open_clip issue 948")


def learning_rate(s: Situation) -> Choice:
    """Choose the peak learning rate for the tuning method and the size of the model."""
    if s.model.is_new and s.data.is_stream:
        return Choice(1e-3, "new projections with a random start", f"{_TOWERS}, Settings")
    if s.model.is_new:
        return Choice(
            3e-3,
            "new projections after a closed-form start, for few epochs: 4 with all captions, 10 with one "
            "caption per image",
            f"{_TOWERS}, Settings",
        )
    if s.tune == "head":
        reason = "only the projections are trained, which need the high learning rates of new weights"
        return Choice(1e-3, reason, "Fahes et al. 2024, ProLIP")
    full = _full_rate(s.model.parameters)
    millions = s.model.parameters / 1e6
    size = f"{millions:.0f} M parameters" if millions >= 10 else f"{millions:.2g} M parameters"
    if s.tune == "lora":
        reason = (
            f"20 times the learning rate of full tuning ({full:g} for {size}); at low learning rates, LoRA underfits"
        )
        return Choice(_rounded(20 * full), reason, "Zanella and Ben Ayed 2024, CLIP-LoRA; arXiv 2604.16410")
    reason = f"1e-5 for 150 M parameters (FLYP), less for larger models, from 1e-6 to 1e-4; this model has {size}"
    return Choice(full, reason, _FLYP)


def layer_decay(s: Situation) -> Choice | None:
    """Choose the factor by which the learning rate decreases per block toward the input, for a deep model."""
    if s.tune != "full" or max(s.model.blocks) < 24:
        return None
    reason = f"for a deep model ({max(s.model.blocks)} blocks); in our test, this did not help a model of 4 blocks"
    return Choice(0.75, reason, f"Dong et al. 2022, FT-CLIP; {_TUNED}")


def pull_to_start(s: Situation) -> Choice | None:
    """Choose the weight of the penalty that keeps tuned projections near their pretrained values."""
    if s.tune != "head":
        return None
    reason = "in our test, retention fell by 35 instead of 55 points, and the new task gained 4 points less"
    return Choice(0.05, reason, f"Fahes et al. 2024, ProLIP; {_TUNED}")


def batch_size(s: Situation) -> Choice:
    """Choose the number of pairs in a global batch."""
    images = s.images
    most = 2048 if images >= _HUGE else 1024 if s.model.is_new else 512
    aim = images / (6 if s.model.is_new else 16)
    size = min(most, max(64, 2 ** round(math.log2(max(2.0, aim)))), max(2, images // 2))
    why = (
        "the usual size for fine-tuning"
        if size == 512
        else f"about {max(1, images // size):,} batches cover all images"
    )
    return Choice(size, f"{why}; micro-batches reduce the memory", _FLYP if size == 512 else "")


def epochs(s: Situation) -> Choice:
    """Choose the number of epochs."""
    usual = _usual_epochs(s)
    number = min(50, max(usual, math.ceil(100 / s.steps_per_epoch)))
    size = "frozen towers" if s.model.is_new else f"{s.images:,} images"
    why = f"{number * s.steps_per_epoch:,} steps of {size}"
    more = ", at least 100 steps" if number > usual else ""
    return Choice(number, f"{why}{more}; the best epoch is kept", _TOWERS if s.model.is_new else _FLYP)


def evaluate_every(s: Situation) -> Choice | None:
    """Choose the number of epochs between evaluations: a run has about ten evaluations."""
    if "data.validation" not in s.chosen:
        return None
    every = max(1, int(s.chosen["train.epochs"]) // 10)
    return Choice(every, f"{s.chosen['train.epochs'] // every} evaluations")


def retention(s: Situation) -> Choice | None:
    """Choose the data on which forgetting is measured, if the user gave such data."""
    if s.retention is None:
        return None
    return Choice(
        s.retention,
        "the data given with --retention; measured before the first step and at each evaluation",
        "docs/keeping.md",
    )


def interpolate(s: Situation) -> Choice | None:
    """Choose the number of mixtures of the weights before and after training, if forgetting is measured."""
    if not _keeps(s):
        return None
    return Choice(11, "11 mixtures of the weights before and after training", "Wortsman et al. 2022, WiSE-FT")


def max_forgetting(s: Situation) -> Choice | None:
    """Choose the maximum drop of the retention metric for mixed weights, if forgetting is measured."""
    if not _keeps(s):
        return None
    reason = (
        "selects the best mixture that loses at most one point of retention. No method in our tests kept 95 % "
        "of the gain with this limit: on a small model, the best mixture kept 49 %, and 76 % if only the text tower "
        "was tuned. See the curve in the report, or remove this line to select the highest mean of target metric "
        "and retention"
    )
    return Choice(0.01, reason, _TUNED)


RULES = (
    Rule("data.validation", validation),
    Rule("data.samples", samples),
    Rule("model.image.tune", tune),
    Rule("model.text.tune", tune_text),
    Rule("data.captions", captions),
    Rule("data.workers", workers),
    Rule("train.batch_size", batch_size),
    Rule("train.epochs", epochs),
    Rule("loss.name", loss),
    Rule("loss.logit_scale", logit_scale),
    Rule("optim.lr", learning_rate),
    Rule("optim.layer_decay", layer_decay),
    Rule("optim.pull_to_start", pull_to_start),
    Rule("eval.every_epochs", evaluate_every),
    Rule("eval.retention", retention),
    Rule("eval.interpolate", interpolate),
    Rule("eval.max_forgetting", max_forgetting),
)
"""All rules of suggested recipes, in the order in which they are applied."""


def _keeps(s: Situation) -> bool:
    return s.retention is not None and not s.model.is_new and "data.validation" in s.chosen


def _usual_epochs(s: Situation) -> int:
    """Return the usual number of epochs: 20 for few images, fewer epochs for more images.

    The 20 epochs are from FLYP (Goyal et al. 2023). Two towers with new projections get the number from
    docs/benchmarks.md, section Two frozen towers.
    """
    if s.model.is_new:
        return 4 if s.chosen.get("data.captions") == "all" else 10
    limits = ((_FEW, 20), (20_000, 10), (_MANY * 2, 5), (_HUGE, 3))
    return next((number for limit, number in limits if s.images < limit), 1)


def _full_rate(parameters: int) -> float:
    """Return the learning rate of full tuning, inversely proportional to the number of parameters.

    The rate is 1e-5 for 150 M parameters, and always between 1e-6 and 1e-4.
    """
    return _rounded(min(1e-4, max(1e-6, 1e-5 * _B32 / parameters)))


def _rounded(rate: float) -> float:
    return float(f"{rate:.0e}")
