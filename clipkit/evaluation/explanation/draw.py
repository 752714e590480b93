"""Drawing of an explanation as one image file."""

from pathlib import Path
from typing import TYPE_CHECKING

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from clipkit.files import replacing
from clipkit.tasks import shortened

if TYPE_CHECKING:
    from clipkit.evaluation.explanation.explain import Explanation

_WORDS = 3  # maps of words beside the map of a text
_SIDE = 2.6  # inches
_TITLE = 34  # characters


def draw(explanation: "Explanation", file: Path) -> None:
    """Write a row per text: the image, the map of the text, and those of the words with the largest effect.

    Raises:
        OSError: the file cannot be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=((2 + _WORDS) * _SIDE, len(explanation.texts) * (_SIDE + 0.3)), layout="constrained")
    axes = figure.subplots(len(explanation.texts), 2 + _WORDS, squeeze=False)
    for row, one in zip(axes, explanation.texts, strict=True):
        words = sorted(one.words, key=lambda word: -word.drop)[:_WORDS]
        panels: list[tuple[str, Tensor | None]] = [(Path(explanation.image).name, None)]
        panels += [(f"{one.text} ({one.cosine:.3f})", one.map)]
        panels += [(f"{word.word} ({word.drop:+.3f})", word.map) for word in words]
        for ax in row:
            ax.set_axis_off()
        for ax, (title, map_) in zip(row, panels, strict=False):
            ax.imshow(explanation.pixels)
            ax.set_title(shortened(title, _TITLE).replace("$", r"\$"), fontsize=8)
            if map_ is not None:
                height, width = explanation.pixels.shape[:2]
                ax.imshow(_heat(map_, height, width), cmap="inferno", vmin=0, vmax=1, alpha=0.6)
    with replacing(file) as written:
        figure.savefig(written, format="png", dpi=110)


def _heat(map: Float[Tensor, "R C"], height: int, width: int) -> Float[Tensor, "H W"]:
    """Return a map in the size of the image, between 0 (lowest relevance) and 1 (highest)."""
    large = F.interpolate(map[None, None], size=(height, width), mode="bilinear")[0, 0]
    low, high = large.amin(), large.amax()
    return (large - low) / (high - low).clamp(min=1e-12)
