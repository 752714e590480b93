import numpy as np
import pytest

from clipkit.metrics import cluster_bootstrap, cluster_bootstrap_median, interval, resampled


def test_equals_resampling_by_hand() -> None:
    hits = np.array([1.0, 0.0, 1.0, 1.0, 0.0])
    images = np.array([0, 0, 1, 2, 2])
    draws = cluster_bootstrap(hits, images, draws=4000)
    generator = np.random.default_rng(7)
    by_hand = []
    for _ in range(4000):
        chosen = generator.integers(0, 3, 3)
        by_hand.append(np.concatenate([hits[images == image] for image in chosen]).mean())
    assert draws.mean() == pytest.approx(np.mean(by_hand), abs=0.01)
    assert draws.std() == pytest.approx(np.std(by_hand), abs=0.01)


def test_an_interval_holds_the_truth_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    held = 0
    for _ in range(200):
        hits = (generator.random(300) < 0.3).astype(float)
        low, high = interval(cluster_bootstrap(hits, np.arange(300)))
        held += low <= 0.3 <= high
    assert 180 <= held <= 199


def test_clusters_widen_the_interval() -> None:
    hits = np.repeat((np.random.default_rng(0).random(100) < 0.5).astype(float), 5)
    alone = interval(cluster_bootstrap(hits, np.arange(500)))
    together = interval(cluster_bootstrap(hits, np.repeat(np.arange(100), 5)))
    assert together[1] - together[0] > 1.8 * (alone[1] - alone[0])


def test_strata_are_drawn_each_in_itself() -> None:
    hits, strata = np.array([1.0, 1.0, 0.0, 0.0]), np.array([0, 0, 1, 1])
    # Within a stratum all values are equal, so there is nothing to vary.
    assert cluster_bootstrap(hits, np.arange(4), strata).std() == 0


def test_the_seed_decides_the_draws() -> None:
    hits, images = np.random.default_rng(0).random(50), np.arange(50)
    np.testing.assert_array_equal(cluster_bootstrap(hits, images), cluster_bootstrap(hits, images))
    assert (cluster_bootstrap(hits, images, seed=1) != cluster_bootstrap(hits, images)).any()


def test_several_figures_share_the_draws() -> None:
    generator = np.random.default_rng(0)
    values, images = generator.random((60, 3)), np.repeat(np.arange(20), 3)
    together = cluster_bootstrap(values, images)
    assert together.shape == (1000, 3)
    for column in range(3):
        np.testing.assert_allclose(together[:, column], cluster_bootstrap(values[:, column], images), rtol=1e-12)


def test_clusters_without_a_query_are_drawn_too() -> None:
    hits = np.array([1.0, 0.0, 1.0, 0.0])
    some = cluster_bootstrap(hits, np.array([0, 1, 4, 5]), among=6, draws=4000)
    generator = np.random.default_rng(7)
    by_hand = []
    for _ in range(4000):
        drawn = [dict(zip((0, 1, 4, 5), hits, strict=True)).get(int(image)) for image in generator.integers(0, 6, 6)]
        by_hand.append(np.mean([hit for hit in drawn if hit is not None] or [0.5]))
    assert np.nanstd(some) == pytest.approx(np.std(by_hand), abs=0.01)


def test_medians_equal_resampling_by_hand() -> None:
    generator = np.random.default_rng(0)
    ranks, images = generator.integers(1, 40, 50), np.repeat(np.arange(25), 2)
    by_hand = []
    for block in resampled(25, draws=50):
        for times in block:
            drawn = np.sort(np.repeat(ranks, times[images].astype(int)))
            by_hand.append(np.floor(np.median(drawn)))
    np.testing.assert_array_equal(cluster_bootstrap_median(ranks, images, draws=50), by_hand)


def test_a_resampled_set_has_as_many_clusters_as_there_are() -> None:
    drawn = np.concatenate(list(resampled(7, draws=500)))
    assert drawn.shape == (500, 7)
    assert (drawn.sum(axis=1) == 7).all()
    assert drawn.mean(axis=0) == pytest.approx(np.ones(7), abs=0.15)
    # (1 − 1/7)^7 of the times a cluster is not drawn at all.
    assert (drawn == 0).mean() == pytest.approx((6 / 7) ** 7, abs=0.02)


def test_recall_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """A known recall, five captions an image that succeed or fail together: 200 repetitions."""
    generator = np.random.default_rng(0)
    held = 0
    for repetition in range(200):
        ease = generator.beta(2, 3, 120)  # mean 0.4
        hits = (generator.random((120, 5)) < ease[:, None]).astype(float).ravel()
        low, high = interval(cluster_bootstrap(hits, np.repeat(np.arange(120), 5), seed=repetition))
        held += low <= 0.4 <= high
    assert 182 <= held <= 198
