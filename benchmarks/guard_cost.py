"""Measure the share of a run's time that guards and logging take.

    python benchmarks/guard_cost.py recipes/flickr8k_towers.yaml

Runs the recipe once into a temporary folder and times everything that guards and logging do: findings before the first
step, batch statistics, rules, log files, retention.
"""

import argparse
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from clipkit.recipe import Recipe
from clipkit.training import recorder
from clipkit.training.folder.run_folder import RunFolder, claimed
from clipkit.training.guards import monitor
from clipkit.training.plan import make_plan
from clipkit.training.run import run
from clipkit.training.stop import StopRequest

SPENT: dict[str, float] = defaultdict(float)


def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function with a timer around it."""

    def wrapped(*arguments: Any, **options: Any) -> Any:
        began = time.perf_counter()
        try:
            return function(*arguments, **options)
        finally:
            SPENT[name] += time.perf_counter() - began

    return wrapped


def main() -> None:
    """Run the recipe and print the time of each part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()
    patched: list[tuple[Any, str, str]] = [
        (monitor, "before_first_step", "before the first step"),
        (monitor, "other_settings", "before the first step"),
        (monitor, "retention_of", "retention"),
        (monitor, "batch_statistics", "batch statistics"),
        (monitor.Monitor, "logged", "rules"),
        (monitor.Monitor, "evaluated", "rules"),
        (recorder, "append", "log files"),
        (recorder, "memory_in_use", "log files"),
    ]
    for owner, attribute, name in patched:
        setattr(owner, attribute, timed(name, getattr(owner, attribute)))
    with tempfile.TemporaryDirectory() as folder, StopRequest() as stop:
        recipe = Recipe.from_yaml(arguments.recipe, [*arguments.overrides, f"output={folder}/run"])
        began = time.perf_counter()
        plan = make_plan(recipe)
        with claimed(RunFolder(recipe.output), plan.processes, resume=False, overwrite=False) as claim:
            run(plan, claim, stop)
        took = time.perf_counter() - began
        steps = plan.steps
    for name, seconds in SPENT.items():
        print(f"{name:24} {seconds:8.3f} s {seconds / took:8.2%}")
    total = sum(SPENT.values())
    print(f"{'total':24} {total:8.3f} s {total / took:8.2%} of {took:.1f} s, {steps} steps")


if __name__ == "__main__":
    main()
