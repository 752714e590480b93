"""Agreement of clusters with classes, beside scikit-learn; k-means, beside its definition."""

import numpy as np
import pytest
import torch
from sklearn import metrics
from sklearn.cluster import KMeans

from clipkit.metrics import cluster_agreement, kmeans


@pytest.mark.parametrize("seed", range(4))
def test_agreement_is_that_of_scikit_learn(seed: int) -> None:
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 6, 70)
    cluster = np.where(generator.random(70) < 0.3 * seed, labels + 3, generator.integers(0, 5, 70))
    ours = cluster_agreement(cluster, labels)
    assert ours["nmi"] == pytest.approx(metrics.normalized_mutual_info_score(labels, cluster), abs=1e-9)
    assert ours["nmi"] == pytest.approx(metrics.v_measure_score(labels, cluster), abs=1e-9)
    assert ours["ami"] == pytest.approx(metrics.adjusted_mutual_info_score(labels, cluster), abs=1e-9)
    assert ours["ari"] == pytest.approx(metrics.adjusted_rand_score(labels, cluster), abs=1e-9)


def test_ari_is_that_of_all_pairs() -> None:
    cluster, labels = torch.randint(0, 3, (20,)), torch.randint(0, 4, (20,))
    same = [(bool(cluster[i] == cluster[j]), bool(labels[i] == labels[j])) for i in range(20) for j in range(i)]
    both, one, other = (sum(map(pick, same)) for pick in (all, lambda pair: pair[0], lambda pair: pair[1]))
    by_chance = one * other / len(same)
    expected = (both - by_chance) / ((one + other) / 2 - by_chance)
    assert cluster_agreement(cluster, labels)["ari"] == pytest.approx(expected)


def test_trivial_clusters_have_defined_values() -> None:
    labels = torch.tensor([0, 0, 1, 1])
    for cluster in ([0, 0, 0, 0], [0, 1, 2, 3]):
        expected = metrics.adjusted_mutual_info_score(labels, cluster)
        assert cluster_agreement(torch.tensor(cluster), labels)["ami"] == pytest.approx(expected)
    assert cluster_agreement(labels, 1 - labels) == {"nmi": pytest.approx(1), "ami": pytest.approx(1), "ari": 1}


def test_clusters_are_a_fixed_point_and_as_tight_as_those_of_scikit_learn() -> None:
    features = torch.randn(120, 5) + 4 * torch.randn(6, 5)[torch.arange(120) % 6]
    found = [kmeans(features, 6, seed=seed) for seed in range(5)]
    tightness = []
    for cluster in found:
        centers = torch.stack([features[cluster == k].mean(dim=0) for k in range(6)])
        distances = torch.cdist(features, centers)
        assert torch.equal(distances.argmin(dim=1), cluster)
        tightness.append(float(distances.min(dim=1).values.square().sum()))
    theirs = KMeans(6, n_init=5, random_state=0).fit(features.numpy())
    assert min(tightness) <= 1.02 * theirs.inertia_
    assert torch.equal(kmeans(features, 6, seed=1), found[1])


def test_equal_rows_leave_clusters_empty() -> None:
    assert len(kmeans(torch.ones(5, 2), 3).unique()) == 1
