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
        >>> text, image = selection(torch.tensor([[[0.3, 0.1], [0.2, 0.4]]]))
        >>> text.item(), image.item()
        (True, True)
    """
    pairs = min(scores.shape[1:])
    correct = scores.new_tensor(range(pairs)).long()
    text = (scores.argmax(dim=2)[:, :pairs] == correct).all(dim=1)
    image = (scores.argmax(dim=1)[:, :pairs] == correct).all(dim=1)
    return text, image
