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

    def covariances(self, dtype: torch.dtype = torch.float64) -> "Covariances":
        """Return the means in float64, and the covariances, computed in float64 and converted to `dtype`."""
        x_mean, y_mean = self.x / self.count, self.y / self.count
        xx, yy, xy = (
            torch.addr(total / self.count, one, other, alpha=-1).to(dtype)
            for total, one, other in ((self.xx, x_mean, x_mean), (self.yy, y_mean, y_mean), (self.xy, x_mean, y_mean))
        )
        return Covariances(x_mean, y_mean, xx, yy, xy)


@dataclass(frozen=True)
class Covariances:
    """Means and covariances of pairs (x, y)."""

    x_mean: Float[Tensor, " V"]
    y_mean: Float[Tensor, " W"]
    xx: Float[Tensor, "V V"]
    yy: Float[Tensor, "W W"]
    xy: Float[Tensor, "V W"]


@dataclass(frozen=True)
class Whitening:
    """Linear map L⁻¹ · diag(scale), after which the regularized covariance of features is the identity."""

    mean: Float[Tensor, " V"]
    scale: Float[Tensor, " V"]
    lower: Float[Tensor, "V V"]
    """Cholesky factor L of the regularized covariance of the scaled features."""

    def apply(self, covariance: Float[Tensor, "V W"]) -> Float[Tensor, "V W"]:
        """Return the covariance of the whitened features with other features."""
        scaled = covariance * self.scale.to(covariance)[:, None]
        return torch.linalg.solve_triangular(self.lower, scaled, upper=False)

    def map_to(self, directions: Float[Tensor, "V K"]) -> Float[Tensor, "V K"]:
        """Return the map from features to their coordinates along directions of the whitened features, in float64."""
        return torch.linalg.solve_triangular(self.lower.T, directions, upper=True).double() * self.scale[:, None]


def whitening(
    mean: Float[Tensor, " V"], covariance: Float[Tensor, "V V"], ridge: float, blocks: Sequence[int] | None = None
) -> Whitening:
    """Return the whitening of features.

    Args:
        mean, covariance: mean and covariance of the features.
        ridge: variance that is added to each column, in units of the mean variance of the columns.
        blocks: widths of blocks of columns that are scaled to a total variance of 1 first; None: columns are used as
            they are.
    """
    scale = _scale(mean, covariance.diagonal().double(), blocks)
    regularized = covariance * scale.to(covariance)[:, None]
    regularized *= scale.to(covariance)
    variances = regularized.diagonal()
    variances += ridge * variances.mean().clamp(min=1e-30)
    return Whitening(mean, scale, torch.linalg.cholesky(regularized))


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
    of = sums.covariances(torch.float32 if approximate else torch.float64)
    x, y = whitening(of.x_mean, of.xx, x_ridge, x_blocks), whitening(of.y_mean, of.yy, y_ridge, y_blocks)
    return correlation_of_whitened(x, y, y.apply(x.apply(of.xy).T).T, count, approximate=approximate)


def correlation_of_whitened(
    x: Whitening, y: Whitening, covariance: Float[Tensor, "V W"], count: int | None = None, *, approximate: bool = False
) -> CanonicalCorrelation:
    """Return canonical correlations, computed from the covariance between whitened features.

    Args:
        x, y: the whitenings.
        covariance: covariance of the whitened x with the whitened y.
        count, approximate: as for `canonical_correlation`.
    """
    kept = min(covariance.shape) if count is None else min(count, *covariance.shape)
    x_side, values, y_side = (_leading if approximate else _singular)(covariance, kept)
    return CanonicalCorrelation(x.mean, y.mean, x.map_to(x_side), y.map_to(y_side), values.double())


def _scale(
    mean: Float[Tensor, " V"], variances: Float[Tensor, " V"], blocks: Sequence[int] | None
) -> Float[Tensor, " V"]:
    """Return the factor of each column that gives each block a total variance of 1; 1 for constant blocks."""
    factors = torch.ones_like(mean)
    first = 0
    for width in blocks or ():
        block = slice(first, first + width)
        variance = variances[block].sum()
        if variance > _CONSTANT * (variance + (mean[block] ** 2).sum()):
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


def _add_gram(total: Tensor, rows: Tensor) -> None:
    """Add one triangle of the symmetric matrix rowsᵀ · rows to `total`."""
    for start in range(0, rows.shape[1], _BLOCK):
        block = slice(start, start + _BLOCK)
        product = rows[:, start:].T @ rows[:, block]
        total[start:, block] += product
        total[block, start + _BLOCK :] += product[_BLOCK:].T
