"""Linear classification of fixed features."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from clipkit.metrics.arrays import takes_arrays


@dataclass(frozen=True)
class LinearClassifier:
    """Linear classifier with the logits features @ weight.T + bias."""

    weight: Float[Tensor, "C D"]
    bias: Float[Tensor, " C"]

    def __call__(self, features: Float[Tensor, "N D"]) -> Float[Tensor, "N C"]:
        """Return the logits of C classes for N feature vectors."""
        return features @ self.weight.T + self.bias


@takes_arrays
def logistic_regression(
    features: Float[Tensor, "N D"],
    labels: Int[Tensor, " N"],
    classes: int,
    weight_decay: float,
    start: LinearClassifier | None = None,
    *,
    iterations: int = 1000,
) -> LinearClassifier:
    """Train a linear classifier by L-BFGS, on the device of the features.

    The loss is mean cross-entropy + weight_decay / 2 · ‖weight‖². The solution is that of scikit-learn's
    `LogisticRegression(C=1 / (weight_decay · N))`.

    Args:
        features: N feature vectors.
        labels: class of each feature vector, from 0 to C − 1.
        classes: number of classes C.
        weight_decay: weight of the penalty, at least 0. The bias has no penalty.
        start: starting point, e.g. the solution for a similar weight decay. None: zeros.
        iterations: maximum number of iterations.

    Example:
        >>> logistic_regression(torch.eye(2), torch.tensor([1, 0]), 2, 1e-2)(torch.eye(2)).argmax(dim=1).tolist()
        [1, 0]
    """
    weight = features.new_zeros(classes, features.shape[1]) if start is None else start.weight.clone()
    bias = features.new_zeros(classes) if start is None else start.bias.clone()
    weight.requires_grad_(True)
    bias.requires_grad_(True)
    optimizer = torch.optim.LBFGS(
        [weight, bias],
        max_iter=iterations,
        max_eval=2 * iterations,
        history_size=10,
        tolerance_grad=1e-6,
        tolerance_change=1e-10,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(features @ weight.T + bias, labels) + weight_decay / 2 * weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return LinearClassifier(weight.detach(), bias.detach())
