"""Triton kernels that compute blocks of a similarity matrix in float16 with nearly the accuracy of float32.

Each float32 number is the sum of two float16 numbers: the high half and the low half. They keep 22 of the 24 bits of a
float32 number. A product is low · high + high · low + high · high, and tensor cores sum it in float32. The method
follows Ootomo and Yokota 2022, "Recovering single precision accuracy from Tensor Cores". Each program computes one
block of logits in registers.

This file is imported only on a GPU. Tests set `TRITON_INTERPRET=1` before the import to run the kernels on a CPU.
"""

import triton
import triton.language as tl

# Triton kernels can only read global constants of the type `tl.constexpr`.
_INFINITY = tl.constexpr(float("inf"))
# Before the split, numbers are scaled so that the largest is about 2^14: float16 represents numbers from 2^-14 to 2^16.
_TOP = tl.constexpr(14)
# Reduction of the logits: log Σ exp over rows, log Σ exp over rows and over columns, or a sum of softplus.
ROWS, BOTH, SOFTPLUS = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)


@triton.jit(do_not_specialize=["x_rows", "y_rows", "x_programs"])
def split(
    x, y, x_largest, y_largest, x_halves, y_halves, units, x_rows, y_rows, x_programs,
    WIDTH: tl.constexpr, PADDED: tl.constexpr, HIGH: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Divide x and y by powers of two, split them into float16 halves, and write the halves side by side: [high | low].

    Each half is padded with zeros to PADDED columns. The powers of two are written to `units`.
    """
    program = tl.program_id(0)
    if program < x_programs:
        _split(x, x_largest, x_halves, units, x_rows, program, WIDTH, PADDED, HIGH, WIDE)
    else:
        _split(y, y_largest, y_halves, units + 1, y_rows, program - x_programs, WIDTH, PADDED, HIGH, WIDE)


@triton.jit
def _split(
    x, largest, halves, unit, rows, program,
    WIDTH: tl.constexpr, PADDED: tl.constexpr, HIGH: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    exponent = tl.ceil(tl.log2(tl.maximum(tl.load(largest), 1e-15))) - _TOP
    row = (program * HIGH + tl.arange(0, HIGH)).to(tl.int64)[:, None]
    column = tl.arange(0, WIDE)[None, :]
    value = tl.load(x + row * WIDTH + column, mask=(row < rows) & (column < WIDTH), other=0.0) * tl.exp2(-exponent)
    high = value.to(tl.float16)
    at = halves + row * (2 * PADDED) + column
    tl.store(at, high, mask=(row >= 0) & (column < PADDED))
    tl.store(at + PADDED, (value - high.to(tl.float32)).to(tl.float16), mask=(row >= 0) & (column < PADDED))
    if program == 0:
        tl.store(unit, tl.exp2(exponent))


@triton.jit
def _block(rows, columns, HIGH: tl.constexpr, WIDE: tl.constexpr):
    """Return the row and the column of this program's block in the matrix of blocks."""
    # Programs that run at the same time get neighboring blocks, which use the same features from the cache.
    across = tl.cdiv(columns, WIDE)
    group = tl.program_id(0) // (8 * across)
    height = tl.minimum(tl.cdiv(rows, HIGH) - group * 8, 8)
    rest = tl.program_id(0) % (8 * across)
    return group * 8 + rest % height, rest // height


@triton.jit
def _logits(
    x, y, units, scale, bias, row_keys, column_keys, down, across, rows, columns, row_stride, column_stride,
    PADDED: tl.constexpr, HIGH: tl.constexpr, WIDE: tl.constexpr, DEEP: tl.constexpr, DESCRIBED: tl.constexpr,
    WITH_BIAS: tl.constexpr, WITHOUT_SELF: tl.constexpr, WITHOUT_DUPLICATES: tl.constexpr,
):  # fmt: skip
    """Return a block of logits. Entries that are left out or outside the matrix are −∞."""
    row = down * HIGH + tl.arange(0, HIGH)
    column = across * WIDE + tl.arange(0, WIDE)
    sums = tl.zeros((HIGH, WIDE), tl.float32)
    # One loop for low · high, then high · low, then high · high. Three products in one step would wait for each other.
    for step in range(0, 3 * PADDED, DEEP):
        part = step // PADDED
        x_start = step - part * PADDED + tl.where(part == 0, PADDED, 0)
        y_start = step - part * PADDED + tl.where(part == 1, PADDED, 0)
        if DESCRIBED:
            left = x.load([down * HIGH, x_start])
            right = y.load([across * WIDE, y_start]).T
        else:
            depth = tl.arange(0, DEEP)
            left = tl.load(x + row[:, None] * (2 * PADDED) + (x_start + depth)[None, :])
            right = tl.load(y + column[None, :] * (2 * PADDED) + (y_start + depth)[:, None])
        sums = tl.dot(left, right, sums)
    logits = sums * (tl.load(scale) * tl.load(units) * tl.load(units + 1))
    if WITH_BIAS:
        logits += tl.load(bias)
    logits = tl.where((row < rows)[:, None] & (column < columns)[None, :], logits, -_INFINITY)
    if WITHOUT_SELF or WITHOUT_DUPLICATES:  # keys of a pair: its position, image ID and caption ID
        own = tl.load(row_keys + row, mask=row < rows, other=-1)
        other = tl.load(column_keys + column, mask=column < columns, other=-1)
        out = own[:, None] == other[None, :]
        if WITHOUT_DUPLICATES:
            image = tl.load(row_keys + row_stride + row, mask=row < rows, other=-1)
            caption = tl.load(row_keys + 2 * row_stride + row, mask=row < rows, other=-1)
            images = tl.load(column_keys + column_stride + column, mask=column < columns, other=-1)
            captions = tl.load(column_keys + 2 * column_stride + column, mask=column < columns, other=-1)
            same = (image[:, None] == images[None, :]) | (caption[:, None] == captions[None, :])
            out = (same | out) if WITHOUT_SELF else (same & (own[:, None] != other[None, :]))
        logits = tl.where(out, -_INFINITY, logits)
    return logits


@triton.jit
def _logsumexp(logits, AXIS: tl.constexpr):
    """Return log Σ exp(logits) along an axis. The result is −∞ if all logits are −∞."""
    largest = tl.max(logits, AXIS)
    largest = tl.where(largest == -_INFINITY, 0.0, largest)
    return largest + tl.log(tl.sum(tl.exp(logits - tl.expand_dims(largest, AXIS)), AXIS))


@triton.jit
def _softplus(logits):
    """Return log(1 + exp(logits))."""
    small = tl.exp(-tl.abs(logits))
    # more is rounded; log(more) · small / (more − 1) corrects this, and is log(1 + small) nearly to the last bit.
    more = 1 + small
    logarithm = tl.where(more == 1, small, tl.log(more) * (small / tl.where(more == 1, 1.0, more - 1)))
    return tl.maximum(logits, 0.0) + logarithm


@triton.jit(do_not_specialize=["rows", "columns", "row_stride", "column_stride"])
def reduce(
    x, y, units, scale, bias, row_keys, column_keys, rows, columns, row_stride, column_stride, row_parts, column_parts,
    PADDED: tl.constexpr, HIGH: tl.constexpr, WIDE: tl.constexpr, DEEP: tl.constexpr, DESCRIBED: tl.constexpr,
    KIND: tl.constexpr, WITHOUT_SELF: tl.constexpr, WITHOUT_DUPLICATES: tl.constexpr,
):  # fmt: skip
    """Reduce a block of logits to log Σ exp of each row (and column), or to the sum of softplus.

    KIND is ROWS, BOTH or SOFTPLUS. The results are written to `row_parts` and, for BOTH, also to `column_parts`.
    """
    down, across = _block(rows, columns, HIGH, WIDE)
    logits = _logits(
        x, y, units, scale, bias, row_keys, column_keys, down, across, rows, columns, row_stride, column_stride,
        PADDED, HIGH, WIDE, DEEP, DESCRIBED, KIND == SOFTPLUS, WITHOUT_SELF, WITHOUT_DUPLICATES,
    )  # fmt: skip
    row = down * HIGH + tl.arange(0, HIGH)
    column = across * WIDE + tl.arange(0, WIDE)
    if KIND == SOFTPLUS:
        tl.store(row_parts + tl.program_id(0), tl.sum(tl.sum(_softplus(logits), 1), 0))
    else:
        tl.store(row_parts + across * rows + row, _logsumexp(logits, 1), mask=row < rows)
    if KIND == BOTH:
        tl.store(column_parts + down * columns + column, _logsumexp(logits, 0), mask=column < columns)


@triton.jit(do_not_specialize=["number", "size", "first"])
def combine(parts, lse, number, size, first, HIGH: tl.constexpr, WIDE: tl.constexpr):
    """Combine log Σ exp of all blocks of a tile with the result of earlier tiles in `lse`.

    Args:
        parts: (number, size) log Σ exp of each block.
        lse: (size,) the result; it is overwritten.
        number: number of blocks.
        size: number of rows or columns of the tile.
        first: 1: ignore the previous values of `lse`.
    """
    column = tl.program_id(0) * WIDE + tl.arange(0, WIDE)
    total = tl.load(lse + column, mask=column < tl.where(first == 0, size, 0), other=-_INFINITY)
    for start in range(0, number, HIGH):
        row = start + tl.arange(0, HIGH)
        inside = (row < number)[:, None] & (column < size)[None, :]
        part = _logsumexp(tl.load(parts + row[:, None] * size + column[None, :], mask=inside, other=-_INFINITY), 0)
        largest = tl.maximum(part, total)
        largest = tl.where(largest == -_INFINITY, 0.0, largest)
        total = largest + tl.log(tl.exp(part - largest) + tl.exp(total - largest))
    tl.store(lse + column, total, mask=column < size)


@triton.jit(do_not_specialize=["rows", "columns", "row_stride", "column_stride"])
def weigh(
    x, y, units, scale, bias, row_keys, column_keys, rows, columns, row_stride, column_stride,
    row_lse, column_lse, to_rows, to_columns, row_largest, column_largest,
    weights, factors, sums, padded_rows, padded_columns,
    PADDED: tl.constexpr, HIGH: tl.constexpr, WIDE: tl.constexpr, DEEP: tl.constexpr, DESCRIBED: tl.constexpr,
    KIND: tl.constexpr, WITHOUT_SELF: tl.constexpr, WITHOUT_DUPLICATES: tl.constexpr,
):  # fmt: skip
    """Write the derivatives of the loss with respect to a block of logits, as two float16 halves.

    The derivatives are to_rows_i · softmax over row i, plus to_columns_j · softmax over column j if KIND is BOTH. If
    KIND is SOFTPLUS, they are sigmoids, and their sum over the block is written to `sums`.

    To fit into float16, the derivatives are divided by 2^-14 times their largest possible value. `factors` receives the
    factors that undo all scaling in the products of derivatives with x and y.
    """
    down, across = _block(padded_rows, padded_columns, HIGH, WIDE)
    logits = _logits(
        x, y, units, scale, bias, row_keys, column_keys, down, across, rows, columns, row_stride, column_stride,
        PADDED, HIGH, WIDE, DEEP, DESCRIBED, KIND == SOFTPLUS, WITHOUT_SELF, WITHOUT_DUPLICATES,
    )  # fmt: skip
    row = down * HIGH + tl.arange(0, HIGH)
    column = across * WIDE + tl.arange(0, WIDE)
    unit = 1.0 / 16384
    if KIND != SOFTPLUS:
        largest = tl.load(row_largest)
        if KIND == BOTH:
            largest = tl.maximum(largest, tl.load(column_largest))
        unit *= tl.maximum(largest, 1e-30)
    if KIND == SOFTPLUS:
        value = 1.0 / (1 + tl.exp(-logits)) / unit
        tl.store(sums + tl.program_id(0), tl.sum(tl.sum(value, 1), 0) * unit)
    else:
        value = _softmax(logits, row_lse + row, to_rows + row, row < rows, unit, 1)
        if KIND == BOTH:
            value += _softmax(logits, column_lse + column, to_columns + column, column < columns, unit, 0)
    high = value.to(tl.float16)
    low = (value - high.to(tl.float32)).to(tl.float16)
    if DESCRIBED:
        weights.store([down * HIGH, across * WIDE], high)
        weights.store([padded_rows + down * HIGH, across * WIDE], low)
    else:
        at = weights + row[:, None] * padded_columns + column[None, :]
        tl.store(at, high)
        tl.store(at + padded_rows * padded_columns, low)
    if tl.program_id(0) == 0:
        tl.store(factors, unit * tl.load(units))
        tl.store(factors + 1, unit * tl.load(units + 1))


@triton.jit
def _softmax(logits, lse, to, inside, unit, AXIS: tl.constexpr):
    shift = tl.load(lse, mask=inside, other=0.0)
    # log Σ exp is −∞ if all combinations are left out. Any finite number instead of it gives weights of exp(−∞) = 0.
    shift = tl.where(shift == -_INFINITY, 0.0, shift)
    factor = tl.load(to, mask=inside, other=0.0) / unit
    return tl.exp(logits - tl.expand_dims(shift, AXIS)) * tl.expand_dims(factor, AXIS)
