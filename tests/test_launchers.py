"""Launches that clipkit does not support are refused before the first step."""

from collections.abc import Callable

import pytest

from clipkit.errors import UserError
from clipkit.launchers import refuse_shared_gpus, refuse_unsupported_launcher
from clipkit.recipe import Recipe
from clipkit.training.plan import make_plan


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("ACCELERATE_USE_DEEPSPEED", "true"),
        ("ACCELERATE_USE_MEGATRON_LM", "true"),
        ("ACCELERATE_USE_FSDP", "true"),
        ("ACCELERATE_USE_PARALLELISM_CONFIG", "true"),
        ("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR"),
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4"),
        ("ACCELERATE_MIXED_PRECISION", "fp8"),
    ],
)
def test_unsupported_settings_are_refused(variable: str, value: str) -> None:
    with pytest.raises(UserError, match=f"{variable}={value}"):
        refuse_unsupported_launcher({variable: value})


def test_settings_that_ask_for_nothing_are_accepted() -> None:
    """Values that `accelerate launch` always sets."""
    refuse_unsupported_launcher(
        {"ACCELERATE_MIXED_PRECISION": "bf16", "ACCELERATE_DYNAMO_BACKEND": "NO", "ACCELERATE_USE_CPU": "True"}
    )


def test_a_run_reads_the_launchers_settings(recipe: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(UserError, match="DeepSpeed"):
        make_plan(recipe())


def test_processes_that_share_a_gpu_are_refused() -> None:
    with pytest.raises(UserError, match="ranks 1, 3 use the same GPU of b.*--processes 2"):
        refuse_shared_gpus([("a", "0"), ("b", "0"), ("b", "1"), ("b", "0")])
    refuse_shared_gpus([("a", ""), ("a", "")])
    refuse_shared_gpus([("a", "0"), ("b", "0")])
