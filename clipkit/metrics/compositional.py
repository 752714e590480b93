"""Metrics of compositional tests, in which captions differ from each other in one detail."""

from jaxtyping import Bool, Float
from torch import Tensor

from clipkit.metrics.arrays import takes_arrays


@takes_arrays
def selection(scores: Float[Tensor, "K I C"]) -> tuple[Bool[Tensor, " K"], Bool[Tensor, " K"]]:
    """Return for each instance if all its images select the correct caption, and if all captions select their image.

    Image i belongs to caption i. With one image and two captions (SugarCrepe, Hsieh et al. 2023), the first caption is
    correct; with two images and two captions (Winoground, Thrush et al. 2022), each image has one. An image selects the
    caption with the highest score; of equal scores, the lower index (as in CLIP_benchmark 1.6).

    Args:
        scores: scores of K instances, each with I images and C captions.

    Returns:
        Two masks: instances in which all images select the correct caption (their share is the metric `text_acc`), and
        instances in which all captions select the correct image (`image_acc`). The metric `acc` is the share of
        instances in both.

    Example:
        >>> import torch
        >>> text, image = selection(torch.tensor([[[0.3, 0.1], [0.2, 0.4]]]))
        >>> text.item(), image.item()
        (True, True)
    """
    pairs = min(scores.shape[1:])
    correct = scores.new_tensor(range(pairs)).long()
    text = (scores.argmax(dim=2)[:, :pairs] == correct).all(dim=1)
    image = (scores.argmax(dim=1)[:, :pairs] == correct).all(dim=1)
    return text, image


@takes_arrays
def both_positives(scores: Float[Tensor, "K 3"]) -> Bool[Tensor, " K"]:
    """Return for each instance True if both correct captions score higher than the incorrect caption.

    This is the image-to-text metric of SugarCrepe++ (Dumpala et al. 2024); a tie is wrong.

    Args:
        scores: scores of a correct caption, the incorrect caption, and the other correct caption, for the image.

    Example:
        >>> import torch
        >>> both_positives(torch.tensor([[0.3, 0.1, 0.2], [0.3, 0.25, 0.2]])).tolist()
        [True, False]
    """
    return (scores[:, 0] > scores[:, 1]) & (scores[:, 2] > scores[:, 1])


@takes_arrays
def closest_pair(first: Float[Tensor, "K D"], negative: Float[Tensor, "K D"], second: Float[Tensor, "K D"]) -> Tensor:
    """Return for each instance True if both correct captions are more similar to each other than to the incorrect one.

    This is the text-only metric of SugarCrepe++ (Dumpala et al. 2024); a tie is wrong.

    Args:
        first: features of a correct caption, unit length.
        negative: features of the incorrect caption, unit length.
        second: features of the other correct caption, unit length.

    Example:
        >>> import torch
        >>> x, y = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
        >>> closest_pair(x, y, x).tolist(), closest_pair(x, x, y).tolist()
        ([True], [False])
    """
    together = (first * second).sum(dim=1)
    return (together > (first * negative).sum(dim=1)) & (together > (second * negative).sum(dim=1))
