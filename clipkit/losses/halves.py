"""Sums over a similarity matrix on data center GPUs, by Triton kernels that multiply in float16.

Each float32 number is split into two float16 numbers, called halves. The logits exist only in registers. The
derivatives of the loss with respect to the logits are written one tile at a time, also as halves, and cuBLAS multiplies
them with the features. The CPU never waits for the GPU. Without atomic additions, results are deterministic.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from clipkit.losses import kernels, plain
from clipkit.losses.pair_ids import PairIds

# Maximum numbers of rows and columns of a tile. In the forward pass, a tile is only reduced to sums; in the backward
# pass, the derivatives of its logits are in memory (4 bytes each).
_REDUCED = (16384, 65536)
_WEIGHED = (8192, 16384)
# Features are padded with zeros to multiples of these numbers of rows and columns, so that all blocks are full.
_ROWS, _WIDTH = 256, 64


class Blocks(NamedTuple):
    """Block sizes of a kernel. Each program of the kernel computes a block of `high` × `wide` logits.

    In each step, the program reads `deep` dimensions of the features. `warps` and `stages` are options of Triton.
    """

    high: int
    wide: int
    deep: int
    warps: int
    stages: int
    described: bool
    """True: load features through tensor descriptors (TMA)."""


_AMPERE = Blocks(128, 128, 32, 8, 4, False)
_HOPPER = Blocks(128, 128, 64, 4, 3, True)


def _blocks(device: torch.device) -> Blocks:
    return _HOPPER if torch.cuda.get_device_capability(device) >= (9, 0) else _AMPERE


def check(device: torch.device) -> None:
    """Raise an error if the Triton kernels fail on a device, or if their results differ from PyTorch's."""
    x = F.normalize(torch.arange(300 * 80, device=device, dtype=torch.float32).view(300, 80).sin(), dim=1)
    y, scale, to = x.roll(1, 0), x.new_full((), 20.0), x[:, 0].abs()
    rows, columns, logits = logsumexp(x, y, scale, None, True)
    found = weigh_softmax(x, y, scale, None, True, logits, rows, columns, to, to)
    x, y, scale, to = (one.double() for one in (x, y, scale, to))  # PyTorch may compute float32 products in TF32
    *lse, nothing = plain.logsumexp(x, y, scale, None, True)
    wanted = plain.weigh_softmax(x, y, scale, None, True, nothing, lse[0], lse[1], to, to)
    for ours, exact in zip((rows, columns, *found), (*lse, *wanted), strict=True):
        torch.testing.assert_close(ours.double(), exact, rtol=1e-5, atol=1e-5)


