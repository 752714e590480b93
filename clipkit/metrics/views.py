"""Alignment and uniformity of features of unit length."""

import torch
from jaxtyping import Float
from torch import Tensor

from clipkit.metrics.arrays import takes_arrays

_ROWS = 1024  # number of rows that are compared with all rows at once


@takes_arrays
def alignment(first: Float[Tensor, "N D"], second: Float[Tensor, "N D"]) -> Float[Tensor, " N"]:
    """Return ‖x_i − y_i‖² of each positive pair (Wang and Isola 2020, equation 5 with α = 2).

    The value is 0 for equal features and 2 for orthogonal features.

    Args:
        first: features x, unit length.
        second: features y, unit length. Row i is another view of row i of `first`.

    Example:
        >>> alignment(torch.eye(2), torch.eye(2).flip(0)).tolist()
        [2.0, 2.0]
    """
    return (first.float() - second.float()).square().sum(dim=1)


@takes_arrays
def uniformity(features: Float[Tensor, "N D"]) -> float:
    """Return log mean exp(−2‖x_i − x_j‖²) over all pairs i ≠ j (Wang and Isola 2020, equation 6 with t = 2).

    The value is 0 if all features are equal, and about −4 if they are spread evenly.

    Args:
        features: unit length, at least two.

    Example:
        >>> round(uniformity(torch.eye(3)), 4)
        -4.0
    """
    x = features.float()
    sums = [
        # −2‖x_i − x_j‖² = 4 (x_i·x_j − 1) for unit vectors; the diagonal is excluded.
        (4 * (x[start : start + _ROWS] @ x.T - 1)).masked_fill(_diagonal(start, x), -torch.inf).logsumexp(dim=1)
        for start in range(0, len(x), _ROWS)
    ]
    pairs = torch.tensor(float(len(x) * (len(x) - 1)))
    return (torch.cat(sums).logsumexp(dim=0) - pairs.log()).item()


def _diagonal(start: int, x: Tensor) -> Tensor:
    rows = torch.arange(start, min(start + _ROWS, len(x)), device=x.device)
    return rows[:, None] == torch.arange(len(x), device=x.device)
