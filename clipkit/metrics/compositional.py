"""Metrics of compositional tests, in which the captions of an instance differ in one detail."""

from jaxtyping import Bool, Float
from torch import Tensor

from clipkit.metrics.arrays import takes_arrays


@takes_arrays
def selection(scores: Float[Tensor, "K I C"]) -> tuple[Bool[Tensor, " K"], Bool[Tensor, " K"]]:
    """Return whether each instance's images select their captions, and its captions their images.

    An image selects the caption with the highest score, and a caption selects the image with the highest score. Ties go
    to the lower index, as in CLIP_benchmark 1.6. Image i and caption i belong together. An instance of SugarCrepe
    (Hsieh et al. 2023) has one image and two captions, so the second caption is wrong. An instance of Winoground
    (Thrush et al. 2022) has two images and two captions.

    Args:
        scores: scores of K instances, each with I images and C captions.

    Returns:
        A mask of the instances in which all images select their caption, and a mask of the instances in which all
        correct captions select their image. The metrics `text_acc`, `image_acc` and `acc` are the shares of instances
        in the first mask, in the second mask, and in both masks.

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
    """Return whether both correct captions of each instance have a higher score than the incorrect caption.

    This is the image-to-text metric of SugarCrepe++ (Dumpala et al. 2024). The value is False for a tie.

    Args:
        scores: scores of the image with a correct caption, the incorrect caption, and the other correct caption.

    Example:
        >>> import torch
        >>> both_positives(torch.tensor([[0.3, 0.1, 0.2], [0.3, 0.25, 0.2]])).tolist()
        [True, False]
    """
    return (scores[:, 0] > scores[:, 1]) & (scores[:, 2] > scores[:, 1])


@takes_arrays
def closest_pair(first: Float[Tensor, "K D"], negative: Float[Tensor, "K D"], second: Float[Tensor, "K D"]) -> Tensor:
    """Return whether the two correct captions of each instance are the most similar pair of captions.

    This is the text-only metric of SugarCrepe++ (Dumpala et al. 2024). The value is False for a tie.

    Args:
        first, second: unit-length features of the correct captions.
        negative: unit-length features of the incorrect caption.

    Example:
        >>> import torch
        >>> x, y = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
        >>> closest_pair(x, y, x).tolist(), closest_pair(x, x, y).tolist()
        ([True], [False])
    """
    together = (first * second).sum(dim=1)
    return (together > (first * negative).sum(dim=1)) & (together > (second * negative).sum(dim=1))
