import numpy as np
import torch
from sklearn.neighbors import KNeighborsClassifier

from clipkit.metrics import knn_scores


def test_votes_equal_scikit_learn() -> None:
    train, queries = (torch.nn.functional.normalize(torch.randn(n, 6), dim=-1) for n in (80, 30))
    labels = torch.randint(0, 4, (80,))

    def weights(distances: np.ndarray) -> np.ndarray:
        return np.exp((1 - distances) / 0.07)

    theirs = KNeighborsClassifier(n_neighbors=20, metric="cosine", algorithm="brute", weights=weights)
    expected = theirs.fit(train.double().numpy(), labels.numpy()).predict_proba(queries.double().numpy())
    votes = knn_scores(queries.double(), train.double(), labels, 4).float()
    np.testing.assert_allclose(votes / votes.sum(dim=1, keepdim=True), expected, atol=1e-5)


def test_fewer_images_than_neighbors() -> None:
    votes = knn_scores(torch.eye(2), torch.eye(2), torch.tensor([1, 0]), classes=3, k=20)
    assert votes.argmax(dim=1).tolist() == [1, 0]
    assert votes[:, 2].tolist() == [0, 0]
