"""How features of views lie on the sphere."""

import torch
from jaxtyping import Float
from torch import Tensor

_ROWS = 1024  # compared at once


def alignment(first: Float[Tensor, "N D"], second: Float[Tensor, "N D"]) -> Float[Tensor, " N"]:
    """‖x_i − y_i‖² of each positive pair (Wang and Isola 2020, equation 5, α = 2): 0 together, 2 at right angles.

    Args:
        first: unit length.
        second: unit length, row i is another view of row i.

    Example:
        >>> alignment(torch.eye(2), torch.eye(2).flip(0)).tolist()
        [2.0, 2.0]
    """
    return (first.float() - second.float()).square().sum(dim=1)


def uniformity(features: Float[Tensor, "N D"]) -> float:
    """log mean exp(−2‖x_i − x_j‖²) over i ≠ j (Wang and Isola 2020, equation 6, t = 2): 0 all in one place, −4 spread.

    Args:
        features: unit length, at least two.

    Example:
        >>> round(uniformity(torch.eye(3)), 4)
        -4.0
    """
    x = features.float()
    sums = [
        # Minus twice the squared distance of unit vectors, the vector's own one left out.
        (4 * (x[start : start + _ROWS] @ x.T - 1)).masked_fill(_itself(start, x), -torch.inf).logsumexp(dim=1)
        for start in range(0, len(x), _ROWS)
    ]
    pairs = torch.tensor(float(len(x) * (len(x) - 1)))
    return (torch.cat(sums).logsumexp(dim=0) - pairs.log()).item()


def _itself(start: int, x: Tensor) -> Tensor:
    rows = torch.arange(start, min(start + _ROWS, len(x)), device=x.device)
    return rows[:, None] == torch.arange(len(x), device=x.device)
