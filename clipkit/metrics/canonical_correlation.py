"""Regularized canonical correlation analysis (CCA) of two kinds of features, e.g. of images and captions."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from jaxtyping import Float, Int
from torch import Tensor

# Number of columns of a Gram matrix that are computed at once: on and below the diagonal, since it is symmetric.
_BLOCK = 512
# Below this share of the mean square, the variance of float32 features may be a rounding error.
_CONSTANT = 1e-9


@dataclass
class PairSums:
    """Sums over pairs of feature vectors (x, y) in float64, for computing means and covariances.

    The sums of several batches or processes can be added.

    Args:
        count: number of pairs.
        x, y: sums of the feature vectors.
        xx, yy, xy: sums of the outer products of the feature vectors.

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
        """Return sums over zero pairs, to which pairs can be added."""
        shapes = ((), (x_width,), (y_width,), (x_width, x_width), (y_width, y_width), (x_width, y_width))
        return cls(*(torch.zeros(shape, dtype=torch.float64, device=device) for shape in shapes))

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Tuple of all sums, in the order of the fields."""
        return self.count, self.x, self.y, self.xx, self.yy, self.xy

    def add(self, x: Float[Tensor, "N V"], y: Float[Tensor, "M W"], x_of_y: Int[Tensor, " M"]) -> None:
        """Add M pairs to the sums. Pair i consists of row i of y and row `x_of_y[i]` of x.

        For example, y contains features of captions, x features of images, and `x_of_y` the image of each caption.
        """
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
        """Return the sums over the pairs of this object and of `other`."""
        return type(self)(*(one + another for one, another in zip(self.tensors, other.tensors, strict=True)))

    def cpu(self) -> Self:
        """Return a copy of the sums on the CPU."""
        return type(self)(*(one.cpu() for one in self.tensors))

    def of(self, x_columns: Int[Tensor, " v"], y_columns: Int[Tensor, " w"]) -> Self:
        """Return the sums for a selection of the columns (dimensions) of x and of y."""
        xx, yy, xy = (
            self.xx[x_columns][:, x_columns],
            self.yy[y_columns][:, y_columns],
            self.xy[x_columns][:, y_columns],
        )
        return type(self)(self.count, self.x[x_columns], self.y[y_columns], xx, yy, xy)

    def covariances(self, dtype: torch.dtype = torch.float64) -> "Covariances":
        """Return the means (float64) and the covariances (in `dtype`) of the pairs."""
        x_mean, y_mean = self.x / self.count, self.y / self.count
        xx, yy, xy = (
            torch.addr(total / self.count, one, other, alpha=-1).to(dtype)
            for total, one, other in ((self.xx, x_mean, x_mean), (self.yy, y_mean, y_mean), (self.xy, x_mean, y_mean))
        )
        return Covariances(x_mean, y_mean, xx, yy, xy)


@dataclass(frozen=True)
class Covariances:
    """Means and covariances of pairs of feature vectors (x, y)."""

    x_mean: Float[Tensor, " V"]
    y_mean: Float[Tensor, " W"]
    xx: Float[Tensor, "V V"]
    yy: Float[Tensor, "W W"]
    xy: Float[Tensor, "V W"]


@dataclass(frozen=True)
class Whitening:
    """Linear map that makes the regularized covariance of features the identity.

    The map is L⁻¹ · diag(scale). L is the Cholesky factor of the regularized covariance after scaling.
    """

    mean: Float[Tensor, " V"]
    scale: Float[Tensor, " V"]
    lower: Float[Tensor, "V V"]
    """Cholesky factor L of the regularized covariance of the scaled features."""

    def apply(self, covariance: Float[Tensor, "V W"]) -> Float[Tensor, "V W"]:
        """Return the covariance of whitened features with other features.

        Args:
            covariance: covariance of the features before whitening (V) with the other features (W).
        """
        scaled = covariance * self.scale.to(covariance)[:, None]
        return torch.linalg.solve_triangular(self.lower, scaled, upper=False)

    def map_to(self, directions: Float[Tensor, "V K"]) -> Float[Tensor, "V K"]:
        """Return the matrix, in float64, that maps centered features to K coordinates.

        Args:
            directions: K directions of the space of whitened features, one per column.
        """
        return torch.linalg.solve_triangular(self.lower.T, directions, upper=True).double() * self.scale[:, None]


def whitening(
    mean: Float[Tensor, " V"], covariance: Float[Tensor, "V V"], ridge: float, blocks: Sequence[int] | None = None
) -> Whitening:
    """Return the whitening of features with a given mean and covariance.

    Args:
        mean, covariance: mean and covariance of the features.
        ridge: variance that is added to each column, in units of the mean variance of the columns.
        blocks: widths of blocks of columns. Each block is scaled to a total variance of 1 before the ridge is added.
            None: columns are not scaled.
    """
    scale = _scale(mean, covariance.diagonal().double(), blocks)
    regularized = covariance * scale.to(covariance)[:, None]
    regularized *= scale.to(covariance)
    variances = regularized.diagonal()
    variances += ridge * variances.mean().clamp(min=1e-30)
    return Whitening(mean, scale, torch.linalg.cholesky(regularized))


@dataclass(frozen=True)
class CanonicalCorrelation:
    """Result of a CCA: linear maps from two kinds of features, x and y, to K coordinates, in float64.

    The coordinates of x are (x − x_mean) · x_map. The coordinates of y are (y − y_mean) · y_map. `correlations[k]` is
    the regularized correlation of coordinate k of x with coordinate k of y. The correlations are in descending order.
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
    """Return the regularized canonical correlation analysis of pairs (Hotelling 1936; Vinod 1976 for the ridge).

    The maps U of x and V of y maximize the trace of Uᵀ Cxy V subject to Uᵀ (Cxx + a I) U = I and
    Vᵀ (Cyy + b I) V = I, where Cxx, Cyy and Cxy are the covariances.

    Args:
        sums: sums over the pairs.
        x_ridge, y_ridge: a and b, in units of the mean variance of the columns.
        count: number of coordinates K; None: the smaller of the dimensions of x and y.
        x_blocks, y_blocks: widths of blocks of columns, such as layers of a network. Before the ridge is added, each
            block is scaled to a total variance of 1 (block scaling, Westerhuis et al. 1998), so that the ridge has the
            same effect on layers with small and with large values. None: columns are not scaled.
        approximate: compute in float32, and find the singular vectors by subspace iteration (Halko et al. 2011). This
            takes a fifth of the time if K is much smaller than the dimensions of x and y.

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
        raise ValueError(
            f"x_ridge {x_ridge} and y_ridge {y_ridge} with {sums.count:.0f} pairs are not valid; give positive ridges "
            "and at least 2 pairs"
        )
    of = sums.covariances(torch.float32 if approximate else torch.float64)
    x, y = whitening(of.x_mean, of.xx, x_ridge, x_blocks), whitening(of.y_mean, of.yy, y_ridge, y_blocks)
    return correlation_of_whitened(x, y, y.apply(x.apply(of.xy).T).T, count, approximate=approximate)


def correlation_of_whitened(
    x: Whitening, y: Whitening, covariance: Float[Tensor, "V W"], count: int | None = None, *, approximate: bool = False
) -> CanonicalCorrelation:
    """Return the canonical correlation analysis (CCA), given the covariance of whitened features.

    Args:
        x, y: whitenings of both kinds of features.
        covariance: covariance of the whitened x with the whitened y.
        count, approximate: as for `canonical_correlation`.
    """
    kept = min(covariance.shape) if count is None else min(count, *covariance.shape)
    x_side, values, y_side = (_leading if approximate else _singular)(covariance, kept)
    return CanonicalCorrelation(x.mean, y.mean, x.map_to(x_side), y.map_to(y_side), values.double())


def _scale(
    mean: Float[Tensor, " V"], variances: Float[Tensor, " V"], blocks: Sequence[int] | None
) -> Float[Tensor, " V"]:
    """Return the scale factor of each column, so that each block of columns has a total variance of 1.

    The factor is 1 in a constant block, or if no blocks are given.
    """
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
    """Return (left vectors, values, right vectors) of the `count` largest singular values, exactly."""
    wide = matrix.shape[0] <= matrix.shape[1]
    small = matrix if wide else matrix.T
    squares, left = torch.linalg.eigh(small @ small.T)
    squares, left = squares[-count:].flip(0).clamp(min=0), left[:, -count:].flip(1)
    # The sign of an eigenvector is arbitrary. The element with the largest absolute value is made positive.
    left = left * left.gather(0, left.abs().argmax(dim=0)[None]).sign()
    values = squares.sqrt()
    # For a singular value of about 0, the other singular vector is undefined: both are set to 0.
    used = values > 1e-7 * values[:1].clamp(min=1e-12)
    right = small.T @ left / values.where(used, torch.ones_like(values)) * used
    left, values = left * used, values * used
    return (left, values, right) if wide else (right, values, left)


def _leading(matrix: Float[Tensor, "V W"], count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return (left vectors, values, right vectors) of the `count` largest singular values, approximately."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        left, values, right = torch.svd_lowrank(matrix, q=min(count + 32, *matrix.shape), niter=2)
    return left[:, :count], values[:count], right[:, :count]


def _add_gram(total: Tensor, rows: Tensor) -> None:
    """Add the Gram matrix rowsᵀ · rows to `total`, in place."""
    # The matrix is symmetric, so only one of its triangles is computed.
    for start in range(0, rows.shape[1], _BLOCK):
        block = slice(start, start + _BLOCK)
        product = rows[:, start:].T @ rows[:, block]
        total[start:, block] += product
        total[block, start + _BLOCK :] += product[_BLOCK:].T
