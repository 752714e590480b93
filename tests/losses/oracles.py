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


def friends_of(i: int, pairs: int, image_ids: list[int], caption_ids: list[int]) -> list[int]:
    return [j for j in range(pairs) if positive(i, j, image_ids, caption_ids)]


def joint_by_loops(
    image: Tensor,
    text: Tensor,
    scale: Tensor,
    image_ids: list[int],
    caption_ids: list[int],
    duplicates: str,
    decoupled: bool,
) -> Tensor:
    """NT-Xent, supervised and decoupled contrastive loss over the 2G features, one anchor after the other."""
    pairs = len(image)
    z = torch.cat([image, text])
    total = torch.zeros((), dtype=image.dtype)
    for anchor in range(2 * pairs):
        i = anchor % pairs
        friends = friends_of(i, pairs, image_ids, caption_ids) if duplicates != "negative" else [i]
        own = [i] if duplicates != "positive" else friends
        positives = [b for j in own for b in (j, j + pairs) if b != anchor]
        # With "ignore" the friends are in no sum; the counterpart stays.
        gone = [b for j in friends if j not in own for b in (j, j + pairs)]
        others = [b for b in range(2 * pairs) if b != anchor and b not in gone and not (decoupled and b in positives)]
        if decoupled and not others:
            continue
        denominator = torch.stack([(scale * z[anchor].dot(z[b])).exp() for b in others]).sum().log()
        for b in positives:
            total = total + (denominator - scale * z[anchor].dot(z[b])) / len(positives)
    return total / (2 * pairs)


def triplet_by_loops(
    image: Tensor,
    text: Tensor,
    margin: float,
    mining: str,
    distance: str,
    image_ids: list[int],
    caption_ids: list[int],
    duplicates: str,
) -> Tensor:
    pairs = len(image)

    def apart(x: Tensor, y: Tensor) -> Tensor:
        return 1 - x.dot(y) if distance == "cosine" else (x - y).norm()

    terms = []
    for asking, others in ((image, text), (text, image)):
        for i in range(pairs):
            friends = friends_of(i, pairs, image_ids, caption_ids)
            positives = friends if duplicates == "positive" else [i]
            negatives = [j for j in range(pairs) if j != i and (duplicates == "negative" or j not in friends)]
            if not negatives:
                continue
            d = [apart(asking[i], others[j]) for j in range(pairs)]
            if mining == "hard":
                hinge = margin + max(d[p] for p in positives) - min(d[n] for n in negatives)
                terms.append(hinge.clamp(min=0))
                continue
            for p in positives:
                for n in negatives:
                    if margin + d[p] - d[n] > 0 and (mining == "all" or d[n] > d[p]):
                        terms.append(margin + d[p] - d[n])
    return torch.stack(terms).mean() if terms else torch.zeros((), dtype=image.dtype)


def contrastive_by_loops(
    image: Tensor, text: Tensor, margin: float, image_ids: list[int], caption_ids: list[int], duplicates: str
) -> Tensor:
    near, far = [], []
    for i in range(len(image)):
        for j in range(len(image)):
            d = 1 - image[i].dot(text[j])
            friend = positive(i, j, image_ids, caption_ids)
            if i == j or (friend and duplicates == "positive"):
                near.append(d**2)
            elif not friend or duplicates == "negative":
                far.append((margin - d).clamp(min=0) ** 2)
    return (torch.stack(near).mean() + torch.stack(far).mean()) / 2


def consistency_by_loops(image: Tensor, text: Tensor, within: bool) -> Tensor:
    total = torch.zeros((), dtype=image.dtype)
    for i in range(len(image)):
        for j in range(len(image)):
            if within:
                total = total + (image[i].dot(image[j]) - text[i].dot(text[j])) ** 2
            else:
                total = total + (image[i].dot(text[j]) - image[j].dot(text[i])) ** 2
    return total / len(image)


def distillation_by_loops(
    image: Tensor, text: Tensor, scale: Tensor, teacher_image: Tensor, teacher_text: Tensor, teacher_scale: float
) -> Tensor:
    pairs = range(len(image))
    total = torch.zeros((), dtype=image.dtype)
    for a, b, ta, tb in ((image, text, teacher_image, teacher_text), (text, image, teacher_text, teacher_image)):
        for i in pairs:
            own = torch.stack([(scale * a[i].dot(b[j])).exp() for j in pairs])
            wanted = torch.stack([(teacher_scale * ta[i].dot(tb[j])).exp() for j in pairs])
            for j in pairs:
                total = total - wanted[j] / wanted.sum() * (own[j] / own.sum()).log()
    return total / (2 * len(image))


def negclip_by_loops(image: Tensor, text: Tensor, wrong: Tensor, scale: Tensor) -> Tensor:
    pairs = range(len(image))
    total = torch.zeros((), dtype=image.dtype)
    for i in pairs:
        own = scale * image[i].dot(text[i])
        texts = [(scale * image[i].dot(one)).exp() for one in (*text, *wrong)]
        images = [(scale * image[j].dot(text[i])).exp() for j in pairs]
        total = total + torch.stack(texts).sum().log() + torch.stack(images).sum().log() - 2 * own
    return total / (2 * len(image))
