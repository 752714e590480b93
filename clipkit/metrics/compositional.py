"""Telling near misses apart: a few images and a few captions that differ in one thing."""

from jaxtyping import Bool, Float
from torch import Tensor


def selection(scores: Float[Tensor, "K I C"]) -> tuple[Bool[Tensor, " K"], Bool[Tensor, " K"]]:
    """Whether each image chooses its caption, and each caption its image.

    The i-th image belongs to the i-th caption; of one image and two captions (SugarCrepe, Hsieh et al. 2023) the
    first is right and the second is not, of two and two (Winoground, Thrush et al. 2022) both are right. Definitions
    of CLIP_benchmark 1.6: ties go to the lower index.

    Args:
        scores: of K instances, each of I images and C captions.

    Returns:
        For each instance whether all images choose right (its mean is `text_acc`), and whether all captions do
        (`image_acc`). `acc` is the share of instances in which both hold.

    Example:
        >>> text, image = selection(torch.tensor([[[0.3, 0.1], [0.2, 0.4]]]))
        >>> text.item(), image.item()
        (True, True)
    """
    pairs = min(scores.shape[1:])
    right = scores.new_tensor(range(pairs)).long()
    text = (scores.argmax(dim=2)[:, :pairs] == right).all(dim=1)
    image = (scores.argmax(dim=1)[:, :pairs] == right).all(dim=1)
    return text, image
