"""Triton kernels that compute blocks of a similarity matrix from features in two 16-bit halves.

Two halves in float16 keep 22 of the 24 bits of a float32 number. low · high + high · low + high · high, summed in
float32 by the tensor cores, is about as exact as a product in float32 (after Ootomo and Yokota 2022, "Recovering single
precision accuracy from Tensor Cores"). Each program computes one block of logits, in registers only.

This file is imported only on a GPU. `TRITON_INTERPRET=1`, set before the import, runs the kernels on CPU tensors, for
the tests.
"""

import triton
import triton.language as tl

# Kernels can read only such constants.
_INFINITY = tl.constexpr(float("inf"))
# Values are scaled up to 2^14 before they are split: float16 ends at 2^16, and its normal numbers at 2^-14.
_TOP = tl.constexpr(14)
# Reduction of the logits: sums of exponentials over rows, over rows and columns, or a sum of softplus.
ROWS, BOTH, SOFTPLUS = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)


@triton.jit(do_not_specialize=["x_rows", "y_rows", "x_programs"])
def split(
    x, y, x_largest, y_largest, x_halves, y_halves, units, x_rows, y_rows, x_programs,
    WIDTH: tl.constexpr, PADDED: tl.constexpr, HIGH: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Write x and y as two halves [high | low] of PADDED columns, divided by a power of two and padded with zeros."""
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
    """Return row and column of this program's block; programs that run together share features in the cache."""
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
    """Return a block of logits: −∞ for combinations that are left out, and outside of the matrix."""
    row = down * HIGH + tl.arange(0, HIGH)
    column = across * WIDE + tl.arange(0, WIDE)
    sums = tl.zeros((HIGH, WIDE), tl.float32)
    # One loop over low · high, high · low and high · high: with three products in a step, each would wait for the last.
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
    if WITHOUT_SELF or WITHOUT_DUPLICATES:  # keys: position, image and caption of each pair
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
    """Return log Σ exp(logits) along an axis; −∞ if all logits are −∞."""
    largest = tl.max(logits, AXIS)
    largest = tl.where(largest == -_INFINITY, 0.0, largest)
    return largest + tl.log(tl.sum(tl.exp(logits - tl.expand_dims(largest, AXIS)), AXIS))


@triton.jit
def _softplus(logits):
    """Return log(1 + exp(logits))."""
    small = tl.exp(-tl.abs(logits))
    more = 1 + small  # rounded: log(1 + small) is log(more) · small / (more − 1) nearly to the last bit
    logarithm = tl.where(more == 1, small, tl.log(more) * (small / tl.where(more == 1, 1.0, more - 1)))
    return tl.maximum(logits, 0.0) + logarithm


@triton.jit(do_not_specialize=["rows", "columns", "row_stride", "column_stride"])
def reduce(
    x, y, units, scale, bias, row_keys, column_keys, rows, columns, row_stride, column_stride, row_parts, column_parts,
    PADDED: tl.constexpr, HIGH: tl.constexpr, WIDE: tl.constexpr, DEEP: tl.constexpr, DESCRIBED: tl.constexpr,
    KIND: tl.constexpr, WITHOUT_SELF: tl.constexpr, WITHOUT_DUPLICATES: tl.constexpr,
):  # fmt: skip
    """Write a block's log Σ exp of each row (and column), or its sum of softplus (into `row_parts`)."""
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
    """Add `number` parts of each log Σ exp to the sum of earlier tiles, unless this is the first."""
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
    """Write the derivatives of the loss with respect to a block of logits, in units of 2^-14 of the largest derivative.

    The derivatives are to_row_i · softmax over the row + to_column_j · softmax over the column, or sigmoids, each as
    two halves. The units in which these halves are multiplied with x and with y are written to `factors`; for sigmoids,
    the sum of the block is written to `sums`.
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
    # If everything is left out, the sum is empty; with any finite number, its weights are exp(−∞) = 0.
    shift = tl.where(shift == -_INFINITY, 0.0, shift)
    factor = tl.load(to, mask=inside, other=0.0) / unit
    return tl.exp(logits - tl.expand_dims(shift, AXIS)) * tl.expand_dims(factor, AXIS)
