"""Recipe section `lora` of a tower: low-rank adapters of its linear layers."""

from typing import Annotated

from pydantic import BeforeValidator, Field

from clipkit.recipe.section import Count, Section

TARGETS = ("q", "k", "v", "out", "mlp")


def _check_targets(targets: object) -> object:
    listed = targets if isinstance(targets, list) else []
    is_valid = bool(listed) and all(each in TARGETS and listed.count(each) == 1 for each in listed)
    if targets not in ("auto", "all") and not is_valid:
        raise ValueError(f"{targets!r} is not valid; use auto, all, or a list of {', '.join(TARGETS)}, each once")
    return targets


class LoraRecipe(Section):
    """Settings of the low-rank adapters that `tune: lora` and `tune: dora` train."""

    rank: int = Field(default=8, ge=1, le=2**16)
    """Rank of each adapter."""
    alpha: float = Field(default=16.0, gt=0, le=1e6)
    """Scale of the adapters: they add alpha / rank · B · A to a weight."""
    targets: Annotated[str | list[str], BeforeValidator(_check_targets)] = "auto"
    """Layers with adapters: a list of q, k, v (queries, keys and values of attention), out (its output) and mlp (all
    other linear layers); all; or auto: [q, k, v], and all in a tower without attention."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout rate on the input features of an adapter; the same features are dropped for all tokens of a micro-batch.
    If above 0, the result depends on micro_batch_size.
    """
    last: Count | None = None
    """Adapters in the last N blocks only; null: in all blocks."""
