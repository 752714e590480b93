"""Table of the trained parts of a model: their parameters, peak learning rates and first steps."""

from collections.abc import Iterator, Mapping, Sequence

from torch import nn

from clipkit.models import DualEncoder, Tower
from clipkit.training.depth import block_numbers

Part = tuple[str, list[str]]


def group_lines(model: DualEncoder, peaks: Mapping[str, float], starts: Mapping[str, int]) -> list[str]:
    """Return a table of the trained parts of a model: a header line, and one line for each part.

    Args:
        peaks: peak learning rate of each trained parameter, by name.
        starts: first step, counted from 0, in which a parameter is trained, by name. Parameters that are trained from
            step 0 are left out.
    """
    rows: list[tuple[str, ...]] = [("trained", "parameters", "peak learning rate", "from step")]
    for name, names in _parts(model, starts):
        if trained := [one for one in names if one in peaks]:
            rates = sorted({peaks[one] for one in trained})
            shown = f"{rates[0]:.3g}" if len(rates) == 1 else f"{rates[0]:.3g} to {rates[-1]:.3g}"
            count = sum(model.get_parameter(one).numel() for one in trained)
            rows.append((name, f"{count:,}", shown, str(starts.get(trained[0], 0) + 1)))
    if not starts:
        rows = [row[:-1] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(_cells(row, widths)).rstrip() for row in rows]


def _cells(row: Sequence[str], widths: Sequence[int]) -> list[str]:
    """Pad the cells of a table row to the given widths; the number of parameters is right-aligned."""
    padded = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
    return [padded[0], row[1].rjust(widths[1]), *padded[2:]]


def peaks_of(
    parameters: Mapping[str, nn.Parameter], groups: list[dict[str, list[nn.Parameter]]], peaks: tuple[float, ...]
) -> dict[str, float]:
    """Return the peak learning rate of each parameter, by name.

    Args:
        groups: the parameter groups of the optimizer.
        peaks: peak learning rate of each group.
    """
    by_id = {id(parameter): peak for group, peak in zip(groups, peaks, strict=True) for parameter in group["params"]}
    return {name: by_id[id(parameter)] for name, parameter in parameters.items() if id(parameter) in by_id}


def _parts(model: DualEncoder, starts: Mapping[str, int]) -> Iterator[Part]:
    """Yield the name of each part of the model, and the names of its parameters.

    All parameters of a part are trained from the same step on.
    """
    for side, tower in model.sides.items():
        yield from _blocks(side, tower, starts)
        others = [f"{side}.{name}" for name, _ in tower.named_parameters() if name not in block_numbers(tower)]
        yield f"{side} projection", others
    yield "view heads", [f"view_heads.{name}" for name, _ in model.view_heads.named_parameters()]
    yield "scale", ["logit_scale"]
    yield "bias", ["logit_bias"]


def _blocks(side: str, tower: Tower, starts: Mapping[str, int]) -> Iterator[Part]:
    """Yield a name for each range of consecutive trained blocks, and the names of their parameters.

    All blocks of a range are trained from the same step on.
    """
    blocks: dict[int, list[str]] = {}
    parameters = dict(tower.named_parameters())
    for name, number in block_numbers(tower).items():
        if name in parameters and parameters[name].requires_grad:
            blocks.setdefault(number, []).append(f"{side}.{name}")
    runs: list[tuple[int, list[int]]] = []
    for number in sorted(blocks):
        start = starts.get(blocks[number][0], 0)
        if runs and runs[-1][0] == start and runs[-1][1][-1] == number - 1:
            runs[-1][1].append(number)
        else:
            runs.append((start, [number]))
    for _, numbers in runs:
        first, last = numbers[0], numbers[-1]
        which = f"block {first}" if first == last else f"blocks {first} to {last}"
        yield f"{side} {which} of {len(tower.blocks)}", [name for number in numbers for name in blocks[number]]
