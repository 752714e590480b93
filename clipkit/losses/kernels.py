"""Triton kernels: blocks of a similarity matrix, of features in two halves of 16 bits.

Two halves in float16 keep 22 of the 24 bits of a float32 number. high · high + high · low + low · high, summed in
float32 by the tensor cores, is about as exact as a product in float32 (after Ootomo and Yokota 2022, "Recovering single
precision accuracy from Tensor Cores"). Each program computes one block of logits, in registers only.

Imported on a GPU alone. `TRITON_INTERPRET=1`, set before the import, runs the kernels on CPU tensors, for the tests.
"""

import triton
import triton.language as tl

# Kernels can read only such constants.
_INFINITY = tl.constexpr(float("inf"))
# Values are scaled up to this power of two before they are split: float16 ends at 2^16, its normal numbers at 2^-14.
TOP = tl.constexpr(14)
# What is done with the logits: sums of exponentials over rows, over rows and columns, or a sum of softplus.
ROWS, BOTH, SOFTPLUS = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)


@triton.jit(do_not_specialize=["rows"])
def split(
    x, largest, halves, unit, rows, WIDTH: tl.constexpr, PADDED: tl.constexpr, HIGH: tl.constexpr, WIDE: tl.constexpr
):  # fmt: skip
    """Write rows of `x` as [high | low], each with PADDED columns, in units of a power of two; zeros outside `x`."""
    exponent = tl.ceil(tl.log2(tl.maximum(tl.load(largest), 1e-15))) - TOP
    row = (tl.program_id(0) * HIGH + tl.arange(0, HIGH)).to(tl.int64)[:, None]
    column = tl.arange(0, WIDE)[None, :]
    value = tl.load(x + row * WIDTH + column, mask=(row < rows) & (column < WIDTH), other=0.0) * tl.exp2(-exponent)
    high = value.to(tl.float16)
    at = halves + row * (2 * PADDED) + column
    tl.store(at, high, mask=(row >= 0) & (column < PADDED))
    tl.store(at + PADDED, (value - high.to(tl.float32)).to(tl.float16), mask=(row >= 0) & (column < PADDED))
    if tl.program_id(0) == 0:
        tl.store(unit, tl.exp2(exponent))


@triton.jit
def _block(rows, columns, HIGH: tl.constexpr, WIDE: tl.constexpr):
    """Return the rows and columns of this program's block; programs that run together share features in the cache."""
    across = tl.cdiv(columns, WIDE)
    group = tl.program_id(0) // (8 * across)
    height = tl.minimum(tl.cdiv(rows, HIGH) - group * 8, 8)
    rest = tl.program_id(0) % (8 * across)
    return group * 8 + rest % height, rest // height


