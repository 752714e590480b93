"""The sums of `tiles.py` on a data center's GPU: float32 features as two halves of 16 bits, tiles in Triton kernels.

Logits exist only in registers. Their derivatives are written a tile at a time, as halves too, so that cuBLAS multiplies
them with the features on tensor cores. There is no synchronization with the host, and no atomic addition: the same
features give the same bits.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from clipkit.losses import kernels
from clipkit.losses.pair_ids import PairIds

# Rows and columns that one launch reduces, and of which derivatives are in memory (4 bytes each).
_REDUCED = (16384, 65536)
_WEIGHED = (8192, 16384)
# Features get rows and columns of zeros up to multiples of this, so that no block and no product has an odd size.
_ROWS, _WIDTH = 256, 64


class Blocks(NamedTuple):
    """Sizes of a program's block, and of the steps in which it is computed."""

    high: int
    wide: int
    deep: int
    warps: int
    stages: int
    form: int = 0


_REDUCE = Blocks(128, 128, 64, 8, 3)
_WEIGH = Blocks(128, 128, 64, 8, 3)


def check(device: torch.device) -> None:
    """Run the kernels once on a few features; raise whatever Triton raises if they do not work on this device."""
    x, one = torch.eye(16, device=device), torch.ones(16, device=device)
    sums = logsumexp(x, x, one[0], None, True)
    weigh_softmax(x, x, one[0], None, True, *sums, one, one)


class _Logits:
    """Logits scale · x · y + bias, for kernels to compute tile by tile."""

    def __init__(self, x: Tensor, y: Tensor, scale: Tensor, bias: Tensor | None, ids: PairIds | None) -> None:
        self.shape, self.width = (len(x), len(y)), x.shape[1]
        self.x, self.x_unit = _split(x)
        self.y, self.y_unit = _split(y)
        self.padded = self.x.shape[1] // 2
        self.scalars = (self.x_unit, self.y_unit, scale, scale if bias is None else bias)
        self.without = (ids is not None and ids.without_self, ids is not None and bool(ids.row_ids))
        self.keys = (self.x[None], self.y[None])  # never read
        if ids is not None:
            self.keys = (
                torch.stack([ids.row_position, *ids.row_ids]),
                torch.stack([ids.column_position, *ids.column_ids]),
            )

    def tiles(self, sizes: tuple[int, int]) -> Iterator[tuple[slice, slice]]:
        """Yield rows and columns of tiles of at most these sizes."""
        for top in range(0, self.shape[0], sizes[0]):
            for left in range(0, self.shape[1], sizes[1]):
                yield (
                    slice(top, min(top + sizes[0], self.shape[0])),
                    slice(left, min(left + sizes[1], self.shape[1])),
                )

    def launch(self, kernel: Any, grid: int, rows: slice, columns: slice, blocks: Blocks, kind: int, *own: Any) -> None:
        """Run a kernel over the blocks of a tile."""
        row_keys, column_keys = self.keys
        x, y = self.x[rows.start :], self.y[columns.start :]
        if blocks.form >= 3:
            from triton.tools.tensor_descriptor import TensorDescriptor

            x = TensorDescriptor.from_tensor(x, [blocks.high, blocks.deep])
            y = TensorDescriptor.from_tensor(y, [blocks.wide, blocks.deep])
        kernel[(grid,)](
            x, y, *self.scalars,
            row_keys[:, rows.start :], column_keys[:, columns.start :],
            rows.stop - rows.start, columns.stop - columns.start, row_keys.shape[1], column_keys.shape[1], *own,
            PADDED=self.padded, HIGH=blocks.high, WIDE=blocks.wide, DEEP=blocks.deep, KIND=kind, FORM=blocks.form,
            WITHOUT_SELF=self.without[0], WITHOUT_DUPLICATES=self.without[1],
            num_warps=blocks.warps, num_stages=blocks.stages,
        )  # fmt: skip


