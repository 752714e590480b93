"""Search for hard negatives, and grouping of similar images into the same batch (`data.hard_negatives`)."""

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

_BAND = 1024


def hard_neighbors(
    image_features: Float[Tensor, "N D"],
    text_features: Float[Tensor, "M D"],
    image_of_caption: Int[np.ndarray, " M"],
    count: int,
    margin: float,
) -> Int[np.ndarray, "N K"]:
    r"""Return the K hardest negatives of each image, hardest first.

    Let x_i be the feature of image i, and y_i the L2-normalized mean of the features of its captions. The hardness of
    image j for image i is (x_i · y_j + x_j · y_i) / 2. Image j is excluded if x_i · y_j or x_j · y_i exceeds
    x_i · y_i − margin, because j is then probably a false negative (TopK-MarginPos in Moreira et al. 2024,
    NV-Retriever, section 3).

    Args:
        image_features: L2-normalized image features.
        text_features: L2-normalized caption features.
        image_of_caption: for each caption, the position of its image.
        count: K, limited to N − 1.
        margin: smallest allowed difference between the similarities of the positive and a hard negative.

    Returns:
        Positions of images. A row with fewer than K hard negatives is filled with −1 at the end. Ties are in ascending
        order of position.

    Example:
        >>> x = torch.nn.functional.normalize(torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]]), dim=1)
        >>> hard_neighbors(x, x, np.arange(3), 2, 0.1).tolist()
        [[1, 2], [0, 2], [1, 0]]
    """
    count = min(count, len(image_features) - 1)
    texts = torch.zeros_like(image_features).index_add_(0, torch.from_numpy(image_of_caption), text_features)
    texts = torch.nn.functional.normalize(texts, dim=-1)
    own = torch.linalg.vecdot(image_features, texts)
    found = np.empty((len(image_features), count), np.int64)
    for start in range(0, len(image_features), _BAND):
        band = slice(start, start + _BAND)
        to_texts, to_images = image_features[band] @ texts.T, texts[band] @ image_features.T
        most = own[band, None] - margin
        hardness = (to_texts + to_images) / 2
        hardness[(to_texts > most) | (to_images > most)] = -torch.inf
        hardness[torch.arange(len(hardness)), torch.arange(start, start + len(hardness))] = -torch.inf
        values, positions = hardness.sort(dim=1, descending=True, stable=True)
        found[band] = positions[:, :count].masked_fill(values[:, :count].isneginf(), -1).numpy()
    return found


def grouped(
    order: Int[np.ndarray, " N"],
    neighbors: Int[np.ndarray, "N K"],
    size: int,
    generator: np.random.Generator,
) -> Int[np.ndarray, " N"]:
    """Reorder images so that an image and its hard negatives are adjacent.

    The images are visited in the given order. An image without a group starts a group, and its hardest negatives
    without a group join until the group is full. At the end, the groups are shuffled.

    Args:
        order: positions of the N images.
        neighbors: result of `hard_neighbors`.
        size: maximum number of images in a group.
        generator: random generator.

    Example:
        >>> neighbors = np.array([[2], [3], [0], [1]])
        >>> grouped(np.arange(4), neighbors, 2, np.random.default_rng(0)).tolist()
        [0, 2, 1, 3]
    """
    is_left = np.ones(len(neighbors), bool)
    groups: list[list[int]] = []
    for first in order.tolist():
        if not is_left[first]:
            continue
        is_left[first] = False
        group = [first]
        for neighbor in neighbors[first].tolist():
            if len(group) < size and neighbor >= 0 and is_left[neighbor]:
                is_left[neighbor] = False
                group.append(neighbor)
        groups.append(group)
    return np.array([image for index in generator.permutation(len(groups)) for image in groups[index]], np.int64)
