import numpy as np
import pytest

from undoor.mixtures.partitions import hierarchy, small_clusters


def test_merging_follows_the_likelihood():
    """Against a plain computation: at each step every pair is tried, from the covariances of all rows."""
    generator = np.random.default_rng(0)
    rows = generator.normal(size=(80, 3)) * [1, 2, 0.5]
    labels = generator.integers(0, 7, 80)
    partitions = hierarchy(rows, labels, np.full(3, 1e-3))
    assert sorted(partitions) == list(range(1, 8))

    def cost(labels):
        parts = [rows[labels == part] for part in np.unique(labels)]
        return sum(len(x) * np.linalg.slogdet(np.cov(x.T, bias=True) + 1e-3 * np.eye(3))[1] for x in parts)

    for k in range(7, 1, -1):
        now = partitions[k]
        tried = [np.where(now == b, a, now) for a in range(k) for b in range(a + 1, k)]
        assert cost(partitions[k - 1]) == pytest.approx(min(map(cost, tried)), rel=1e-9)
        assert len(np.unique(partitions[k - 1])) == k - 1


def test_small_clusters_are_numbered_without_gaps():
    """Only three rows are distinct, so that k-means finds three of the seven clusters it is asked for."""
    rows = np.repeat(np.eye(3, dtype=np.float32), 10, axis=0)
    labels = small_clusters(rows, 7, 0)
    assert sorted(np.bincount(labels)) == [10, 10, 10]
