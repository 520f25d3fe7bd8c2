import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from undoor.errors import UndoorError
from undoor.mixtures.reduction import affordable_dimensions, principal_components, reduce_features
from undoor.mixtures.sweep import MixtureSettings, cluster

ONCE = MixtureSettings(restarts=1, dimensions="few")


def small_cluster(n=1000, count=60, width=512, distance=12.0, groups=3, seed=0):
    """Return a class of groups with unit covariance and a poisoned cluster that lies apart in its own direction."""
    generator = np.random.default_rng(seed)
    centres = generator.normal(size=(groups, width))
    centres *= 6 / np.linalg.norm(centres, axis=1, keepdims=True)
    offset = generator.normal(size=width)
    poisoned = np.arange(n) >= n - count
    rows = generator.normal(size=(n, width)) + centres[generator.integers(0, groups, n)]
    rows[poisoned] += distance * offset / np.linalg.norm(offset)
    order = generator.permutation(n)
    return rows[order].astype(np.float32), poisoned[order]


def isolated(assignments, poisoned):
    """Return the share of the poisons that is in clusters that are at least 90 % poisoned."""
    shares = np.bincount(assignments, poisoned) / np.bincount(assignments)
    return (shares[assignments] >= 0.9)[poisoned].mean()


@pytest.mark.parametrize(("n", "expected"), [(1, 5), (2500, 5), (5000, 8), (50_000, 30)])
def test_the_smallest_cluster_has_one_row_for_each_parameter(n, expected):
    d, rows = affordable_dimensions(n), max(n / 100, 25)
    assert d == expected
    assert d * (d + 3) / 2 <= rows < (d + 1) * (d + 4) / 2


def test_principal_components_are_those_of_scikit_learn():
    rows = np.random.default_rng(0).normal(size=(200, 6)) * [9, 5, 3, 2, 1, 0.1]
    theirs = PCA(4, svd_solver="full").fit_transform(rows)
    assert np.abs(principal_components(rows, 4)) == pytest.approx(np.abs(theirs), abs=1e-9)
    wide = rows[:5]
    theirs = PCA(4, svd_solver="full").fit_transform(wide)
    assert np.abs(principal_components(wide, 4)) == pytest.approx(np.abs(theirs), abs=1e-9)


