import numpy as np
import pytest

from undoor.mixtures.partitions import canonical_order, hierarchy, small_clusters


def test_the_canonical_order_depends_on_the_content_alone():
    rows = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    shuffled = rows[np.random.default_rng(1).permutation(50)]
    assert np.array_equal(rows[canonical_order(rows)], shuffled[canonical_order(shuffled)])


def test_the_canonical_order_does_not_depend_on_the_machine():
    """Neither the byte order of the machine nor the sign of a zero changes it; the first value counts before others."""
    rows = np.array([[2, 0], [1, 9], [-0.0, 5], [0, 4], [258, 0]], dtype=np.float32)
    assert canonical_order(rows).tolist() == [3, 2, 1, 0, 4]
    assert canonical_order(rows.astype(">f4")).tolist() == canonical_order(rows.astype("<f4")).tolist()


def test_merging_follows_the_likelihood():
    """A plain computation tries every pair at each step, from the covariances of all rows."""
    generator = np.random.default_rng(0)
    rows = generator.normal(size=(80, 3)) * [1, 2, 0.5]
    labels = generator.integers(0, 7, 80)
    partitions = hierarchy(rows, labels, np.full(3, 1e-3))
    assert sorted(partitions) == list(range(1, 8))

    def cost(labels):
        parts = [rows[labels == part] for part in np.unique(labels)]
        return sum(len(x) * np.linalg.slogdet(np.cov(x.T, bias=True) + 1e-3 * np.eye(3))[1] for x in parts)

    for k in range(7, 1, -1):
        before = partitions[k]
        tried = [np.where(before == b, a, before) for a in range(k) for b in range(a + 1, k)]
        assert cost(partitions[k - 1]) == pytest.approx(min(map(cost, tried)), rel=1e-9)
        assert len(np.unique(partitions[k - 1])) == k - 1


def test_small_clusters_are_numbered_without_gaps():
    """Only three rows are distinct, so that k-means finds three clusters instead of seven."""
    rows = np.repeat(np.eye(3, dtype=np.float32), 10, axis=0)
    labels = small_clusters(rows, 7, 0)
    assert sorted(np.bincount(labels)) == [10, 10, 10]
