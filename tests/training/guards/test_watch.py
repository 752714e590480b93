"""Rules about a run's logs: each one reports a problem once, and nothing in a good run."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from clipkit.findings import Finding
from clipkit.training.guards.logs import Facts
from clipkit.training.guards.watch import Watch, replay

STEPS = 200
FACTS = Facts(
    batch_size=64, rising=20, steps=STEPS, chance=math.log(64), start_scale=14.3, largest_scale=100.0,
    metric="mean_recall", retention="retention_acc1", retention_start=0.6, validation_images=500,
)  # fmt: skip


def row(step: int, **changes: float) -> dict[str, float]:
    """Return the log of a step in a good run."""
    share = step / STEPS
    good = {
        "step": step, "loss": math.log(64) * (1 - 0.8 * share), "lr": 1e-5, "scale": 14.3 + 10 * share,
        "grad_norm": 1 + 0.1 * math.sin(step), "image_accuracy": 0.05 + 0.5 * share,
        "text_accuracy": 0.05 + 0.4 * share, "positive_cosine": 0.3 + 0.3 * share, "negative_cosine": 0.1,
        "image_cosine": 0.3, "text_cosine": 0.4,
    }  # fmt: skip
    return good | changes


def fitted(step: int, accuracy: float) -> dict[str, float]:
    """Return the log of a step in a run that ends with this accuracy in both directions."""
    return row(step, text_accuracy=accuracy * step / STEPS, image_accuracy=accuracy * step / STEPS)


def speed(step: int, waiting: float = 0.01) -> dict[str, float]:
    return {"step": step, "step_seconds": 1.0, "data_wait_seconds": waiting}


def findings_of(
    rows: Callable[[int], dict[str, float]] = row,
    speeds: Callable[[int], dict[str, float]] = speed,
    evaluations: Sequence[dict[str, float]] = (),
    facts: Facts = FACTS,
) -> list[Finding]:
    steps = range(1, STEPS + 1)
    return list(replay(Watch(facts), [rows(step) for step in steps], [speeds(step) for step in steps], evaluations))


def evaluated(recalls: Sequence[float], kept: Sequence[float] | None = None) -> list[dict[str, float]]:
    return [
        {"step": 20 * number, "mean_recall": recall, **({} if kept is None else {"retention_acc1": kept[number - 1]})}
        for number, recall in enumerate(recalls, 1)
    ]


def test_good_run_has_no_finding() -> None:
    assert (
        findings_of(
            evaluations=evaluated([0.1, 0.2, 0.25, 0.26, 0.255, 0.25, 0.254], [0.6, 0.6, 0.59, 0.58, 0.58, 0.57, 0.57])
        )
        == []
    )


BAD: dict[str, dict[str, Any]] = {
    "loss_at_chance": {
        "rows": lambda step: row(step, loss=math.log(64) * 0.99, image_accuracy=0.02, text_accuracy=0.01)
    },
    "collapsed": {"rows": lambda step: row(step, text_cosine=0.97)},
    "scale_at_cap": {"rows": lambda step: row(step, scale=min(100.0, 14.3 + step))},
    "scale_falls": {"rows": lambda step: row(step, scale=14.3 * 0.99**step)},
    "gradient_explodes": {"rows": lambda step: row(step, grad_norm=90.0 if 120 < step < 126 else 1.0)},
    "one_direction": {"rows": lambda step: row(step, image_accuracy=0.6, text_accuracy=0.05)},
    "data_wait": {"speeds": lambda step: speed(step, waiting=0.4)},
    "validation_worse": {"evaluations": evaluated([0.2, 0.3, 0.28, 0.27, 0.26])},
    "validation_at_chance": {
        "evaluations": [{"step": 200, "text_accuracy": 0.017}],
        "rows": lambda step: fitted(step, 0.5),
    },
    "memorization": {
        "evaluations": [{"step": step, "text_accuracy": 0.2} for step in (198, 199, 200)],
        "rows": lambda step: fitted(step, 0.99),
    },
    "forgetting": {"evaluations": evaluated([0.2, 0.3], [0.58, 0.4])},
}
GOOD: dict[str, dict[str, Any]] = {
    "loss_at_chance": {  # at chance during the warmup; a margin loss at its chance level while pairs are matched
        "rows": lambda step: row(step, loss=math.log(64) if step <= 20 else 3.0 if step % 2 else 3.4)
    },
    "collapsed": {"rows": lambda step: row(step, image_cosine=0.99 if step <= 20 else 0.9)},
    "scale_at_cap": {
        "rows": lambda step: row(step, scale=100.0),
        "facts": Facts(64, 20, STEPS, math.log(64), 100.0, 100.0, "mean_recall"),
    },
    "scale_falls": {"rows": lambda step: row(step, scale=14.3 - 0.01 * step)},
    "gradient_explodes": {"rows": lambda step: row(step, grad_norm=90.0 if step % 40 == 0 else 5.0)},
    "one_direction": {"rows": lambda step: row(step, image_accuracy=0.6, text_accuracy=0.3)},
    "data_wait": {"speeds": lambda step: speed(step, waiting=30.0 if step < 5 else 0.2)},
    "validation_worse": {"evaluations": evaluated([0.2, 0.3, 0.28, 0.299, 0.27, 0.28])},
    # a model that learns slowly, one that overfits as usual, and one that has learned what it can
    "validation_at_chance": {"evaluations": [{"step": 40, "text_accuracy": 0.016}]},
    "memorization": {"evaluations": [{"step": 200, "text_accuracy": 0.4}], "rows": lambda step: fitted(step, 0.95)},
    "still better": {
        "evaluations": [{"step": 197 + number, "text_accuracy": 0.1 + 0.01 * number} for number in range(4)],
        "rows": lambda step: fitted(step, 0.99),
    },
    "both": {"evaluations": [{"step": 200, "text_accuracy": 0.06}], "rows": lambda step: fitted(step, 0.19)},
    "forgetting": {"evaluations": evaluated([0.2, 0.3], [0.58, 0.56])},
}


@pytest.mark.parametrize("name", BAD)
def test_problem_is_reported_once(name: str) -> None:
    found = findings_of(**BAD[name])
    assert [finding.name for finding in found] == [name]
    assert found[0].step is not None
    assert found[0].severity == "warning"
    assert found[0].advice


@pytest.mark.parametrize("name", GOOD)
def test_good_logs_have_no_finding(name: str) -> None:
    assert findings_of(**GOOD[name]) == []


def test_margin_loss_at_its_margin_is_not_at_chance_if_pairs_are_matched() -> None:
    margin = Facts(64, 20, STEPS, 0.2, 1.0, None, None)
    stuck = findings_of(lambda step: row(step, loss=0.199, image_accuracy=0.02, text_accuracy=0.02), facts=margin)
    assert [finding.name for finding in stuck] == ["loss_at_chance"]
    assert findings_of(lambda step: row(step, loss=0.199, image_accuracy=0.4, text_accuracy=0.4), facts=margin) == []


@pytest.mark.parametrize("size", [2, 3, 4, 8])
def test_small_batch_that_learns_is_not_at_chance(size: int) -> None:
    """The loss of a small batch varies, so that its mean may be near the level of chance."""
    level, facts = math.log(size), Facts(size, 20, STEPS, math.log(size), 14.3, 100.0, None)

    def noisy(step: int) -> dict[str, float]:
        accuracy = 0.5 + 0.5 * (step % 2)
        return row(step, loss=level * (0.3 + 1.4 * (step % 2)), image_accuracy=accuracy, text_accuracy=accuracy)

    assert findings_of(noisy, facts=facts) == []
    # The same losses, with as many matched pairs as by chance.
    by_chance = findings_of(
        lambda step: noisy(step) | {"image_accuracy": 1 / size, "text_accuracy": 1 / size}, facts=facts
    )
    assert by_chance == []
    stuck = findings_of(
        lambda step: row(step, loss=level, image_accuracy=1 / size, text_accuracy=1 / size), facts=facts
    )
    assert [finding.name for finding in stuck] == ["loss_at_chance"]


def test_messages_name_the_views() -> None:
    facts = Facts(64, 20, STEPS, 4.8, 1.0, None, None, sides=("image_view_1", "image_view_2"))
    found = findings_of(
        lambda step: row(step, loss=3.0, image_view_1_cosine=0.99, image_view_2_cosine=0.99), facts=facts
    )
    assert [finding.name for finding in found] == ["collapsed"]
    assert "image_view_1" in found[0].message


def test_rows_of_every_tenth_step_are_enough() -> None:
    rows = [row(10 * step, text_cosine=0.97) for step in range(1, 60)]
    facts = Facts(64, 20, 590, math.log(64), 14.3, 100.0, None)
    assert [finding.name for finding in replay(Watch(facts), rows, [], [])] == ["collapsed"]
