"""Block numbers of parameters, and layer-wise decay of the learning rate."""

import re

from clipkit.models import DualEncoder, Tower


def block_numbers(tower: Tower) -> dict[str, int]:
    """Return the block number of each parameter of the trunk, from 1 (the first block) to N.

    Embeddings belong to the first block and final norms to the last one. Parameters of the projection are left out.
    """
    numbers = {name: number for number, block in enumerate(tower.blocks, 1) for name in block}
    stack = _stack(tower)
    for name, _ in tower.trunk.named_parameters():  # parameters that were added to a block, e.g. adapters
        if name not in numbers and stack is not None and (inside := re.match(rf"{re.escape(stack)}\.(\d+)\.", name)):
            numbers[name] = int(inside[1]) + 1
    return {f"trunk.{name}": number for name, number in numbers.items()}


def layer_factors(model: DualEncoder, decay: float) -> dict[str, float]:
    """Return the learning rate factor of each parameter: decay ** (N + 1 - layer).

    N is the number of blocks of the tower. As in BEiT (Bao et al. 2022) and EVA-CLIP, the embeddings are layer 0, and
    the blocks are layers 1 to N. The final norms, the projection, the scale, the bias and view heads are layer N + 1.

    In a tower without a list of equal blocks (e.g. a convolutional one), the stem is in layer 1 and the final norms are
    in layer N.

    Example:
        >>> layer_factors(load("org/clip"), 0.75)["logit_scale"]    # doctest: +SKIP
        1.0
    """
    factors = {name: 1.0 for name, _ in model.named_parameters()}
    for side, tower in model.sides.items():
        count, stack = len(tower.blocks), _stack(tower)
        for name, number in block_numbers(tower).items():
            layer = number
            if stack is not None and not name.startswith(f"trunk.{stack}."):  # an embedding or a final norm
                layer = 0 if name.removeprefix("trunk.") in tower.blocks[0] else count + 1
            factors[f"{side}.{name}"] = decay ** (count + 1 - layer)
    return factors


def _stack(tower: Tower) -> str | None:
    """Return the name of the module list that contains the tower's blocks, e.g. native.encoder.layers.

    The result is None if the blocks are not in one list.
    """
    blocks = tower.blocks
    prefixes = [name[: dot.start()] for name in (blocks[0] if blocks else ()) for dot in re.finditer(r"\.0\.", name)]
    for prefix in sorted(set(prefixes), key=prefixes.count, reverse=True):
        if all(any(name.startswith(f"{prefix}.{k}.") for name in block) for k, block in enumerate(blocks)):
            return prefix
    return None
