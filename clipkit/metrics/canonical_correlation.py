"""Regularized canonical correlation analysis between the features of images and of their captions."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from jaxtyping import Float, Int
from torch import Tensor

# Columns of a Gram matrix that are computed at once: only blocks on and below the diagonal.
_BLOCK = 512
# Share of the mean square below which a variance may be rounding of float32 features.
_CONSTANT = 1e-9


@dataclass
class PairSums:
    """Sums over pairs (x, y) in float64, from which means and covariances can be computed.

    The sums of the whole data are the sums of its parts, so micro-batches and processes can be added.

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
        """All sums as a tuple."""
        return self.count, self.x, self.y, self.xx, self.yy, self.xy

    def add(self, x: Float[Tensor, "N V"], y: Float[Tensor, "M W"], x_of_y: Int[Tensor, " M"]) -> None:
        """Add pairs: each row of y (a caption) and its row of x (an image), whose position is in `x_of_y`."""
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
        """Return the sums over the pairs of both objects."""
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

    def scaled(self, x_scale: Float[Tensor, " V"], y_scale: Float[Tensor, " W"]) -> Self:
        """Return the sums of features whose columns are multiplied by these factors."""
        xx, yy, xy = (
            total * rows[:, None] * columns
            for total, rows, columns in (
                (self.xx, x_scale, x_scale),
                (self.yy, y_scale, y_scale),
                (self.xy, x_scale, y_scale),
            )
        )
        return type(self)(self.count, self.x * x_scale, self.y * y_scale, xx, yy, xy)


@dataclass(frozen=True)
class CanonicalCorrelation:
    """Maps from both kinds of features to canonical coordinates, the most correlated first, in float64.

    The coordinates of x are (x − x_mean) · x_map. Coordinate k of x and of y have regularized correlation
    `correlations[k]`.
    """

    x_mean: Float[Tensor, " V"]
    y_mean: Float[Tensor, " W"]
    x_map: Float[Tensor, "V K"]
    y_map: Float[Tensor, "W K"]
    correlations: Float[Tensor, " K"]


def canonical_correlation(
    sums: PairSums,
    x_ridge: float,
    y_ridge: float,
    count: int | None = None,
    *,
    x_blocks: Sequence[int] | None = None,
    y_blocks: Sequence[int] | None = None,
    approximate: bool = False,
) -> CanonicalCorrelation:
    """Return regularized canonical correlations (Hotelling 1936; Vinod 1976, ridge).

    The maps U and V maximize the trace of Uᵀ Cxy V subject to Uᵀ (Cxx + a I) U = I and Vᵀ (Cyy + b I) V = I.

    Args:
        sums: sums over the pairs.
        x_ridge, y_ridge: a and b, in units of the mean variance of the columns.
        count: number of coordinates K; None: as many as the narrower features have columns.
        x_blocks, y_blocks: widths of blocks of columns, such as layers of a network. Before the ridge is added, each
            block is scaled to a total variance of 1 (block scaling, Westerhuis et al. 1998), so that the ridge has the
            same effect on layers with small and with large values. None: columns are used as they are.
        approximate: compute in float32, and find the singular vectors by subspace iteration (Halko et al. 2011): takes
            a fifth of the time if K is much smaller than the widths of the features.

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
    x_scale, y_scale = _scale(sums.count, sums.x, sums.xx, x_blocks), _scale(sums.count, sums.y, sums.yy, y_blocks)
    sums = sums.scaled(x_scale, y_scale)
    x_mean, y_mean = sums.x / sums.count, sums.y / sums.count
    dtype = torch.float32 if approximate else torch.float64
    x_lower = _lower((sums.xx / sums.count - x_mean.outer(x_mean)).to(dtype), x_ridge)
    y_lower = _lower((sums.yy / sums.count - y_mean.outer(y_mean)).to(dtype), y_ridge)
    whitened = (sums.xy / sums.count - x_mean.outer(y_mean)).to(dtype)
    whitened = torch.linalg.solve_triangular(x_lower, whitened, upper=False)
    whitened = torch.linalg.solve_triangular(y_lower, whitened.T, upper=False).T
    kept = min(whitened.shape) if count is None else min(count, *whitened.shape)
    x_side, values, y_side = (_leading if approximate else _singular)(whitened, kept)
    x_map = torch.linalg.solve_triangular(x_lower.T, x_side, upper=True).double() * x_scale[:, None]
    y_map = torch.linalg.solve_triangular(y_lower.T, y_side, upper=True).double() * y_scale[:, None]
    return CanonicalCorrelation(x_mean / x_scale, y_mean / y_scale, x_map, y_map, values.double())


def _scale(count: Tensor, total: Tensor, squares: Tensor, blocks: Sequence[int] | None) -> Float[Tensor, " V"]:
    """Return the factor of each column that gives each block a total variance of 1; 1 for constant blocks."""
    factors = torch.ones_like(total)
    first = 0
    for width in blocks or ():
        block = slice(first, first + width)
        square = squares.diagonal()[block].sum() / count
        variance = square - ((total[block] / count) ** 2).sum()
        if variance > _CONSTANT * square:
            factors[block] = variance.rsqrt()
        first += width
    return factors


def _singular(matrix: Float[Tensor, "V W"], count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the leading singular vectors and values, from the eigenvectors of the smaller Gram matrix."""
    wide = matrix.shape[0] <= matrix.shape[1]
    small = matrix if wide else matrix.T
    squares, left = torch.linalg.eigh(small @ small.T)
    squares, left = squares[-count:].flip(0).clamp(min=0), left[:, -count:].flip(1)
    # The sign of an eigenvector is arbitrary: its largest value is made positive.
    left = left * left.gather(0, left.abs().argmax(dim=0)[None]).sign()
    values = squares.sqrt()
    # Directions without any correlation have no counterpart on the other side: they are zero on both.
    used = values > 1e-7 * values[:1].clamp(min=1e-12)
    right = small.T @ left / values.where(used, torch.ones_like(values)) * used
    left, values = left * used, values * used
    return (left, values, right) if wide else (right, values, left)


def _leading(matrix: Float[Tensor, "V W"], count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return approximate leading singular vectors and values."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        left, values, right = torch.svd_lowrank(matrix, q=min(count + 32, *matrix.shape), niter=2)
    return left[:, :count], values[:count], right[:, :count]


def _lower(covariance: Tensor, ridge: float) -> Tensor:
    """Return the Cholesky factor of a covariance with a ridge in units of its mean variance."""
    variance = covariance.diagonal().mean().clamp(min=1e-30)
    return torch.linalg.cholesky(covariance + ridge * variance * torch.eye(len(covariance)).to(covariance))


def _add_gram(total: Tensor, rows: Tensor) -> None:
    """Add one triangle of the symmetric matrix rowsᵀ · rows to `total`."""
    for start in range(0, rows.shape[1], _BLOCK):
        block = slice(start, start + _BLOCK)
        product = rows[:, start:].T @ rows[:, block]
        total[start:, block] += product
        total[block, start + _BLOCK :] += product[_BLOCK:].T
