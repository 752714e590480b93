"""Distillation from a teacher's similarities."""

import torch
from jaxtyping import Float
from torch import Tensor

from clipkit.losses.bands import sum_over_bands


def distillation(
    image_features: Float[Tensor, "G D"],
    text_features: Float[Tensor, "G D"],
    scale: Float[Tensor, ""] | float,
    teacher_image_features: Float[Tensor, "G T"],
    teacher_text_features: Float[Tensor, "G T"],
    teacher_scale: Float[Tensor, ""] | float,
    *,
    rows: slice | None = None,
) -> Float[Tensor, ""]:
    r"""Among the batch's texts each picture is to choose as the teacher does, and each text among the pictures.

    .. math:: L = -\frac{1}{2G} \sum_{ij} \big[ p^T_{ij} \ln p_{ij} + q^T_{ij} \ln q_{ij} \big]

    (Hinton et al. 2015, "Distilling the Knowledge in a Neural Network", on similarities as in TinyCLIP, Wu et al. 2023;
    p over texts and q over images are softmaxes of scaled similarities.) Its least value is the teacher's entropy, not
    0.

    In short:
        formula: cross entropy with the teacher's softmax over the batch, both ways
        positives: the teacher's opinion
        needs: a teacher (loss.teacher)
        memory: in bands, O(G D)
        chance: ln G
        source: Hinton et al. 2015; Wu et al. 2023, TinyCLIP
        take it: to make a small model of a large one, mostly in a sum with infonce

    Args:
        image_features: unit length, one row a pair.
        text_features: unit length, row i belongs to row i of the images.
        scale: exp(logit_scale).
        teacher_image_features: unit length, of the same pictures; no gradient goes there.
        teacher_text_features: unit length, of the same captions.
        teacher_scale: the teacher's exp(logit_scale).
        rows: the pairs whose terms are counted; over slices that cover 0..G the values sum to the whole loss.

    Returns:
        The sum over the counted pairs, divided by 2G.

    Example:
        >>> x = torch.eye(4)
        >>> round(distillation(x, x, 0.0, x, x, 100.0).item(), 4)
        1.3863
    """
    dtype = torch.promote_types(image_features.dtype, torch.float32)
    image, text = image_features.to(dtype), text_features.to(dtype)
    teacher_image, teacher_text = teacher_image_features.detach().to(dtype), teacher_text_features.detach().to(dtype)
    scale = torch.as_tensor(scale, dtype=dtype, device=image.device)
    pairs = len(image)

    def of_band(band: slice) -> Tensor:
        total = image.new_zeros(())
        with torch.autocast(image.device.type, enabled=False):
            for asking, others, teacher, teachers in (
                (image, text, teacher_image, teacher_text),
                (text, image, teacher_text, teacher_image),
            ):
                wanted = (teacher_scale * teacher[band] @ teachers.T).softmax(dim=1)
                total = total - (wanted * (scale * asking[band] @ others.T).log_softmax(dim=1)).sum()
        return total / (2 * pairs)

    return sum_over_bands(slice(0, pairs) if rows is None else rows, pairs, of_band)