@triton.jit
def _logits(
    x, y, x_unit, y_unit, scale, bias, row_keys, column_keys, row, column, first_row, first_column,
    rows, columns, row_stride, column_stride,
    PADDED: tl.constexpr, HIGH: tl.constexpr, WIDE: tl.constexpr, DEEP: tl.constexpr,
    WITH_BIAS: tl.constexpr, WITHOUT_SELF: tl.constexpr, WITHOUT_DUPLICATES: tl.constexpr, FORM: tl.constexpr,
):  # fmt: skip
    """Return a block of logits: −∞ where a combination is left out, and outside the matrix."""
    sums = tl.zeros((HIGH, WIDE), tl.float32)
    if FORM < 3:
        depth = tl.arange(0, DEEP)
        x_at = x + row[:, None] * (2 * PADDED) + depth[None, :]
        y_at = y + column[None, :] * (2 * PADDED) + depth[:, None]
    if FORM == 0:
        for start in range(0, PADDED, DEEP):
            x_high = tl.load(x_at + start)
            y_high = tl.load(y_at + start)
            x_low = tl.load(x_at + PADDED + start)
            y_low = tl.load(y_at + PADDED + start)
            sums = tl.dot(x_low, y_high, sums)
            sums = tl.dot(x_high, y_low, sums)
            sums = tl.dot(x_high, y_high, sums)
    elif FORM == 1:
        for step in range(0, 3 * PADDED, DEEP):
            part = step // PADDED
            start = step - part * PADDED
            left = tl.load(x_at + (start + tl.where(part == 0, PADDED, 0)))
            right = tl.load(y_at + (start + tl.where(part == 1, PADDED, 0)))
            sums = tl.dot(left, right, sums)
    elif FORM == 2:
        second = tl.zeros((HIGH, WIDE), tl.float32)
        third = tl.zeros((HIGH, WIDE), tl.float32)
        for start in range(0, PADDED, DEEP):
            x_high = tl.load(x_at + start)
            y_high = tl.load(y_at + start)
            x_low = tl.load(x_at + PADDED + start)
            y_low = tl.load(y_at + PADDED + start)
            sums = tl.dot(x_high, y_high, sums)
            second = tl.dot(x_high, y_low, second)
            third = tl.dot(x_low, y_high, third)
        sums += second + third
    elif FORM == 3:
        for step in range(0, 3 * PADDED, DEEP):
            part = step // PADDED
            start = step - part * PADDED
            left = x.load([first_row, start + tl.where(part == 0, PADDED, 0)])
            right = y.load([first_column, start + tl.where(part == 1, PADDED, 0)])
            sums = tl.dot(left, right.T, sums)
    elif FORM == 4:
        second = tl.zeros((HIGH, WIDE), tl.float32)
        third = tl.zeros((HIGH, WIDE), tl.float32)
        for start in range(0, PADDED, DEEP):
            x_high = x.load([first_row, start])
            y_high = y.load([first_column, start]).T
            x_low = x.load([first_row, PADDED + start])
            y_low = y.load([first_column, PADDED + start]).T
            sums = tl.dot(x_high, y_high, sums)
            second = tl.dot(x_high, y_low, second)
            third = tl.dot(x_low, y_high, third)
        sums += second + third
    else:
        for start in range(0, PADDED, DEEP):
            x_high = x.load([first_row, start])
            y_high = y.load([first_column, start]).T
            x_low = x.load([first_row, PADDED + start])
            y_low = y.load([first_column, PADDED + start]).T
            sums = tl.dot(x_low, y_high, sums)
            sums = tl.dot(x_high, y_low, sums)
            sums = tl.dot(x_high, y_high, sums)
    logits = sums * (tl.load(scale) * tl.load(x_unit) * tl.load(y_unit))
    if WITH_BIAS:
        logits += tl.load(bias)
    logits = tl.where((row < rows)[:, None] & (column < columns)[None, :], logits, -_INFINITY)
    if WITHOUT_SELF or WITHOUT_DUPLICATES:  # keys are the position, the image and the caption of each pair
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
    """Return log Σ exp(logits) along an axis; −∞ if all logits are."""
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
    x, y, x_unit, y_unit, scale, bias, row_keys, column_keys, rows, columns, row_stride, column_stride,
    row_sums, column_sums,
    PADDED: tl.constexpr, HIGH: tl.constexpr, WIDE: tl.constexpr, DEEP: tl.constexpr, KIND: tl.constexpr,
    WITHOUT_SELF: tl.constexpr, WITHOUT_DUPLICATES: tl.constexpr, FORM: tl.constexpr,
):  # fmt: skip
    """Write a block's log Σ exp of each row (and column), or its sum of softplus (into `row_sums`)."""
    down, across = _block(rows, columns, HIGH, WIDE)
    row = down * HIGH + tl.arange(0, HIGH)
    column = across * WIDE + tl.arange(0, WIDE)
    logits = _logits(
        x, y, x_unit, y_unit, scale, bias, row_keys, column_keys, row, column, down * HIGH, across * WIDE,
        rows, columns, row_stride, column_stride,
        PADDED, HIGH, WIDE, DEEP, KIND == SOFTPLUS, WITHOUT_SELF, WITHOUT_DUPLICATES, FORM,
    )  # fmt: skip
    if KIND == SOFTPLUS:
        tl.store(row_sums + tl.program_id(0), tl.sum(tl.sum(_softplus(logits), 1), 0))
    else:
        tl.store(row_sums + across * rows + row, _logsumexp(logits, 1), mask=row < rows)
    if KIND == BOTH:
        tl.store(column_sums + down * columns + column, _logsumexp(logits, 0), mask=column < columns)


@triton.jit(do_not_specialize=["rows", "columns", "row_stride", "column_stride"])
def weigh(
    x, y, x_unit, y_unit, scale, bias, row_keys, column_keys, rows, columns, row_stride, column_stride,
    row_lse, column_lse, to_rows, to_columns, unit, weights, sums, padded_rows, padded_columns,
    PADDED: tl.constexpr, HIGH: tl.constexpr, WIDE: tl.constexpr, DEEP: tl.constexpr, KIND: tl.constexpr,
    WITHOUT_SELF: tl.constexpr, WITHOUT_DUPLICATES: tl.constexpr, FORM: tl.constexpr,
):  # fmt: skip
    """Write the derivatives of the loss by a block of logits, in units of `unit`, as two halves; zeros outside.

    They are to_row_i · softmax over the row + to_column_j · softmax over the column, or sigmoids; of sigmoids, `sums`
    gets the block's sum.
    """
    down, across = _block(padded_rows, padded_columns, HIGH, WIDE)
    row = down * HIGH + tl.arange(0, HIGH)
    column = across * WIDE + tl.arange(0, WIDE)
    logits = _logits(
        x, y, x_unit, y_unit, scale, bias, row_keys, column_keys, row, column, down * HIGH, across * WIDE,
        rows, columns, row_stride, column_stride,
        PADDED, HIGH, WIDE, DEEP, KIND == SOFTPLUS, WITHOUT_SELF, WITHOUT_DUPLICATES, FORM,
    )  # fmt: skip
    each = 1 / tl.load(unit)
    if KIND == SOFTPLUS:
        value = each / (1 + tl.exp(-logits))
        tl.store(sums + tl.program_id(0), tl.sum(tl.sum(value, 1), 0))
    else:
        shift = tl.load(row_lse + row, mask=row < rows, other=0.0)
        factor = tl.load(to_rows + row, mask=row < rows, other=0.0) * each
        value = tl.exp(logits - shift[:, None]) * factor[:, None]
        if KIND == BOTH:
            column_shift = tl.load(column_lse + column, mask=column < columns, other=0.0)
            column_factor = tl.load(to_columns + column, mask=column < columns, other=0.0) * each
            value += tl.exp(logits - column_shift[None, :]) * column_factor[None, :]
    high = value.to(tl.float16)
    at = weights + row[:, None] * padded_columns + column[None, :]
    tl.store(at, high)
    tl.store(at + padded_rows * padded_columns, (value - high.to(tl.float32)).to(tl.float16))
