"""Drawing of relevance maps on images."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from clipkit.files import replacing
from clipkit.overwriting import IMAGE_MARK
from clipkit.tasks import shortened

_SIDE = 2.6  # inches
_COLORS, _OPACITY = "inferno", 0.6
_TITLE = 34  # characters

Panel = tuple[str, Float[Tensor, "R C"] | None]
"""Title and map; None: the image alone."""


def draw(pixels: UInt8[np.ndarray, "H W 3"], rows: Sequence[Sequence[Panel]], file: Path) -> None:
    """Write a PNG file with rows of panels: the image, alone or with a relevance map on it.

    Raises:
        OSError: the file cannot be written.
    """
    from matplotlib.figure import Figure

    columns = max(map(len, rows))
    figure = Figure(figsize=(columns * _SIDE, len(rows) * (_SIDE + 0.3)), layout="constrained")
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for ax in axes.flat:
        ax.set_axis_off()
    for of_row, panels in zip(axes, rows, strict=True):
        for ax, (title, map_) in zip(of_row, panels, strict=False):
            ax.imshow(pixels)
            ax.set_title(shortened(title, _TITLE).replace("$", r"\$"), fontsize=8)
            if map_ is not None:
                ax.imshow(_heat(map_, *pixels.shape[:2]), cmap=_COLORS, vmin=0, vmax=1, alpha=_OPACITY)
    with replacing(file) as written:
        figure.savefig(written, format="png", dpi=110, metadata=dict([IMAGE_MARK]))


def overlaid(pixels: UInt8[np.ndarray, "H W 3"], map: Float[Tensor, "R C"]) -> Image.Image:
    """Return the image with a relevance map drawn on it as a color overlay."""
    from matplotlib import colormaps

    colors = colormaps[_COLORS](_heat(map, *pixels.shape[:2]).numpy(), bytes=True)[..., :3]
    return Image.blend(Image.fromarray(pixels), Image.fromarray(colors), _OPACITY)


def _heat(map: Float[Tensor, "R C"], height: int, width: int) -> Float[Tensor, "H W"]:
    """Resize a relevance map to the image, and scale it to [0, 1], where 1 is the highest relevance."""
    large = F.interpolate(map[None, None], size=(height, width), mode="bilinear")[0, 0]
    low, high = large.amin(), large.amax()
    return (large - low) / (high - low).clamp(min=1e-12)
