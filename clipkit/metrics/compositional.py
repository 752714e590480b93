"""Compositional tests: matching a few images with a few captions that differ in one detail."""

from jaxtyping import Bool, Float
from torch import Tensor

from clipkit.metrics.arrays import takes_arrays


@takes_arrays
def selection(scores: Float[Tensor, "K I C"]) -> tuple[Bool[Tensor, " K"], Bool[Tensor, " K"]]:
    """Return for each instance whether every image scores highest with its caption, and every caption with its image.

    The i-th image belongs to the i-th caption. With one image and two captions (SugarCrepe, Hsieh et al. 2023) the
    first caption is correct; with two images and two captions (Winoground, Thrush et al. 2022) both are. Definitions
    follow CLIP_benchmark 1.6: ties go to the lower index.

    Args:
        scores: scores of K instances, each of I images and C captions.

    Returns:
        Two flags per instance: the highest score of every image is its caption (mean: `text_acc`), and the highest
        score of every caption is its image (mean: `image_acc`). `acc` is the share of instances in which both hold.

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
    """Return for each instance whether both correct captions score higher than the incorrect one.

    This is the image-to-text metric of SugarCrepe++ (Dumpala et al. 2024); a tie is wrong.

    Args:
        scores: scores of a correct caption, an incorrect one, and another correct one.

    Example:
        >>> import torch
        >>> both_positives(torch.tensor([[0.3, 0.1, 0.2], [0.3, 0.25, 0.2]])).tolist()
        [True, False]
    """
    return (scores[:, 0] > scores[:, 1]) & (scores[:, 2] > scores[:, 1])


@takes_arrays
def closest_pair(first: Float[Tensor, "K D"], negative: Float[Tensor, "K D"], second: Float[Tensor, "K D"]) -> Tensor:
    """Return for each instance whether its correct captions are more similar to each other than to the incorrect one.

    This is the text-only metric of SugarCrepe++ (Dumpala et al. 2024); a tie is wrong.

    Example:
        >>> import torch
        >>> x, y = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
        >>> closest_pair(x, y, x).tolist(), closest_pair(x, x, y).tolist()
        ([True], [False])
    """
    together = (first * second).sum(dim=1)
    return (together > (first * negative).sum(dim=1)) & (together > (second * negative).sum(dim=1))
