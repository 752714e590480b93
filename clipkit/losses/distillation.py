"""Distillation from a teacher's similarities."""

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
    r"""Among the batch's texts each image is to choose as the teacher does, and each text among the images.

    .. math:: L = -\frac{1}{2G} \sum_{ij} \big[ p^T_{ij} \ln p_{ij} + q^T_{ij} \ln q_{ij} \big]

    (Hinton et al. 2015, "Distilling the Knowledge in a Neural Network", on similarities as in TinyCLIP, Wu et al. 2023;
    p over texts and q over images are softmaxes of scaled similarities.) Its least value is the teacher's entropy, not
    0.

    Args:
        image_features: unit length, one row a pair.
        text_features: unit length, row i belongs to row i of the images.
        scale: exp(logit_scale).
        teacher_image_features: unit length, of the same images; no gradient goes there.
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
    counted = slice(0, len(image)) if rows is None else rows
    value: Tensor = _Distillation.apply(image, text, scale, teacher_image, teacher_text, teacher_scale, counted)
    return value


class _Distillation(torch.autograd.Function):
    """Value and gradients in one pass over bands: of a band's logits z, dL/dz is softmax(z) less the teacher's."""

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
        # Two bands of combinations, and no more, are there at any time.
        wanted, logits = image.new_empty(2, max((band.stop - band.start for band in every), default=0), pairs)
        sides = (
            (image, text, teacher_image, teacher_text, to_image, to_text),
            (text, image, teacher_text, teacher_image, to_text, to_image),
        )
        with torch.autocast(image.device.type, enabled=False):
            for asking, others, teacher, teachers, to_asking, to_others in sides:
                for band in every:
                    height = band.stop - band.start
                    t = torch.mm(teacher[band] * teacher_scale, teachers.T, out=wanted[:height])
                    t.sub_(t.logsumexp(dim=1, keepdim=True)).exp_()
                    z = torch.mm(asking[band] * scale, others.T, out=logits[:height])
                    logsumexp = z.logsumexp(dim=1)
                    # The teacher's shares of a row sum to 1.
                    total += (logsumexp - torch.linalg.vecdot(t, z)).sum(dtype=torch.float64)
                    difference = z.sub_(logsumexp[:, None]).exp_().sub_(t)
                    mixed = difference @ others
                    to_scale += (asking[band] * mixed).sum(dtype=torch.float64)
                    to_asking[band].addcmul_(mixed, scale)
                    to_others.addmm_(difference.T, asking[band] * scale)
        ctx.save_for_backward(to_image / (2 * pairs), to_text / (2 * pairs), (to_scale / (2 * pairs)).to(scale.dtype))
        return (total / (2 * pairs)).to(image.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return (*(gradients[0] * own for own in ctx.saved_tensors), None, None, None, None)
