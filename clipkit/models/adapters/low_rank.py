"""Low-rank adapters of a weight matrix (LoRA and DoRA)."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from clipkit.recipe import LoraRecipe


def adapted_weight(
    weight: Float[Tensor, "O I"],
    lora_A: Float[Tensor, "R I"],
    lora_B: Float[Tensor, "O R"],
    scaling: float,
    magnitude: Float[Tensor, " O"] | None = None,
) -> Float[Tensor, "O I"]:
    """Return the weight of a layer with LoRA, or with DoRA if magnitudes are given.

    LoRA returns V = W + scaling · B · A (Hu et al. 2021, section 4.1). DoRA then scales row i of V to the norm
    `magnitude[i]` (Liu et al. 2024, equation 5). Norms are per row, as in the authors' code and in PEFT. No gradient
    flows through the norms (section 4.3).

    Example:
        >>> weight, a, b = torch.tensor([[3.0, 4.0]]), torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0]])
        >>> adapted_weight(weight, a, b, 2.0, magnitude=torch.tensor([10.0]))
        tensor([[6., 8.]])
    """
    changed = torch.addmm(weight, lora_B, lora_A, alpha=scaling)
    return changed if magnitude is None else changed * (magnitude / row_norms(changed))[:, None]


@torch.no_grad()
def row_norms(weight: Float[Tensor, "O I"]) -> Float[Tensor, " O"]:
    """Return the Euclidean norm of each row; a norm of 0 becomes a tiny positive number, to allow division."""
    return torch.linalg.vector_norm(weight, dim=1).clamp(min=torch.finfo(weight.dtype).tiny)


class LowRank(nn.Module):
    """Low-rank adapter of a weight, or of some rows of a larger weight.

    A new adapter leaves the weight unchanged, because `lora_B` is zero.

    Args:
        weight: (O, I) the initial weight.
        recipe: rank, alpha and dropout of the adapter.
        with_magnitude: True for DoRA, False for LoRA.

    Example:
        >>> weight = torch.randn(6, 4)
        >>> torch.equal(LowRank(weight, LoraRecipe(rank=2), with_magnitude=True)(weight), weight)
        True
    """

    def __init__(self, weight: Float[Tensor, "O I"], recipe: LoraRecipe, with_magnitude: bool) -> None:
        super().__init__()
        rows, columns = weight.shape
        self.scaling = recipe.alpha / recipe.rank
        self.dropout = recipe.dropout
        self.lora_A = nn.Parameter(weight.new_empty(recipe.rank, columns))
        self.lora_B = nn.Parameter(weight.new_zeros(rows, recipe.rank))
        self.magnitude = nn.Parameter(row_norms(weight)) if with_magnitude else None
        nn.init.kaiming_uniform_(self.lora_A, a=5**0.5)  # as PEFT and the LoRA authors' code

    def forward(self, weight: Float[Tensor, "O I"]) -> Float[Tensor, "O I"]:
        """Return the adapted weight; during training, dropout sets random columns of A to zero."""
        lora_A: Tensor = self.lora_A
        if self.training and self.dropout > 0:
            kept = torch.rand(lora_A.shape[1], device=lora_A.device) >= self.dropout
            lora_A = lora_A * kept / (1 - self.dropout)
        return adapted_weight(weight, lora_A, self.lora_B, self.scaling, self.magnitude)

    @torch.no_grad()
    def interpolate(self, weight: Float[Tensor, "O I"], alpha: float) -> None:
        """Change the adapter so that the adapted weight becomes (1 - alpha) · W + alpha · (current adapted weight)."""
        if self.magnitude is None:
            self.lora_B.mul_(alpha)
            return
        # With DoRA, the current row i is r · (w_i + δ_i). Here δ_i is row i of scaling · B · A, and r is the magnitude
        # divided by the norm of w_i + δ_i. The new row is p · w_i + q · δ_i, with p = 1 - alpha + alpha · r and
        # q = alpha · r. So row i of B is multiplied by q / p, and the new magnitude is the norm of the new row with
        # the sign of p.
        ratio = self.magnitude / row_norms(torch.addmm(weight, self.lora_B, self.lora_A, alpha=self.scaling))
        rows = (1 - alpha) * weight + alpha * adapted_weight(
            weight, self.lora_A, self.lora_B, self.scaling, self.magnitude
        )
        base_share = 1 - alpha + alpha * ratio
        self.lora_B.mul_((alpha * ratio / base_share)[:, None])
        self.magnitude.copy_(row_norms(rows) * base_share.sign())


class Adapter(nn.Module):
    """Low-rank adapters of one weight matrix, with a separate adapter for each selected slice.

    The slices are row blocks of equal size, e.g. q, k and v. A matrix can also be one slice.

    Args:
        weight: (O, I) the initial weight.
        names: name of each slice, in order.
        chosen: names of the slices that get an adapter.
        recipe: rank, alpha and dropout of each adapter.
        with_magnitude: True for DoRA, False for LoRA.
    """

    def __init__(
        self, weight: Float[Tensor, "O I"], names: Sequence[str], chosen: Sequence[str], recipe: LoraRecipe,
        with_magnitude: bool,
    ) -> None:  # fmt: skip
        super().__init__()
        self.names = tuple(names)
        self.parts = nn.ModuleDict()
        for name, rows in zip(names, weight.detach().chunk(len(names)), strict=True):
            if name in chosen:
                self.parts[name] = LowRank(rows, recipe, with_magnitude)

    def forward(self, weight: Float[Tensor, "O I"]) -> Float[Tensor, "O I"]:
        """Return the adapted weight, computed in the precision of the weight, even under autocast."""
        with torch.autocast(weight.device.type, enabled=False):
            if len(self.names) == 1:
                return self.parts[self.names[0]](weight)
            slices = zip(self.names, weight.chunk(len(self.names)), strict=True)
            return torch.cat([self.parts[name](rows) if name in self.parts else rows for name, rows in slices])

    @property
    def low_ranks(self) -> list[LowRank]:
        """Adapters in the order of the slices; slices without an adapter are skipped."""
        return [part for part in self.parts.values() if isinstance(part, LowRank)]

    def slices(self, weight: Float[Tensor, "O I"]) -> list[tuple[LowRank | None, Float[Tensor, "S I"]]]:
        """Return (adapter, rows) for each slice of the weight; the adapter is None if the slice has none."""
        parts = iter(self.low_ranks)
        rows = weight.detach().chunk(len(self.names))
        return [
            (next(parts) if name in self.parts else None, each) for name, each in zip(self.names, rows, strict=True)
        ]
