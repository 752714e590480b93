import numpy as np
import pytest

from clipkit.metrics import cluster_bootstrap, interval


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
