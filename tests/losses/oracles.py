"""Every loss by its definition, pair by pair: `NAME_by_loops` for each row of the table of losses.

Each takes `image`, `text` and, by keyword, what the row says the loss needs and its options; ids are lists.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

IMAGE_IDS = [0, 1, 2, 0, 4, 5, 1, 7, 0]
CAPTION_IDS = [0, 1, 2, 3, 1, 5, 6, 7, 3]
DUPLICATES = ("positive", "ignore", "negative")


def features(pairs: int, width: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Return random unit vectors of images and texts, as leaves with gradients."""
    generator = torch.Generator().manual_seed(seed)
    image, text = (F.normalize(torch.randn(pairs, width, generator=generator, dtype=dtype), dim=-1) for _ in range(2))
    return image.requires_grad_(), text.requires_grad_()


def related(i: int, j: int, image_ids: list[int], caption_ids: list[int]) -> bool:
    return image_ids[i] == image_ids[j] or caption_ids[i] == caption_ids[j]


def related_to(i: int, image_ids: list[int], caption_ids: list[int]) -> list[int]:
    return [j for j in range(len(image_ids)) if related(i, j, image_ids, caption_ids)]


def infonce_by_loops(
    image: Tensor,
    text: Tensor,
    *,
    scale: Tensor,
    image_ids: list[int],
    caption_ids: list[int],
    duplicates: str,
    label_smoothing: float = 0.0,
    negative_text_features: Tensor | None = None,
) -> Tensor:
    pairs = range(len(image))
    total = torch.zeros((), dtype=image.dtype)
    for queries, candidates in ((image, text), (text, image)):
        for i in pairs:
            same = related_to(i, image_ids, caption_ids)
            targets = same if duplicates == "positive" else [i]
            columns = [j for j in pairs if duplicates != "ignore" or j == i or j not in same]
            logits = {j: scale * queries[i].dot(candidates[j]) for j in columns}
            every = list(logits.values())
            if negative_text_features is not None and queries is image:
                every += [scale * image[i].dot(wrong) for wrong in negative_text_features]
            log_sum = torch.stack(every).exp().sum().log()
            for j in targets:
                total = total - (1 - label_smoothing) * (logits[j] - log_sum) / len(targets)
            for j in columns:
                total = total - label_smoothing * (logits[j] - log_sum) / len(columns)
    return total / (2 * len(image))


negclip_by_loops = infonce_by_loops


def sigmoid_by_loops(
    image: Tensor,
    text: Tensor,
    *,
    scale: Tensor,
    bias: Tensor | float,
    image_ids: list[int],
    caption_ids: list[int],
    duplicates: str,
) -> Tensor:
    total = torch.zeros((), dtype=image.dtype)
    for i in range(len(image)):
        for j in range(len(text)):
            duplicate = i != j and related(i, j, image_ids, caption_ids)
            if duplicate and duplicates == "ignore":
                continue
            sign = 1 if i == j or (duplicate and duplicates == "positive") else -1
            total = total - F.logsigmoid(sign * (scale * image[i].dot(text[j]) + bias))
    return total / len(image)


def ntxent_by_loops(
    image: Tensor,
    text: Tensor,
    *,
    scale: Tensor,
    image_ids: list[int],
    caption_ids: list[int],
    duplicates: str = "positive",
    decoupled: bool = False,
) -> Tensor:
    """One anchor after the other over the 2G features; `decoupled` leaves positives out of the denominator."""
    pairs = len(image)
    z = torch.cat([image, text])
    total = torch.zeros((), dtype=image.dtype)
    for anchor in range(2 * pairs):
        i = anchor % pairs
        same = related_to(i, image_ids, caption_ids) if duplicates != "negative" else [i]
        targets = [i] if duplicates != "positive" else same
        positives = [b for j in targets for b in (j, j + pairs) if b != anchor]
        # With "ignore" the duplicates are in no sum; the counterpart stays.
        ignored = [b for j in same if j not in targets for b in (j, j + pairs)]
        others = [
            b for b in range(2 * pairs) if b != anchor and b not in ignored and not (decoupled and b in positives)
        ]
        if decoupled and not others:
            continue
        denominator = torch.stack([(scale * z[anchor].dot(z[b])).exp() for b in others]).sum().log()
        for b in positives:
            total = total + (denominator - scale * z[anchor].dot(z[b])) / len(positives)
    return total / (2 * pairs)


supcon_by_loops = ntxent_by_loops


def dcl_by_loops(
    image: Tensor, text: Tensor, *, scale: Tensor, image_ids: list[int], caption_ids: list[int], duplicates: str
) -> Tensor:
    ids = {"image_ids": image_ids, "caption_ids": caption_ids}
    return ntxent_by_loops(image, text, scale=scale, **ids, duplicates=duplicates, decoupled=True)


def triplet_by_loops(
    image: Tensor,
    text: Tensor,
    *,
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
    for queries, candidates in ((image, text), (text, image)):
        for i in range(pairs):
            same = related_to(i, image_ids, caption_ids)
            positives = same if duplicates == "positive" else [i]
            negatives = [j for j in range(pairs) if j != i and (duplicates == "negative" or j not in same)]
            if not negatives:
                continue
            d = [apart(queries[i], candidates[j]) for j in range(pairs)]
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
    image: Tensor, text: Tensor, *, margin: float, image_ids: list[int], caption_ids: list[int], duplicates: str
) -> Tensor:
    near, far = [], []
    for i in range(len(image)):
        for j in range(len(image)):
            d = 1 - image[i].dot(text[j])
            same = related(i, j, image_ids, caption_ids)
            if i == j or (same and duplicates == "positive"):
                near.append(d**2)
            elif not same or duplicates == "negative":
                far.append((margin - d).clamp(min=0) ** 2)
    return (torch.stack(near).mean() + torch.stack(far).mean()) / 2


def cross_consistency_by_loops(image: Tensor, text: Tensor) -> Tensor:
    pairs = range(len(image))
    differences = [image[i].dot(text[j]) - image[j].dot(text[i]) for i in pairs for j in pairs]
    return torch.stack(differences).square().sum() / len(image)


def within_consistency_by_loops(image: Tensor, text: Tensor) -> Tensor:
    pairs = range(len(image))
    differences = [image[i].dot(image[j]) - text[i].dot(text[j]) for i in pairs for j in pairs]
    return torch.stack(differences).square().sum() / len(image)


def distillation_by_loops(
    image: Tensor,
    text: Tensor,
    *,
    scale: Tensor,
    teacher_image_features: Tensor,
    teacher_text_features: Tensor,
    teacher_scale: float,
) -> Tensor:
    pairs = range(len(image))
    teacher_image, teacher_text = teacher_image_features, teacher_text_features
    total = torch.zeros((), dtype=image.dtype)
    for a, b, ta, tb in ((image, text, teacher_image, teacher_text), (text, image, teacher_text, teacher_image)):
        for i in pairs:
            student = torch.stack([(scale * a[i].dot(b[j])).exp() for j in pairs])
            target = torch.stack([(teacher_scale * ta[i].dot(tb[j])).exp() for j in pairs])
            for j in pairs:
                total = total - target[j] / target.sum() * (student[j] / student.sum()).log()
    return total / (2 * len(image))