def logsumexp(x: Tensor, y: Tensor, scale: Tensor, ids: PairIds | None, both: bool) -> tuple[Tensor, Tensor]:
    """Return log Σ_j exp(logit_ij) for each row i, and if `both` log Σ_i of it for each column j, else −∞."""
    logits = _Logits(x, y, scale, None, ids)
    lse_rows, lse_columns = (x.new_full((size,), -torch.inf) for size in logits.shape)
    with torch.cuda.device_of(x):
        for rows, columns in logits.tiles(_REDUCED):
            height, width = rows.stop - rows.start, columns.stop - columns.start
            down, across = -(-height // _REDUCE.high), -(-width // _REDUCE.wide)
            row_parts, column_parts = x.new_empty(across, height), x.new_empty(down if both else 0, width)
            kind = kernels.BOTH.value if both else kernels.ROWS.value
            logits.launch(kernels.reduce, down * across, rows, columns, _REDUCE, kind, row_parts, column_parts)
            lse_rows[rows] = torch.logaddexp(lse_rows[rows], row_parts.logsumexp(dim=0))
            if both:
                lse_columns[columns] = torch.logaddexp(lse_columns[columns], column_parts.logsumexp(dim=0))
    return lse_rows, lse_columns


def weigh_softmax(
    x: Tensor,
    y: Tensor,
    scale: Tensor,
    ids: PairIds | None,
    both: bool,
    lse_rows: Tensor,
    lse_columns: Tensor,
    to_rows: Tensor,
    to_columns: Tensor,
) -> tuple[Tensor, Tensor]:
    """Return Σ_j w_ij y_j and Σ_i w_ij x_i, w_ij = to_row_i exp(logit_ij − lse_i) + to_column_j exp(logit_ij − lse_j).

    If not `both`, the second summand of w is left out.
    """
    logits = _Logits(x, y, scale, None, ids)
    largest = torch.linalg.vector_norm(torch.cat([to_rows, to_columns]) if both else to_rows, torch.inf)
    unit = largest.clamp(min=1e-30) * 2.0**-kernels.TOP.value
    kind = kernels.BOTH.value if both else kernels.ROWS.value
    return _weigh(logits, unit, kind, (lse_rows, lse_columns), (to_rows.contiguous(), to_columns.contiguous()))[:2]


def softplus(x: Tensor, y: Tensor, scale: Tensor, bias: Tensor, ids: PairIds | None) -> Tensor:
    """Return Σ_ij log(1 + exp(logit_ij)), in float64."""
    logits = _Logits(x, y, scale, bias, ids)
    total = torch.zeros((), dtype=torch.float64, device=x.device)
    with torch.cuda.device_of(x):
        for rows, columns in logits.tiles(_REDUCED):
            down, across = (
                -(-(rows.stop - rows.start) // _REDUCE.high),
                -(-(columns.stop - columns.start) // _REDUCE.wide),
            )
            sums = x.new_empty(down * across)
            logits.launch(kernels.reduce, down * across, rows, columns, _REDUCE, kernels.SOFTPLUS.value, sums, sums)
            total += sums.sum(dtype=torch.float64)
    return total


def weigh_sigmoid(
    x: Tensor, y: Tensor, scale: Tensor, bias: Tensor, ids: PairIds | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return Σ_j w_ij y_j, Σ_i w_ij x_i and, in float64, Σ_ij w_ij, for w_ij = sigmoid(logit_ij)."""
    logits = _Logits(x, y, scale, bias, ids)
    unit = x.new_full((), 2.0**-kernels.TOP.value)
    return _weigh(logits, unit, kernels.SOFTPLUS.value, (x, y), (x, y))


def _weigh(
    logits: _Logits, unit: Tensor, kind: int, lse: tuple[Tensor, Tensor], to: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return Σ_j w_ij y_j, Σ_i w_ij x_i and, for sigmoids, Σ_ij w_ij."""
    mixed_y, mixed_x = (unit.new_zeros(len(side), logits.padded) for side in (logits.x, logits.y))
    total = torch.zeros((), dtype=torch.float64, device=unit.device)
    memory = torch.empty(0)
    with torch.cuda.device_of(unit):
        for rows, columns in logits.tiles(_WEIGHED):
            height, width = _up(rows.stop - rows.start, _ROWS), _up(columns.stop - columns.start, _ROWS)
            if not len(memory):  # the first tile is the largest
                memory = torch.empty(2 * height * width, dtype=torch.float16, device=unit.device)
            weights = memory[: 2 * height * width].view(2, height, width)
            grid = height // _WEIGH.high * (width // _WEIGH.wide)
            sums = unit.new_empty(grid)
            logits.launch(
                kernels.weigh, grid, rows, columns, _WEIGH, kind,
                lse[0][rows], lse[1][columns], to[0][rows], to[1][columns], unit, weights, sums, height, width,
            )  # fmt: skip
            down, across = slice(rows.start, rows.start + height), slice(columns.start, columns.start + width)
            _add_product(mixed_y[down], weights, logits.y[across])
            _add_product(mixed_x[across], weights.mT, logits.x[down])
            if kind == kernels.SOFTPLUS.value:
                total += sums.sum(dtype=torch.float64)
    (height, width), features = logits.shape, logits.width
    return (
        mixed_y.mul_(unit * logits.y_unit)[:height, :features],
        mixed_x.mul_(unit * logits.x_unit)[:width, :features],
        total * unit,
    )


def _up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def _split(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return (rows, [high | low]) in float16, with rows and columns of zeros, and the value of 1 in it."""
    rows, width = x.shape
    padded = _up(width, _WIDTH)
    halves = torch.empty(_up(rows, _ROWS), 2 * padded, dtype=torch.float16, device=x.device)
    unit = x.new_empty(())
    largest = torch.linalg.vector_norm(x, torch.inf)
    wide = 1 << (padded - 1).bit_length()
    with torch.cuda.device_of(x):
        kernels.split[(len(halves) // 8,)](
            x.contiguous(), largest, halves, unit, rows, WIDTH=width, PADDED=padded, HIGH=8, WIDE=wide
        )
    return halves, unit


def _add_product(sums: Tensor, weights: Tensor, features: Tensor) -> None:
    """Add weights @ features, both in halves: weights (2, R, C), features (C, [high | low]), sums (R, D) in float32."""
    high, low = weights.unbind()
    features_high, features_low = features.tensor_split(2, dim=1)
    for left, right in ((low, features_high), (high, features_low), (high, features_high)):
        if sums.is_cuda:
            torch.addmm(sums, left, right, out_dtype=torch.float32, out=sums)
        else:  # in tests
            sums.addmm_(left.float(), right.float())
