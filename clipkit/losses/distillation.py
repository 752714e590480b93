"""Distillation from the image-text similarities of a teacher model."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from clipkit.losses.bands import bands


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
    r"""Match the teacher's softmax over texts for each image, and the teacher's softmax over images for each text.

    .. math:: L = -\frac{1}{2G} \sum_{ij} \big[ p^T_{ij} \ln p_{ij} + q^T_{ij} \ln q_{ij} \big]

    p is the softmax of the scaled similarities over texts, and q is the softmax over images. T marks the teacher. The
    minimum of the loss is the entropy of the teacher's probabilities, not 0. The loss is the distillation of Hinton et
    al. 2015, "Distilling the Knowledge in a Neural Network", applied to similarities as in TinyCLIP (Wu et al. 2023).

    Args:
        image_features: unit-length image features, one row per pair.
        text_features: unit-length text features, in the same order.
        scale: exp(logit_scale).
        teacher_image_features: the teacher's features of the same images, unit length; no gradient is computed.
        teacher_text_features: the teacher's features of the same captions, unit length; no gradient is computed.
        teacher_scale: the teacher's exp(logit_scale).
        rows: pairs whose terms are summed. Default: all pairs. The values of slices that partition the batch add up to
            the loss.

    Returns:
        The sum of the terms of the pairs in `rows`, divided by 2G.

    Example:
        >>> x = torch.eye(4)
        >>> round(distillation(x, x, 0.0, x, x, 100.0).item(), 4)
        1.3863
    """
    dtype = torch.promote_types(image_features.dtype, torch.float32)
    image, text = image_features.to(dtype), text_features.to(dtype)
    teacher_image, teacher_text = teacher_image_features.detach().to(dtype), teacher_text_features.detach().to(dtype)
    scale = torch.as_tensor(scale, dtype=dtype, device=image.device)
    counted = slice(0, len(image)) if rows is None else rows
    value: Tensor = _Distillation.apply(image, text, scale, teacher_image, teacher_text, teacher_scale, counted)
    return value


class _Distillation(torch.autograd.Function):
    """Distillation loss that computes its gradients already in the forward pass, in bands of rows of the logits.

    The derivative of the loss with respect to the logits is softmax(logits) − softmax(teacher's logits).
    """

    @staticmethod
    def forward(
        ctx: Any,
        image: Tensor,
        text: Tensor,
        scale: Tensor,
        teacher_image: Tensor,
        teacher_text: Tensor,
        teacher_scale: Tensor | float,
        counted: slice,
    ) -> Tensor:
        pairs = len(image)
        total, to_scale = torch.zeros((2,), dtype=torch.float64, device=image.device).unbind()
        to_image, to_text = torch.zeros_like(image), torch.zeros_like(text)
        every = bands(counted, pairs)
        # Memory for one band of the teacher and one of the model, which all bands reuse.
        targets, logits = image.new_empty(2, max((band.stop - band.start for band in every), default=0), pairs)
        sides = (
            (image, text, teacher_image, teacher_text, to_image, to_text),
            (text, image, teacher_text, teacher_image, to_text, to_image),
        )
        with torch.autocast(image.device.type, enabled=False):
            for queries, candidates, teacher, teachers, to_queries, to_candidates in sides:
                for band in every:
                    height = band.stop - band.start
                    t = torch.mm(teacher[band] * teacher_scale, teachers.T, out=targets[:height])
                    t.sub_(t.logsumexp(dim=1, keepdim=True)).exp_()
                    z = torch.mm(queries[band] * scale, candidates.T, out=logits[:height])
                    logsumexp = z.logsumexp(dim=1)
                    # The cross entropy is Σ t (logsumexp − z) = logsumexp − Σ t z, because Σ t = 1 in each row.
                    total += (logsumexp - torch.linalg.vecdot(t, z)).sum(dtype=torch.float64)
                    difference = z.sub_(logsumexp[:, None]).exp_().sub_(t)
                    mixed = difference @ candidates
                    to_scale += (queries[band] * mixed).sum(dtype=torch.float64)
                    to_queries[band].addcmul_(mixed, scale)
                    to_candidates.addmm_(difference.T, queries[band] * scale)
        ctx.save_for_backward(to_image / (2 * pairs), to_text / (2 * pairs), (to_scale / (2 * pairs)).to(scale.dtype))
        return (total / (2 * pairs)).to(image.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return (*(gradients[0] * saved for saved in ctx.saved_tensors), None, None, None, None)
