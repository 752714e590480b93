import numpy as np
import pytest

from clipkit.metrics import cluster_bootstrap, cluster_bootstrap_median, interval, resampled


def test_means_equal_naive_resampling() -> None:
    hits = np.array([1.0, 0.0, 1.0, 1.0, 0.0])
    images = np.array([0, 0, 1, 2, 2])
    draws = cluster_bootstrap(hits, images, draws=4000)
    generator = np.random.default_rng(7)
    naive = []
    for _ in range(4000):
        chosen = generator.integers(0, 3, 3)
        naive.append(np.concatenate([hits[images == image] for image in chosen]).mean())
    assert draws.mean() == pytest.approx(np.mean(naive), abs=0.01)
    assert draws.std() == pytest.approx(np.std(naive), abs=0.01)


def test_interval_covers_the_true_mean_in_95_percent() -> None:
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        hits = (generator.random(300) < 0.3).astype(float)
        low, high = interval(cluster_bootstrap(hits, np.arange(300)))
        covered += low <= 0.3 <= high
    assert 180 <= covered <= 199


def test_clusters_widen_the_interval() -> None:
    hits = np.repeat((np.random.default_rng(0).random(100) < 0.5).astype(float), 5)
    alone = interval(cluster_bootstrap(hits, np.arange(500)))
    together = interval(cluster_bootstrap(hits, np.repeat(np.arange(100), 5)))
    assert together[1] - together[0] > 1.8 * (alone[1] - alone[0])


def test_strata_are_resampled_separately() -> None:
    hits, strata = np.array([1.0, 1.0, 0.0, 0.0]), np.array([0, 0, 1, 1])
    # All values within a stratum are equal, so its mean is constant.
    assert cluster_bootstrap(hits, np.arange(4), strata).std() == 0


def test_same_seed_gives_same_draws() -> None:
    hits, images = np.random.default_rng(0).random(50), np.arange(50)
    np.testing.assert_array_equal(cluster_bootstrap(hits, images), cluster_bootstrap(hits, images))
    assert (cluster_bootstrap(hits, images, seed=1) != cluster_bootstrap(hits, images)).any()


def test_columns_share_the_draws() -> None:
    generator = np.random.default_rng(0)
    values, images = generator.random((60, 3)), np.repeat(np.arange(20), 3)
    together = cluster_bootstrap(values, images)
    assert together.shape == (1000, 3)
    for column in range(3):
        np.testing.assert_allclose(together[:, column], cluster_bootstrap(values[:, column], images), rtol=1e-12)


def test_clusters_without_queries_are_drawn_too() -> None:
    hits = np.array([1.0, 0.0, 1.0, 0.0])
    some = cluster_bootstrap(hits, np.array([0, 1, 4, 5]), among=6, draws=4000)
    generator = np.random.default_rng(7)
    naive = []
    for _ in range(4000):
        drawn = [dict(zip((0, 1, 4, 5), hits, strict=True)).get(int(image)) for image in generator.integers(0, 6, 6)]
        naive.append(np.mean([hit for hit in drawn if hit is not None] or [0.5]))
    assert np.nanstd(some) == pytest.approx(np.std(naive), abs=0.01)


def test_medians_equal_naive_resampling() -> None:
    generator = np.random.default_rng(0)
    ranks, images = generator.integers(1, 40, 50), np.repeat(np.arange(25), 2)
    naive = []
    for block in resampled(25, draws=50):
        for times in block:
            drawn = np.sort(np.repeat(ranks, times[images].astype(int)))
            naive.append(np.floor(np.median(drawn)))
    np.testing.assert_array_equal(cluster_bootstrap_median(ranks, images, draws=50), naive)


def test_each_draw_has_as_many_clusters_as_there_are() -> None:
    drawn = np.concatenate(list(resampled(7, draws=500)))
    assert drawn.shape == (500, 7)
    assert (drawn.sum(axis=1) == 7).all()
    assert drawn.mean(axis=0) == pytest.approx(np.ones(7), abs=0.15)
    # A cluster is not drawn at all with probability (1 − 1/7)^7.
    assert (drawn == 0).mean() == pytest.approx((6 / 7) ** 7, abs=0.02)


def test_recall_interval_covers_the_true_recall_with_correlated_captions() -> None:
    """200 repetitions with a known recall, where the five captions of an image tend to succeed or fail together."""
    generator = np.random.default_rng(0)
    covered = 0
    for repetition in range(200):
        difficulty = generator.beta(2, 3, 120)  # mean 0.4
        hits = (generator.random((120, 5)) < difficulty[:, None]).astype(float).ravel()
        low, high = interval(cluster_bootstrap(hits, np.repeat(np.arange(120), 5), seed=repetition))
        covered += low <= 0.4 <= high
    assert 182 <= covered <= 198
