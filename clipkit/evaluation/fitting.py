"""Classifiers on frozen features: logistic regression and k-nearest neighbors."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor
from tqdm.auto import tqdm

from clipkit.metrics import LinearClassifier, knn_scores, logistic_regression, true_label_ranks

# Weight decays to try, from strong to weak; each fit starts from the previous one. Then half and quarter decades around
# the best one are tried.
_DECADES = tuple(10.0**power for power in range(2, -7, -1))


@dataclass(frozen=True)
class Fit:
    """Class scores of the N test images by a linear classifier and by k-nearest neighbors."""

    linear: Float[Tensor, "N C"]
    neighbors: Float[Tensor, "N C"]
    weight_decay: float
    size: int
    """Number of images on which the classifiers were fitted."""


def fit(
    x: Float[Tensor, "T D"],
    labels: NDArray[np.int64],
    split: tuple[NDArray[np.bool_], NDArray[np.bool_]],
    measured: Float[Tensor, "N D"],
    classes: int,
    refit: bool,
    neighbors: int,
    device: torch.device,
    progress: bool,
) -> Fit:
    """Choose the weight decay on validation images, fit the classifiers, and score the test images.

    Args:
        x: features of labeled images.
        labels: class of each labeled image.
        split: masks of the training images and of the validation images among the labeled images.
        measured: features of the test images.
        classes: number of classes.
        refit: True: the final fit uses all labeled images. False: it uses only the training images.
        neighbors: number of nearest neighbors.
        device: device of the computation.
        progress: show a progress bar on the terminal.
    """
    x, y, measured = x.to(device), torch.from_numpy(labels).to(device), measured.to(device)
    learned, validation = (torch.from_numpy(rows).to(device) for rows in split)
    weight_decay = _best_weight_decay(x[learned], y[learned], x[validation], y[validation], classes, progress)
    if not refit:
        x, y = x[learned], y[learned]
    linear = logistic_regression(x, y, classes, weight_decay)(measured)
    votes = knn_scores(measured, x, y, classes, neighbors)
    return Fit(linear.cpu(), votes.cpu(), weight_decay, len(y))


def _best_weight_decay(
    x: Float[Tensor, "T D"],
    y: Int[Tensor, " T"],
    validation: Float[Tensor, "V D"],
    labels: Int[Tensor, " V"],
    classes: int,
    progress: bool,
) -> float:
    """Return the weight decay with the highest validation accuracy. Ties go to the smaller cross entropy."""
    tried: dict[float, tuple[float, float]] = {}
    previous: LinearClassifier | None = None
    bar = tqdm(total=len(_DECADES) + 4, desc="weight decays", disable=None if progress else True, leave=False)

    def measure(weight_decay: float) -> None:
        nonlocal previous
        previous = logistic_regression(x, y, classes, weight_decay, previous)
        logits = previous(validation)
        accuracy = (true_label_ranks(logits, labels) == 1).double().mean().item()
        tried[weight_decay] = (accuracy, -torch.nn.functional.cross_entropy(logits, labels).item())
        bar.update()

    with bar:
        for weight_decay in _DECADES:
            measure(weight_decay)
        for step in (10**0.5, 10**0.25):
            best = max(tried, key=tried.__getitem__)
            measure(best * step)
            measure(best / step)
    return max(tried, key=tried.__getitem__)
