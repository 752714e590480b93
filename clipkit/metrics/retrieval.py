"""Retrieval between images and their captions, any number of captions an image."""

from collections.abc import Sequence
from math import comb

import torch
from jaxtyping import Float, Int
from torch import Tensor

# Scores held at once. Fixed, so that figures do not depend on anybody's batch size: a matrix product of another shape
# may round differently, and that can break a tie the other way.
_TILE = 1 << 24


def retrieval(
    image_features: Float[Tensor, "N D"],
    text_features: Float[Tensor, "M D"],
    image_of_text: Int[Tensor, " M"],
    ks: Sequence[int] = (1, 5, 10),
) -> dict[str, float]:
    """Recall at k both ways, and their mean.

    `image_retrieval_recall@k`: share of texts whose image is among the k highest-scored images.
    `text_retrieval_recall@k`: share of images of which *any* caption is among the k highest-scored texts.
    `mean_recall`: mean of them all. (Names and definitions of CLIP_benchmark 1.6; ties go to the lower index.)

    Args:
        image_features: unit length.
        text_features: unit length.
        image_of_text: for each text the row of its image.
        ks: cut-offs.

    Example:
        >>> x = torch.eye(3)
        >>> retrieval(x, x[[0, 0, 2, 2]], torch.tensor([0, 0, 2, 1]), ks=(1,))["image_retrieval_recall@1"]
        0.75
    """
    image_rank, text_rank = retrieval_ranks(image_features, text_features, image_of_text)
    return recalls(image_rank, text_rank, ks)


def recalls(
    image_rank: Int[Tensor, " M"], text_rank: Int[Tensor, " N"], ks: Sequence[int] = (1, 5, 10)
) -> dict[str, float]:
    """Recalls from the ranks that `retrieval_ranks` gives. An image without a caption (rank 0) is no query."""
    queries = text_rank[text_rank > 0]
    figures = {f"image_retrieval_recall@{k}": (image_rank <= k).double().mean().item() for k in ks}
    figures |= {f"text_retrieval_recall@{k}": (queries <= k).double().mean().item() for k in ks}
    return figures | {"mean_recall": sum(figures.values()) / len(figures)}


def retrieval_ranks(
    image_features: Float[Tensor, "N D"],
    text_features: Float[Tensor, "M D"],
    image_of_text: Int[Tensor, " M"],
) -> tuple[Int[Tensor, " M"], Int[Tensor, " N"]]:
    """Rank of each text's image among the images, and rank of each image's best caption among the texts.

    A rank is 1 + the number of strictly higher scores + the number of equal scores at a lower index, so it is defined
    for ties too. Scores are float32 (float64 for float64 features). The rank of an image without a caption is 0.
    """
    dtype = torch.promote_types(image_features.dtype, torch.float32)
    images, texts = image_features.to(dtype), text_features.to(dtype)
    return _image_ranks(images, texts, image_of_text), _text_ranks(images, texts, image_of_text)


def _image_ranks(images: Tensor, texts: Tensor, image_of_text: Tensor) -> Tensor:
    index = torch.arange(len(images), device=images.device)
    ranks = []
    for rows in _tiles(len(texts), len(images)):
        scores = texts[rows] @ images.T
        target = image_of_text[rows, None]
        ranks.append(_rank(scores, scores.gather(1, target), target, index))
    return torch.cat(ranks)


def _text_ranks(images: Tensor, texts: Tensor, image_of_text: Tensor) -> Tensor:
    index = torch.arange(len(texts), device=images.device)
    ranks = []
    for rows in _tiles(len(images), len(texts)):
        scores = images[rows] @ texts.T
        own = image_of_text[None, :] == torch.arange(rows.start, rows.stop, device=images.device)[:, None]
        best = scores.masked_fill(~own, -torch.inf).amax(dim=1, keepdim=True)
        first = ((scores == best) & own).int().argmax(dim=1, keepdim=True)
        ranks.append(torch.where(own.any(dim=1), _rank(scores, best, first, index), 0))
    return torch.cat(ranks)


def _rank(scores: Tensor, target_score: Tensor, target: Tensor, index: Tensor) -> Tensor:
    before = (scores > target_score) | ((scores == target_score) & (index < target))
    return 1 + before.sum(dim=1)


def _tiles(rows: int, columns: int) -> list[slice]:
    height = max(1, _TILE // max(1, columns))
    return [slice(start, min(start + height, rows)) for start in range(0, rows, height)]


def retrieval_chance(images: int, image_of_text: Int[Tensor, " M"], ks: Sequence[int] = (1, 5, 10)) -> dict[str, float]:
    """What random scores would give: k/N for images, and 1 − C(M−c, k)/C(M, k) for an image of c captions."""
    texts = len(image_of_text)
    captions = torch.bincount(image_of_text.cpu(), minlength=images)
    figures = {f"image_retrieval_recall@{k}": min(1.0, k / images) for k in ks}
    for k in ks:
        missed = {c: comb(texts - c, k) / comb(texts, k) if k <= texts else 0.0 for c in set(captions.tolist())}
        hit = [1 - missed[c] for c in captions.tolist() if c > 0]
        figures[f"text_retrieval_recall@{k}"] = sum(hit) / len(hit)
    return figures | {"mean_recall": sum(figures.values()) / len(figures)}
