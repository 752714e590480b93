"""Features of the training pairs, computed by the model before training."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from clipkit.data import Pairs
from clipkit.embedding.shared import encode_shared, evaluating
from clipkit.models import DualEncoder
from clipkit.models.devices import is_accelerator
from clipkit.models.encode import cpu_batch, encode_images, encode_strings, tower_features
from clipkit.processes import Processes

# Number of images or captions in a block, which one process encodes. It is fixed, because rounding errors depend on the
# batches.
_BLOCK = 1024
# Number of rows that are added to a block, so that no batch has a single row: its rounding on a CPU also depends on its
# address in memory.
_ROWS = 8
# Strings of a batch on a CPU: as many as one of several threads takes, so that the number of threads has no effect.
_STRINGS = 64


@dataclass(frozen=True)
class StartFeatures:
    """L2-normalized features of all training images and captions, on the CPU."""

    image: Float[Tensor, "N D"]
    text: Float[Tensor, "M D"]
    bad: dict[int, str]
    """Reasons why images are missing or unreadable, by position; their features have arbitrary values."""


def start_features(model: DualEncoder, pairs: Pairs, missing: Mapping[int, str], processes: Processes) -> StartFeatures:
    """Encode the training pairs without augmentation.

    The result is bit-identical for any number of processes.

    Args:
        missing: reasons why images are known to be missing, by position.
    """
    bad_here: dict[int, str] = {}
    on_cpu = not is_accelerator(model.device)

    def of_images(positions: range) -> Tensor:
        images = [pairs.images[position] for position in positions]
        found: dict[int, str] = {}
        filled = images + images[-1:] * (-len(images) % _ROWS)
        batch = cpu_batch(model.image, None) if on_cpu else None
        encoded = encode_images(model.image, filled, tower_features, batch, model.device, bad=found)[: len(images)]
        bad_here.update({positions[row]: reason for row, reason in found.items() if row < len(images)})
        return encoded

    def of_texts(positions: range) -> Tensor:
        texts = [pairs.captions[position] for position in positions]
        filled = texts + [str(number) for number in range(_ROWS)]  # equal strings are encoded once
        batch = _STRINGS - (len(set(filled)) % _STRINGS == 1) if on_cpu else None
        return encode_strings(model.text, filled, tower_features, batch, model.device)[: len(texts)]

    with evaluating(model):
        image = _in_blocks(len(pairs.images), of_images, processes, "images")
        text = _in_blocks(len(pairs.captions), of_texts, processes, "captions")
    bad = {position: reason for part in processes.gather_objects(bad_here) for position, reason in part.items()}
    return StartFeatures(image, text, {**bad, **missing})


def _in_blocks(count: int, encode: Callable[[range], Tensor], processes: Processes, kind: str) -> Float[Tensor, "N D"]:
    """Return the L2-normalized features of `count` items.

    The items are encoded in blocks of fixed size, which are divided among the processes.
    """
    blocks = [range(start, min(start + _BLOCK, count)) for start in range(0, count, _BLOCK)]

    def rows(share: Sequence[range]) -> Tensor:
        shown = tqdm(share, desc=f"{kind} before training", disable=None if processes.is_main else True, leave=False)
        encoded = [F.normalize(encode(block).float(), dim=-1).cpu() for block in shown]
        return torch.stack([F.pad(part, (0, 0, 0, _BLOCK - len(part))).flatten() for part in encoded])

    whole = encode_shared(blocks, rows, processes).cpu()
    return whole.reshape(len(blocks) * _BLOCK, -1)[:count]
