"""What a run's logs say: each rule speaks where it should, once, and is silent where it should be."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from clipkit.findings import Finding
from clipkit.training.guards.watch import Facts, Watch, replay

STEPS = 200
FACTS = Facts(
    batch_size=64, rising=20, steps=STEPS, chance=math.log(64), start_scale=14.3, largest_scale=100.0,
    metric="mean_recall", retention="retention_acc1", retention_start=0.6,
)  # fmt: skip


def row(step: int, **changes: float) -> dict[str, float]:
    """A step of a run in which all is well."""
    share = step / STEPS
    good = {
        "step": step, "loss": math.log(64) * (1 - 0.8 * share), "lr": 1e-5, "scale": 14.3 + 10 * share,
        "grad_norm": 1 + 0.1 * math.sin(step), "image_accuracy": 0.05 + 0.5 * share,
        "text_accuracy": 0.05 + 0.4 * share, "positive_cosine": 0.3 + 0.3 * share, "negative_cosine": 0.1,
        "image_cosine": 0.3, "text_cosine": 0.4,
    }  # fmt: skip
    return good | changes


def speed(step: int, waiting: float = 0.01) -> dict[str, float]:
    return {"step": step, "step_seconds": 1.0, "data_wait_seconds": waiting}


def said(
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


def test_a_good_run_is_left_alone() -> None:
    assert (
        said(
            evaluations=evaluated([0.1, 0.2, 0.25, 0.26, 0.255, 0.25, 0.254], [0.6, 0.6, 0.59, 0.58, 0.58, 0.57, 0.57])
        )
        == []
    )


SPEAKS: dict[str, dict[str, Any]] = {
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
    "forgetting": {"evaluations": evaluated([0.2, 0.3], [0.58, 0.4])},
}
SILENT: dict[str, dict[str, Any]] = {
    "loss_at_chance": {  # at chance during the warmup; a margin loss on whose level pairs do find each other
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
    "forgetting": {"evaluations": evaluated([0.2, 0.3], [0.58, 0.56])},
}


@pytest.mark.parametrize("name", SPEAKS)
def test_it_speaks_once(name: str) -> None:
    found = said(**SPEAKS[name])
    assert [own.name for own in found] == [name]
    assert found[0].step is not None
    assert found[0].severity == "warning"
    assert found[0].advice


@pytest.mark.parametrize("name", SILENT)
def test_it_is_silent(name: str) -> None:
    assert said(**SILENT[name]) == []


def test_a_margin_loss_at_its_margin_is_no_chance_where_samples_find_each_other() -> None:
    margin = Facts(64, 20, STEPS, 0.2, 1.0, None, None)
    stuck = said(lambda step: row(step, loss=0.199, image_accuracy=0.02, text_accuracy=0.02), facts=margin)
    assert [own.name for own in stuck] == ["loss_at_chance"]
    assert said(lambda step: row(step, loss=0.199, image_accuracy=0.4, text_accuracy=0.4), facts=margin) == []


def test_views_are_named_as_they_are() -> None:
    facts = Facts(64, 20, STEPS, 4.8, 1.0, None, None, sides=("image_view_1", "image_view_2"))
    found = said(lambda step: row(step, loss=3.0, image_view_1_cosine=0.99, image_view_2_cosine=0.99), facts=facts)
    assert [own.name for own in found] == ["collapsed"]
    assert "image_view_1" in found[0].message


def test_rows_logged_seldom_are_enough() -> None:
    rows = [row(10 * step, text_cosine=0.97) for step in range(1, 60)]
    facts = Facts(64, 20, 590, math.log(64), 14.3, 100.0, None)
    assert [own.name for own in replay(Watch(facts), rows, [], [])] == ["collapsed"]
