import pytest
import scipy.linalg
import torch

from clipkit.metrics.canonical_correlation import PairSums, canonical_correlation


def pairs(images: int = 80, per_image: int = 3, x_width: int = 9, y_width: int = 7):
    common = torch.randn(images, 4, dtype=torch.float64)
    x = common @ torch.randn(4, x_width, dtype=torch.float64) + torch.randn(images, x_width, dtype=torch.float64) + 3
    x_of_y = torch.arange(images).repeat_interleave(per_image)[torch.randperm(images * per_image)]
    y = common[x_of_y] @ torch.randn(4, y_width, dtype=torch.float64) + torch.randn(len(x_of_y), y_width).double() - 5
    return x, y, x_of_y


def dense(x, y, x_of_y, x_ridge, y_ridge):
    """Correlations and projectors of the generalized eigenproblem over the list of all pairs."""
    x = x[x_of_y]
    x, y = (x - x.mean(0)).numpy(), (y - y.mean(0)).numpy()
    n, p, q = len(x), x.shape[1], y.shape[1]
    cxx, cyy, cxy = x.T @ x / n, y.T @ y / n, x.T @ y / n
    left = scipy.linalg.block_diag(0 * cxx, 0 * cyy)
    left[:p, p:], left[p:, :p] = cxy, cxy.T
    right = scipy.linalg.block_diag(
        cxx + x_ridge * cxx.trace() / p * scipy.linalg.block_diag(*[1.0] * p),
        cyy + y_ridge * cyy.trace() / q * scipy.linalg.block_diag(*[1.0] * q),
    )
    values, vectors = scipy.linalg.eigh(left, right)
    order = values.argsort()[::-1][: min(p, q)]
    # Each half of an eigenvector has half of its norm.
    return values[order], vectors[:p, order] * 2**0.5, vectors[p:, order] * 2**0.5


@pytest.mark.parametrize("widths", [(9, 7), (5, 8)])
def test_equals_the_dense_generalized_eigenproblem(widths) -> None:
    x, y, x_of_y = pairs(x_width=widths[0], y_width=widths[1])
    sums = PairSums.zeros(*widths)
    sums.add(x, y, x_of_y)
    found = canonical_correlation(sums, 0.3, 0.7)
    values, x_map, y_map = dense(x, y, x_of_y, 0.3, 0.7)
    torch.testing.assert_close(found.correlations, torch.from_numpy(values.copy()), rtol=0, atol=1e-6)
    # Common sign of each pair of coordinates.
    sign = (found.x_map * torch.from_numpy(x_map)).sum(0).sign()
    torch.testing.assert_close(found.x_map, torch.from_numpy(x_map) * sign, rtol=0, atol=1e-6)
    torch.testing.assert_close(found.y_map, torch.from_numpy(y_map) * sign, rtol=0, atol=1e-6)
    torch.testing.assert_close(found.x_mean, x[x_of_y].mean(0))


def test_blocks_are_features_scaled_to_the_same_total_variance() -> None:
    x, y, x_of_y = pairs()
    x[:, 4:] *= 30
    sums = PairSums.zeros(9, 7)
    sums.add(x, y, x_of_y)
    scale = torch.ones(9, dtype=torch.float64)
    for block in (slice(0, 4), slice(4, 9)):
        scale[block] = x[x_of_y][:, block].var(dim=0, correction=0).sum() ** -0.5
    values, x_map, _ = dense(x * scale, y, x_of_y, 0.3, 0.7)
    found = canonical_correlation(sums, 0.3, 0.7, x_blocks=[4, 5])
    torch.testing.assert_close(found.correlations, torch.from_numpy(values.copy()), rtol=0, atol=1e-6)
    expected = torch.from_numpy(x_map) * scale[:, None]
    torch.testing.assert_close(found.x_map, expected * (found.x_map * expected).sum(0).sign(), rtol=0, atol=1e-6)
    torch.testing.assert_close(found.x_mean, x[x_of_y].mean(0))
    # The unit of a block has no effect, nor does a block of constants.
    x = torch.cat([x[:, :4] * 1e-3, x[:, 4:], torch.full((80, 2), 0.1, dtype=torch.float64)], dim=1)
    sums = PairSums.zeros(11, 7)
    sums.add(x, y, x_of_y)
    again = canonical_correlation(sums, 0.3 * 11 / 9, 0.7, count=7, x_blocks=[4, 5, 2])
    torch.testing.assert_close(again.correlations, found.correlations, rtol=0, atol=1e-9)


@pytest.mark.slow
def test_equals_scikit_learn_without_a_ridge() -> None:
    cross_decomposition = pytest.importorskip("sklearn.cross_decomposition")
    x, y, x_of_y = pairs(x_width=5, y_width=4)
    sums = PairSums.zeros(5, 4)
    sums.add(x, y, x_of_y)
    theirs = cross_decomposition.CCA(n_components=2, scale=False, max_iter=10_000, tol=1e-14)
    a, b = theirs.fit_transform(x[x_of_y].numpy(), y.numpy())
    expected = [scipy.stats.pearsonr(a[:, k], b[:, k]).statistic for k in range(2)]
    found = canonical_correlation(sums, 1e-12, 1e-12, count=2).correlations
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-6)


def test_sums_of_parts_are_those_of_all() -> None:
    x, y, x_of_y = pairs(x_width=700, y_width=530)  # more columns than a block
    whole, streamed = PairSums.zeros(700, 530), PairSums.zeros(700, 530)
    whole.add(x, y, x_of_y)
    for part in torch.arange(len(x)).split(30):
        rows = (x_of_y >= part[0]) & (x_of_y <= part[-1])
        streamed.add(x[part], y[rows], x_of_y[rows] - part[0])
    for one, other in zip(whole.tensors, streamed.tensors, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-9)
    torch.testing.assert_close(whole.xx, x.T @ (x * torch.bincount(x_of_y)[:, None]), rtol=0, atol=1e-9)
    torch.testing.assert_close(whole.yy, y.T @ y, rtol=0, atol=1e-9)
    torch.testing.assert_close(whole.xy, x[x_of_y].T @ y, rtol=0, atol=1e-9)


def test_directions_without_correlation_are_zero() -> None:
    x = torch.randn(50, 6, dtype=torch.float64)
    y = x[:, :2] @ torch.randn(2, 5, dtype=torch.float64)
    sums = PairSums.zeros(6, 5)
    sums.add(x, y, torch.arange(50))
    found = canonical_correlation(sums, 0.1, 0.1)
    assert (found.correlations > 0.1).sum() == 2
    assert not found.correlations[2:].any()
    assert not found.y_map[:, 2:].any()
    assert found.x_map.isfinite().all()


def test_approximate_correlations_are_close_and_draw_no_random_numbers() -> None:
    x, y, x_of_y = pairs(images=300, x_width=120, y_width=90)
    sums = PairSums.zeros(120, 90)
    sums.add(x, y, x_of_y)
    state = torch.get_rng_state()
    found = canonical_correlation(sums, 0.5, 0.5, count=4, approximate=True)
    assert torch.equal(torch.get_rng_state(), state)
    exact = canonical_correlation(sums, 0.5, 0.5, count=4)
    torch.testing.assert_close(found.correlations, exact.correlations, rtol=0, atol=1e-3)
