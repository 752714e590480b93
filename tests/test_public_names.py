"""Public names: each has a docstring with an example, its examples run, and its types are complete for users."""

import doctest
import inspect
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import clipkit

SCRIPT = Path(__file__).parent / "users_script.py"
# Modules and a string; their functions have tests of their own.
NAMES = [name for name in clipkit.__all__ if name not in ("__version__", "evaluate", "losses", "metrics")]


@pytest.mark.parametrize("name", NAMES)
def test_a_public_name_has_an_example_that_runs(name: str) -> None:
    thing: Any = getattr(clipkit, name)
    assert inspect.getdoc(thing), name
    assert ">>>" in (inspect.getdoc(thing) or ""), name
    module = sys.modules[thing.__module__]
    found = doctest.DocTestFinder(recurse=False).find(thing, name, module, globs=vars(module) | {"clipkit": clipkit})
    runner = doctest.DocTestRunner(verbose=False)
    for test in found:
        for example in test.examples:  # also those that need a model or data, and are skipped
            compile(example.source, name, "single")
        runner.run(test)
    assert runner.failures == 0


def test_the_script_uses_every_public_name() -> None:
    used = set(re.findall(r"clipkit\.(\w+)", SCRIPT.read_text(encoding="utf-8")))
    assert set(clipkit.__all__) <= used


@pytest.mark.slow
def test_a_script_of_a_user_is_typed(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "--ignore-missing-imports"]
    command += ["--config-file=", f"--cache-dir={tmp_path}", str(SCRIPT)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=SCRIPT.parents[1], check=False)
    assert done.returncode == 0, done.stdout
