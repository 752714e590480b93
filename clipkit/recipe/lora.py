"""Recipe section `lora` of a tower: low-rank adapters of its linear layers."""

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from clipkit.recipe.section import Count, Section

Target = Literal["q", "k", "v", "out", "mlp"]


def _check_distinct(targets: Sequence[Target]) -> Sequence[Target]:
    if not targets or len(set(targets)) < len(targets):
        raise ValueError(f"is {list(targets)}; list one or more of q, k, v, out and mlp, each once, or use auto or all")
    return targets


class LoraRecipe(Section):
    """Settings of `tune: lora` and `tune: dora`."""

    rank: int = Field(default=8, ge=1, le=2**16)
    """Rank of each adapter."""
    alpha: float = Field(default=16.0, gt=0, le=1e6)
    """Scale of the adapters: they add alpha / rank · B · A to a weight."""
    targets: Literal["auto", "all"] | Annotated[list[Target], AfterValidator(_check_distinct)] = "auto"
    """Layers with adapters: a list of q, k, v (queries, keys and values of attention), out (its output) and mlp (all
    other linear layers); all; or auto: [q, k, v], and all in a tower without attention."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Rate at which an adapter ignores the input features of its layer; the same ones for all tokens of a micro-batch.
    If above 0, the result depends on micro_batch_size."""
    last: Count | None = None
    """Adapters in the last N blocks only; null: in all blocks."""
