"""Single-label classification from scores."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def classification(scores: Float[Tensor, "N C"], labels: Int[Tensor, " N"]) -> dict[str, float | None]:
    """acc1, acc5 and mean_per_class_recall (names and definitions of CLIP_benchmark 1.6).

    `acc5` is None with fewer than five classes. `mean_per_class_recall` is the mean over the classes that occur in
    `labels`. Ties go to the lower class index.

    Example:
        >>> classification(torch.eye(3), torch.tensor([0, 1, 1]))["acc1"]
        0.6666666666666666
    """
    ranks = true_label_ranks(scores, labels)
    correct = (ranks == 1).double()
    per_class = [correct[labels == label].mean().item() for label in labels.unique()]
    return {
        "acc1": correct.mean().item(),
        "acc5": (ranks <= 5).double().mean().item() if scores.shape[1] >= 5 else None,
        "mean_per_class_recall": sum(per_class) / len(per_class),
    }


def true_label_ranks(scores: Float[Tensor, "N C"], labels: Int[Tensor, " N"]) -> Int[Tensor, " N"]:
    """Rank of the true class: 1 + strictly higher scores + equal scores at a lower index."""
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    target = labels[:, None]
    true_score = scores.gather(1, target)
    index = torch.arange(scores.shape[1], device=scores.device)
    before = (scores > true_score) | ((scores == true_score) & (index < target))
    return 1 + before.sum(dim=1)