class Logits:
    """Arguments of the kernels that compute the logits scale · x · y + bias. Features are stored as float16 halves."""

    def __init__(self, x: Tensor, y: Tensor, scale: Tensor, bias: Tensor | None, ids: PairIds | None) -> None:
        x, y = x.contiguous(), y.contiguous()
        self.shape, self.width, self.blocks = (len(x), len(y)), x.shape[1], _blocks(x.device)
        self.padded = _up(self.width, _WIDTH)
        self.x, self.y = (x.new_empty(_up(len(one), _ROWS), 2 * self.padded, dtype=torch.float16) for one in (x, y))
        self.units = x.new_empty(2)
        self.scalars = (self.units, scale, scale if bias is None else bias)
        self.without = (ids is not None and ids.without_self, ids is not None and bool(ids.row_ids))
        self.keys = (self.x[None], self.y[None])  # any tensors: not used without IDs
        if ids is not None:
            self.keys = (
                torch.stack([ids.row_position, *ids.row_ids]),
                torch.stack([ids.column_position, *ids.column_ids]),
            )
        with torch.cuda.device_of(x):
            kernels.split[((len(self.x) + len(self.y)) // 8,)](
                x, y, _largest(x), _largest(y), self.x, self.y, self.units, *self.shape, len(self.x) // 8,
                WIDTH=self.width, PADDED=self.padded, HIGH=8, WIDE=1 << (self.padded - 1).bit_length(),
            )  # fmt: skip

    def tiles(self, sizes: tuple[int, int]) -> Iterator[tuple[slice, slice]]:
        """Yield the rows and the columns of each tile of the logits.

        Args:
            sizes: maximum numbers of rows and columns of a tile.
        """
        for top in range(0, self.shape[0], sizes[0]):
            for left in range(0, self.shape[1], sizes[1]):
                bottom, right = min(top + sizes[0], self.shape[0]), min(left + sizes[1], self.shape[1])
                yield slice(top, bottom), slice(left, right)

    def described(self, matrix: Tensor, high: int, wide: int) -> Any:
        """Return a matrix in the form that a kernel needs: the matrix itself, or a tensor descriptor.

        Args:
            high: number of rows of each block that a kernel reads or writes.
            wide: number of columns of each block.
        """
        if not self.blocks.described:
            return matrix
        from triton.tools.tensor_descriptor import TensorDescriptor

        return TensorDescriptor.from_tensor(matrix, [high, wide])

    def launch(self, kernel: Any, grid: int, rows: slice, columns: slice, kind: int, *own: Any) -> None:
        """Run a kernel on a tile of the logits.

        Args:
            kernel: a kernel of `kernels.py`.
            grid: number of programs, one per block of the tile.
            rows, columns: rows and columns of the tile.
            kind: constant ROWS, BOTH or SOFTPLUS of `kernels.py`.
            own: additional arguments of this kernel.
        """
        (row_keys, column_keys), blocks = self.keys, self.blocks
        kernel[(grid,)](
            self.described(self.x[rows.start :], blocks.high, blocks.deep),
            self.described(self.y[columns.start :], blocks.wide, blocks.deep),
            *self.scalars, row_keys[:, rows.start :], column_keys[:, columns.start :],
            rows.stop - rows.start, columns.stop - columns.start, row_keys.shape[1], column_keys.shape[1], *own,
            PADDED=self.padded, HIGH=blocks.high, WIDE=blocks.wide, DEEP=blocks.deep, DESCRIBED=blocks.described,
            KIND=kind, WITHOUT_SELF=self.without[0], WITHOUT_DUPLICATES=self.without[1],
            num_warps=blocks.warps, num_stages=blocks.stages,
        )  # fmt: skip


def logsumexp(x: Tensor, y: Tensor, scale: Tensor, ids: PairIds | None, both: bool) -> tuple[Tensor, Tensor, Logits]:
    """Return log Σ_j exp(logit_ij) for each row i, and log Σ_i exp(logit_ij) for each column j.

    logit_ij is scale · x_i · y_j, or −∞ if `ids` leaves out the entry.

    Args:
        x: features of the rows.
        y: features of the columns.
        scale: factor of the similarities.
        ids: entries to leave out; None: no entries.
        both: False: compute only the sums of the rows. The sums of the columns are then −∞.

    Returns:
        The sums of the rows, the sums of the columns, and the argument `logits` of `weigh_softmax`.
    """
    logits = Logits(x, y, scale, None, ids)
    lse_rows, lse_columns = x.new_empty(len(x)), x.new_empty(len(y)) if both else x.new_full((len(y),), -torch.inf)
    kind = kernels.BOTH.value if both else kernels.ROWS.value
    with torch.cuda.device_of(x):
        for rows, columns in logits.tiles(_REDUCED):
            height, width = rows.stop - rows.start, columns.stop - columns.start
            down, across = -(-height // logits.blocks.high), -(-width // logits.blocks.wide)
            row_parts, column_parts = x.new_empty(across, height), x.new_empty(down if both else 0, width)
            logits.launch(kernels.reduce, down * across, rows, columns, kind, row_parts, column_parts)
            _combine(row_parts, lse_rows[rows], columns.start == 0)
            if both:
                _combine(column_parts, lse_columns[columns], rows.start == 0)
    return lse_rows, lse_columns, logits


def _combine(parts: Tensor, lse: Tensor, first: bool) -> None:
    kernels.combine[(-(-len(lse) // 128),)](parts, lse, *parts.shape, int(first), HIGH=16, WIDE=128)


def weigh_softmax(
    x: Tensor,
    y: Tensor,
    scale: Tensor,
    ids: PairIds | None,
    both: bool,
    logits: Logits,
    lse_rows: Tensor,
    lse_columns: Tensor,
    to_rows: Tensor,
    to_columns: Tensor,
) -> tuple[Tensor, Tensor]:
    """Return Σ_j w_ij y_j for each row i and Σ_i w_ij x_i for each column j.

    The gradients of `logsumexp` follow from these sums. The weights are:

    w_ij = to_rows_i exp(logit_ij − lse_rows_i) + to_columns_j exp(logit_ij − lse_columns_j)

    Args:
        x: features of the rows.
        y: features of the columns.
        scale: factor of the similarities.
        ids: entries to leave out; None: no entries.
        both: False: leave out the second term of w_ij.
        logits: third result of `logsumexp`.
        lse_rows: first result of `logsumexp`.
        lse_columns: second result of `logsumexp`.
        to_rows: derivatives of the loss with respect to `lse_rows`.
        to_columns: derivatives of the loss with respect to `lse_columns`.
    """
    kind = kernels.BOTH.value if both else kernels.ROWS.value
    to = to_rows.contiguous(), to_columns.contiguous()
    mixed_y, mixed_x, _ = _weigh(logits, kind, (lse_rows, lse_columns), to, (_largest(to[0]), _largest(to[1])))
    return mixed_y, mixed_x


def softplus(x: Tensor, y: Tensor, scale: Tensor, bias: Tensor, ids: PairIds | None) -> tuple[Tensor, Logits]:
    """Return Σ_ij log(1 + exp(logit_ij)) in float64, and the argument `logits` of `weigh_sigmoid`.

    logit_ij is scale · x_i · y_j + bias, or −∞ if `ids` leaves out the entry.
    """
    logits = Logits(x, y, scale, bias, ids)
    total = torch.zeros((), dtype=torch.float64, device=x.device)
    with torch.cuda.device_of(x):
        for rows, columns in logits.tiles(_REDUCED):
            down = -(-(rows.stop - rows.start) // logits.blocks.high)
            sums = x.new_empty(down * -(-(columns.stop - columns.start) // logits.blocks.wide))
            logits.launch(kernels.reduce, len(sums), rows, columns, kernels.SOFTPLUS.value, sums, sums)
            total += sums.sum(dtype=torch.float64)
    return total, logits


def weigh_sigmoid(
    x: Tensor, y: Tensor, scale: Tensor, bias: Tensor, ids: PairIds | None, logits: Logits
) -> tuple[Tensor, Tensor, Tensor]:
    """Return Σ_j w_ij y_j for each row i, Σ_i w_ij x_i for each column j, and Σ_ij w_ij in float64.

    The weight w_ij is sigmoid(logit_ij). The gradients of `softplus` follow from these sums.
    """
    return _weigh(logits, kernels.SOFTPLUS.value, (x, y), (x, y), (x, y))


_Two = tuple[Tensor, Tensor]


def _weigh(
    logits: Logits, kind: int, lse: _Two, to: _Two, largest: tuple[Tensor, ...]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return Σ_j w_ij y_j for each row i, Σ_i w_ij x_i for each column j, and Σ_ij w_ij (only for sigmoids).

    The weights w_ij are sigmoids or softmaxes of the logits.

    Args:
        logits: arguments of the kernels.
        kind: constant of `kernels.py`. SOFTPLUS: sigmoids. ROWS: softmaxes over rows. BOTH: over rows and over columns.
        lse: log Σ exp of the rows, and of the columns; only for softmaxes.
        to: derivatives of the loss with respect to `lse`; only for softmaxes.
        largest: maximum absolute values of `to`; only for softmaxes.
    """
    mixed_y, mixed_x = (logits.units.new_empty(len(side), logits.padded) for side in (logits.x, logits.y))
    factors, total = torch.empty_like(logits.units), logits.units.new_zeros((), dtype=torch.float64)
    tiles = list(logits.tiles(_WEIGHED))
    sizes = [tuple(_up(one.stop - one.start, _ROWS) for one in tile) for tile in tiles]
    memory = logits.x.new_empty(2 * max(height * width for height, width in sizes))
    with torch.cuda.device_of(memory):
        for (rows, columns), (height, width) in zip(tiles, sizes, strict=True):
            weights = memory[: 2 * height * width].view(2, height, width)
            high, wide = logits.blocks.high, logits.blocks.wide
            sums = factors.new_empty(height // high * (width // wide))
            written = logits.described(weights.view(-1, width), high, wide)
            logits.launch(
                kernels.weigh, len(sums), rows, columns, kind, lse[0][rows], lse[1][columns],
                to[0][rows], to[1][columns], *largest, written, factors, sums, height, width,
            )  # fmt: skip
            down, across = slice(rows.start, rows.start + height), slice(columns.start, columns.start + width)
            _add_product(mixed_y[down], weights, logits.y[across], columns.start == 0)
            _add_product(mixed_x[across], weights.mT, logits.x[down], rows.start == 0)
            if kind == kernels.SOFTPLUS.value:
                total += sums.sum(dtype=torch.float64)
    to_x, to_y = factors.unbind()
    height, width = logits.shape
    return mixed_y.mul_(to_y)[:height, : logits.width], mixed_x.mul_(to_x)[:width, : logits.width], total


def _largest(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x, torch.inf)


def _up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def _add_product(sums: Tensor, weights: Tensor, features: Tensor, first: bool) -> None:
    """Add the product weights @ features to `sums`.

    Args:
        sums: float32 sums.
        weights: high and low float16 halves, of shape (2, R, C).
        features: high and low halves side by side, of shape (C, 2D).
        first: True: overwrite the previous values of `sums`.
    """
    high, low = weights.unbind()
    features_high, features_low = features.tensor_split(2, dim=1)
    for left, right in ((low, features_high), (high, features_low), (high, features_high)):
        if sums.is_cuda:
            torch.addmm(sums, left, right, out_dtype=torch.float32, beta=int(not first), out=sums)
        else:  # on a CPU, in tests
            sums.addmm_(left.float(), right.float(), beta=int(not first))
        first = False
