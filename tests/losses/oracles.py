"""The losses by their definitions, pair by pair."""

import torch
import torch.nn.functional as F
from torch import Tensor


def features(pairs: int, width: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Unit vectors with gradients."""
    generator = torch.Generator().manual_seed(seed)
    image, text = (F.normalize(torch.randn(pairs, width, generator=generator, dtype=dtype), dim=-1) for _ in range(2))
    return image.requires_grad_(), text.requires_grad_()


def positive(i: int, j: int, image_ids: list[int], caption_ids: list[int]) -> bool:
    return image_ids[i] == image_ids[j] or caption_ids[i] == caption_ids[j]


def infonce_by_loops(
    image: Tensor, text: Tensor, scale: Tensor, image_ids: list[int], caption_ids: list[int], duplicates: str
) -> Tensor:
    pairs = range(len(image))
    total = torch.zeros((), dtype=image.dtype)
    for queries, candidates in ((image, text), (text, image)):
        for i in pairs:
            friends = [j for j in pairs if positive(i, j, image_ids, caption_ids)]
            targets = friends if duplicates == "positive" else [i]
            left = [j for j in pairs if duplicates != "ignore" or j == i or j not in friends]
            logits = {j: scale * queries[i].dot(candidates[j]) for j in left}
            log_sum = torch.stack([logits[j] for j in left]).exp().sum().log()
            for j in targets:
                total = total - (logits[j] - log_sum) / len(targets)
    return total / (2 * len(image))


def sigmoid_by_loops(
    image: Tensor,
    text: Tensor,
    scale: Tensor,
    bias: Tensor,
    image_ids: list[int],
    caption_ids: list[int],
    duplicates: str,
) -> Tensor:
    total = torch.zeros((), dtype=image.dtype)
    for i in range(len(image)):
        for j in range(len(text)):
            friend = i != j and positive(i, j, image_ids, caption_ids)
            if friend and duplicates == "ignore":
                continue
            sign = 1 if i == j or (friend and duplicates == "positive") else -1
            total = total - F.logsigmoid(sign * (scale * image[i].dot(text[j]) + bias))
    return total / len(image)
