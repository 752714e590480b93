"""Classification by k-nearest neighbors."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from clipkit.metrics.arrays import takes_arrays
from clipkit.metrics.order import first_columns

_ROWS = 1024  # number of images that are classified at once


@takes_arrays
def knn_scores(
    features: Float[Tensor, "N D"],
    train_features: Float[Tensor, "T D"],
    train_labels: Int[Tensor, " T"],
    classes: int,
    k: int = 20,
    temperature: float = 0.07,
) -> Float[Tensor, "N C"]:
    """Return a score of each class for each image by k-nearest neighbors (Wu et al. 2018, section 3.4).

    The score is the sum of exp(cosine / temperature) over those of the k nearest training images that belong to the
    class. All scores of an image are divided by the largest term.

    Args:
        features: features of N images to classify, unit length.
        train_features: features of T training images, unit length.
        train_labels: class of each training image.
        classes: number of classes C.
        k: number of neighbors, at most T; ties go to the lower index.
        temperature: at a lower temperature, the nearest of the k neighbors have more weight.

    Example:
        >>> knn_scores(torch.eye(2), torch.eye(2), torch.tensor([1, 0]), classes=2, k=1).argmax(dim=1).tolist()
        [1, 0]
    """
    votes = []
    for start in range(0, len(features), _ROWS):
        nearest, index = first_columns((features[start : start + _ROWS] @ train_features.T).float(), k)
        weight = ((nearest - nearest[:, :1]) / temperature).exp()
        votes.append(weight.new_zeros(len(weight), classes).scatter_add(1, train_labels[index], weight))
    return torch.cat(votes)
