import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from clipkit.metrics import logistic_regression


@pytest.mark.parametrize("weight_decay", [1.0, 1e-2, 1e-4])
def test_equals_scikit_learn(weight_decay: float) -> None:
    labels = torch.randint(0, 4, (90,))
    features = torch.nn.functional.normalize(torch.randn(90, 12, dtype=torch.float64) + 0.5 * labels[:, None], dim=-1)
    features[:, :4] += 0.3 * torch.nn.functional.one_hot(labels, 4)
    theirs = LogisticRegression(C=1 / (weight_decay * 90), tol=1e-10, max_iter=10_000)
    theirs.fit(features.numpy(), labels.numpy())
    ours = logistic_regression(features, labels, 4, weight_decay)
    np.testing.assert_allclose(ours.weight, theirs.coef_, atol=2e-3 * np.abs(theirs.coef_).max())
    expected = theirs.predict_proba(features.numpy())
    np.testing.assert_allclose(ours(features).softmax(dim=1), expected, atol=1e-3)


def test_warm_start_reaches_the_same_minimum() -> None:
    features, labels = torch.randn(60, 5, dtype=torch.float64), torch.randint(0, 3, (60,))
    other = logistic_regression(features, labels, 3, 1.0)
    again = logistic_regression(features, labels, 3, 1e-2, start=other)
    torch.testing.assert_close(again.weight, logistic_regression(features, labels, 3, 1e-2).weight, atol=1e-4, rtol=0)
    # The starting point is not changed.
    torch.testing.assert_close(other.weight, logistic_regression(features, labels, 3, 1.0).weight)