def test_the_directions_are_those_of_fishers_discriminant():
    """Three groups lie apart in a plane of narrow directions; in the widest directions, they coincide."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 3, 1500)
    rows = generator.normal(size=(1500, 20)) * np.r_[0.1, 0.1, np.full(18, 5.0)]
    rows[:, :2] += np.array([[0, 0], [1, 0], [0, 1]])[labels]
    reduced = reduce_features(rows, 2)
    best = LinearDiscriminantAnalysis(n_components=2).fit_transform(rows, labels)
    unexplained = np.linalg.lstsq(reduced, best - best.mean(axis=0), rcond=None)[1] / (len(rows) * best.var(axis=0))
    assert unexplained.max() < 0.03


def test_a_small_planted_cluster_is_found_where_the_criterion_is_blind():
    features, poisoned = small_cluster()
    clustering = cluster(features, ONCE, 0)
    assert isolated(clustering.assignments, poisoned) >= 0.95
    # Without reduction, a sweep takes minutes. In a tenth of the directions it already returns one component.
    narrow = PCA(52, random_state=0).fit_transform(features).astype(np.float32)
    blind = cluster(narrow, MixtureSettings(restarts=1, max_components=2, dimensions=None), 0)
    assert blind.components == 1


def test_a_cluster_apart_in_a_narrow_direction_is_found():
    """Plain PCA to the same number of dimensions loses the cluster."""
    generator = np.random.default_rng(0)
    spread = 1 / (1 + np.arange(48.0))
    rows = generator.normal(size=(1500, 48)) * spread
    poisoned = np.arange(1500) >= 1440
    rows[poisoned, 40] += 12 * spread[40]
    clustering = cluster(rows.astype(np.float32), ONCE, 0)
    assert isolated(clustering.assignments, poisoned) >= 0.95
    widest = PCA(affordable_dimensions(1500), random_state=0).fit_transform(rows).astype(np.float32)
    assert isolated(cluster(widest, ONCE, 0).assignments, poisoned) == 0


def test_a_small_cluster_is_found_among_fewer_rows_than_features():
    features, poisoned = small_cluster(n=300, count=60, distance=25.0)
    assert isolated(cluster(features, ONCE, 0).assignments, poisoned) >= 0.95


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(("n", "width"), [(1000, 64), (300, 512)])
def test_a_gaussian_class_is_one_cluster(n, width, seed):
    rows = np.random.default_rng(seed).normal(size=(n, width)) / np.sqrt(1 + np.arange(width))
    assert cluster(rows.astype(np.float32), ONCE, seed).components == 1


def test_neither_order_nor_scale_nor_offset_matters():
    features, _ = small_cluster(n=400, count=60, width=100)
    first = cluster(features, ONCE, 0)
    order = np.random.default_rng(1).permutation(len(features))
    shuffled = cluster(features[order], ONCE, 0)
    assert shuffled.criteria == first.criteria
    assert np.array_equal(shuffled.assignments, first.assignments[order])
    for scaled in (1024 * features, features / 1024):
        assert np.array_equal(cluster(scaled, ONCE, 0).assignments, first.assignments)
    moved = reduce_features(features.astype(np.float64) + 100, 5)
    assert np.abs(moved) == pytest.approx(np.abs(reduce_features(features.astype(np.float64), 5)), abs=1e-6)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 19, 25])
@pytest.mark.parametrize("width", [6, 40])
def test_a_few_rows_are_reduced_and_clustered(n, width):
    rows = np.random.default_rng(n).normal(size=(n, width))
    reduced = reduce_features(rows, 5)
    assert reduced.shape == (n, max(min(n - 1, 5), 1))
    assert reduced.mean(axis=0) == pytest.approx(0, abs=1e-9)
    clustering = cluster(rows.astype(np.float32), ONCE, 0)
    assert clustering.assignments.shape == (n,)
    assert np.isfinite(clustering.criteria).all()


def test_constant_features_and_repeated_rows_are_reduced_and_clustered():
    generator = np.random.default_rng(0)
    assert not reduce_features(np.full((50, 40), 7.0), 5).any()
    rows = np.c_[generator.normal(size=(200, 8)), np.full((200, 30), 0.1)]
    expected = np.abs(reduce_features(rows[:, :8], 5))
    assert np.abs(reduce_features(rows, 5)) == pytest.approx(expected, abs=1e-6)
    assert reduce_features(rows, 20).shape == (200, 8)
    repeated = np.repeat(generator.normal(size=(3, 40)), 30, axis=0).astype(np.float32)
    clustering = cluster(repeated, ONCE, 0)
    assert clustering.components == len(np.unique(clustering.assignments)) <= 3
    assert np.isfinite(clustering.criteria).all()
    assert cluster(np.ones((50, 40), np.float32), ONCE, 0).components == 1


def test_a_reduction_to_no_dimension_is_refused():
    with pytest.raises(UndoorError, match="give 1 or more"):
        cluster(np.eye(8, dtype=np.float32), MixtureSettings(dimensions=0), 0)


def test_without_dimensions_the_features_stay_as_they_are():
    features, _ = small_cluster(n=200, count=50, width=12)
    rows = features.astype(np.float64)
    unreduced = cluster(features, MixtureSettings(restarts=1, max_components=1, dimensions=None), 0)
    covariance = np.cov(rows.T, bias=True) + 1e-3 * np.eye(12)
    centred = rows - rows.mean(axis=0)
    distances = np.einsum("ij,ij->", centred, np.linalg.solve(covariance, centred.T).T)
    likelihood = -(200 * np.linalg.slogdet(2 * np.pi * covariance)[1] + distances) / 2
    assert unreduced.criteria[0] == pytest.approx(-likelihood + (144 + 36 + 2) / 4 * np.log(200), rel=1e-9)


def test_small_clusters_of_a_real_victim_are_found(real_data):
    with np.load(real_data / "evidence" / "cifar10-multiple-source-0.25.npz") as file:
        bird = file["labels"] == 2
        features, poisoned = file["features"][bird].astype(np.float32), file["poisoned"][bird]
    kept = ~poisoned | (np.cumsum(poisoned) % 3 == 0)
    features, poisoned = features[kept], poisoned[kept]
    assert poisoned.sum() == 333
    assert isolated(cluster(features, ONCE, 0).assignments, poisoned) >= 0.9
    unreduced = cluster(features, MixtureSettings(restarts=1, max_components=2, dimensions=None), 0)
    assert isolated(unreduced.assignments, poisoned) == 0
