"""Regularized canonical correlation analysis between the features of images and of their captions."""

from dataclasses import dataclass
from typing import Self

import torch
from jaxtyping import Float, Int
from torch import Tensor

# Columns of a Gram matrix that are computed at once: only blocks on and below the diagonal.
_BLOCK = 512


@dataclass
class PairSums:
    """Sums over pairs (x, y) in float64, from which all means and covariances follow.

    Sums of parts of the data add up to those of the whole: over micro-batches and over processes.

    Args:
        count: number of pairs.
        x, y: sums of the features.
        xx, yy, xy: sums of outer products.

    Example:
        >>> sums = PairSums.zeros(2, 1)
        >>> sums.add(torch.eye(2), torch.ones(3, 1), torch.tensor([0, 0, 1]))
        >>> sums.count.item(), sums.x.tolist()
        (3.0, [2.0, 1.0])
    """

    count: Float[Tensor, ""]
    x: Float[Tensor, " V"]
    y: Float[Tensor, " W"]
    xx: Float[Tensor, "V V"]
    yy: Float[Tensor, "W W"]
    xy: Float[Tensor, "V W"]

    @classmethod
    def zeros(cls, x_width: int, y_width: int, device: torch.device | None = None) -> Self:
        """Return the sums over no pairs."""
        shapes = ((), (x_width,), (y_width,), (x_width, x_width), (y_width, y_width), (x_width, y_width))
        return cls(*(torch.zeros(shape, dtype=torch.float64, device=device) for shape in shapes))

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All sums."""
        return self.count, self.x, self.y, self.xx, self.yy, self.xy

    def add(self, x: Float[Tensor, "N V"], y: Float[Tensor, "M W"], x_of_y: Int[Tensor, " M"]) -> None:
        """Add the pairs of each row of y with the row of x that `x_of_y` names: an image and one of its captions."""
        x, y = x.double(), y.double()
        counts = torch.bincount(x_of_y, minlength=len(x)).to(x)
        y_sums = torch.zeros(len(x), y.shape[1], dtype=y.dtype, device=y.device).index_add_(0, x_of_y, y)
        self.count += len(y)
        self.x += counts @ x
        self.y += y.sum(dim=0)
        _add_gram(self.xx, x * counts.sqrt()[:, None])
        _add_gram(self.yy, y)
        self.xy += x.T @ y_sums

    def plus(self, other: "PairSums") -> Self:
        """Return the sums over the pairs of both."""
        return type(self)(*(one + another for one, another in zip(self.tensors, other.tensors, strict=True)))

    def cpu(self) -> Self:
        """Return the sums on the CPU."""
        return type(self)(*(one.cpu() for one in self.tensors))

    def of(self, x_columns: Int[Tensor, " v"], y_columns: Int[Tensor, " w"]) -> Self:
        """Return the sums for some of the columns."""
        xx, yy, xy = (
            self.xx[x_columns][:, x_columns],
            self.yy[y_columns][:, y_columns],
            self.xy[x_columns][:, y_columns],
        )
        return type(self)(self.count, self.x[x_columns], self.y[y_columns], xx, yy, xy)


@dataclass(frozen=True)
class CanonicalCorrelation:
    """Maps of both kinds of features to canonical coordinates, in float64, the most correlated first.

    The coordinates of x are (x − x_mean) · x_map. Coordinate k of x and of y have regularized correlation
    `correlations[k]`.
    """

    x_mean: Float[Tensor, " V"]
    y_mean: Float[Tensor, " W"]
    x_map: Float[Tensor, "V K"]
    y_map: Float[Tensor, "W K"]
    correlations: Float[Tensor, " K"]


def canonical_correlation(
    sums: PairSums, x_ridge: float, y_ridge: float, count: int | None = None
) -> CanonicalCorrelation:
    """Return regularized canonical correlations (Hotelling 1936; Vinod 1976, ridge).

    The maps U and V maximize the trace of Uᵀ Cxy V subject to Uᵀ (Cxx + a I) U = I and Vᵀ (Cyy + b I) V = I.

    Args:
        sums: sums over the pairs.
        x_ridge, y_ridge: a and b, in units of the mean variance of the columns.
        count: number of coordinates K; None: as many as the narrower features have columns.

    Raises:
        ValueError: a ridge is not positive, or there are fewer than two pairs.

    Example:
        >>> sums = PairSums.zeros(2, 2)
        >>> x = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 2.0], [0.0, -2.0]])
        >>> sums.add(x, x, torch.arange(4))
        >>> [round(value, 3) for value in canonical_correlation(sums, 1e-9, 1e-9).correlations.tolist()]
        [1.0, 1.0]
    """
    if min(x_ridge, y_ridge) <= 0 or sums.count < 2:
        raise ValueError("ridges must be positive, and there must be two pairs or more")
    x_mean, y_mean = sums.x / sums.count, sums.y / sums.count
    xx, yy = (
        _lower(sums.xx / sums.count - x_mean.outer(x_mean), x_ridge),
        _lower(sums.yy / sums.count - y_mean.outer(y_mean), y_ridge),
    )
    xy = sums.xy / sums.count - x_mean.outer(y_mean)
    # Singular vectors of Lx⁻¹ Cxy Ly⁻ᵀ, from the eigenvectors of the smaller of its two Gram matrices.
    whitened = torch.linalg.solve_triangular(xx, xy, upper=False)
    whitened = torch.linalg.solve_triangular(yy, whitened.T, upper=False).T
    wide = whitened.shape[0] <= whitened.shape[1]
    small = whitened if wide else whitened.T
    squares, left = torch.linalg.eigh(small @ small.T)
    kept = min(count or len(squares), len(squares))
    squares, left = squares[-kept:].flip(0).clamp(min=0), left[:, -kept:].flip(1)
    left = left * _signs(left)
    correlations = squares.sqrt()
    # Directions without any correlation have no counterpart on the other side: they get zeros on both.
    used = correlations > 1e-7 * correlations[:1].clamp(min=1e-12)
    right = small.T @ left / correlations.where(used, torch.ones_like(correlations))
    left, right = left * used, right * used
    x_side, y_side = (left, right) if wide else (right, left)
    return CanonicalCorrelation(
        x_mean,
        y_mean,
        torch.linalg.solve_triangular(xx.T, x_side, upper=True),
        torch.linalg.solve_triangular(yy.T, y_side, upper=True),
        correlations * used,
    )


def _lower(covariance: Tensor, ridge: float) -> Tensor:
    """Return the Cholesky factor of a covariance with a ridge in units of its mean variance."""
    variance = covariance.diagonal().mean().clamp(min=1e-30)
    return torch.linalg.cholesky(covariance + ridge * variance * torch.eye(len(covariance)).to(covariance))


def _signs(vectors: Tensor) -> Tensor:
    """Return signs that make the largest value of each column positive: the sign of an eigenvector is arbitrary."""
    return vectors.gather(0, vectors.abs().argmax(dim=0)[None]).sign()


def _add_gram(total: Tensor, rows: Tensor) -> None:
    """Add rowsᵀ · rows, of which only one triangle is computed."""
    for start in range(0, rows.shape[1], _BLOCK):
        block = slice(start, start + _BLOCK)
        product = rows[:, start:].T @ rows[:, block]
        total[start:, block] += product
        total[block, start + _BLOCK :] += product[_BLOCK:].T
