"""Relevance maps by occlusion: the drop of the cosine when a part of the image is hidden.

The method is from Zeiler and Fergus 2014, "Visualizing and understanding convolutional networks".
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from clipkit.evaluation.explanation.seen import Seen
from clipkit.models import DualEncoder

CELLS = 7
"""Rows and columns of the grid on which parts of an image are hidden."""
_WINDOW = 2  # rows and columns of the windows of `occlusion_maps`
_ROWS = 16  # number of copies of an image in one forward pass


def occlusion_maps(model: DualEncoder, seen: Seen, texts: Float[Tensor, "T D"]) -> Float[Tensor, "T K K"]:
    """Return one relevance map per text: for each grid cell, the mean drop of the cosine when the cell is hidden.

    Windows of 2 × 2 cells are hidden, one at a time. The value of a cell is the mean over the windows that contain it.
    The tower encodes the whole image and one copy for each of the 36 windows.
    """
    windows = square_windows(_WINDOW)
    values = cosines(model, seen, texts, torch.cat([torch.ones_like(windows[:1]), ~windows]))
    hides = windows.float()
    return torch.einsum("wt,wyx->tyx", values[0] - values[1:], hides) / hides.sum(dim=0)


def square_windows(size: int) -> Bool[Tensor, "W K K"]:
    """Return one mask per position of a square window on the K × K grid: True inside the window.

    Positions are in row-major order.

    Args:
        size: rows and columns of the window, in cells.
    """
    starts = range(CELLS - size + 1)
    windows = torch.zeros(len(starts) ** 2, CELLS, CELLS, dtype=torch.bool)
    for number, (row, column) in enumerate((row, column) for row in starts for column in starts):
        windows[number, row : row + size, column : column + size] = True
    return windows


def cosines(
    model: DualEncoder, seen: Seen, texts: Float[Tensor, "T D"], keep: Bool[Tensor, "N K K"]
) -> Float[Tensor, "N T"]:
    """Return the cosine of each text with each of N partly hidden copies of an image.

    Args:
        seen: the preprocessed image.
        texts: unit-length features of the texts.
        keep: mask of the grid cells that each copy shows; the other cells get the mean color of the image.
    """

    def parts() -> Iterator[Tensor]:
        for some in keep.split(_ROWS):
            features = model.image(seen.mixed(some.to(model.device)))
            yield F.normalize(features.float(), dim=-1) @ texts.to(features.device).float().T

    with torch.inference_mode():
        return torch.cat(list(parts())).cpu()
