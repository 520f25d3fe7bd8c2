import warnings
from functools import partial

import numpy as np
import pytest
from scipy.stats import multivariate_normal
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture

from helpers.blobs import blobs
from undoor.engine import Engine, map_items
from undoor.errors import UndoorError
from undoor.mixtures import sweep
from undoor.mixtures.memory import remembered_clusterings
from undoor.mixtures.partitions import small_clusters
from undoor.mixtures.sweep import MixtureSettings, bic, cluster, cluster_classes, whiten


@pytest.mark.parametrize("k", [1, 2, 5])
def test_bic_is_half_of_scikit_learns_up_to_a_constant(k):
    features, _ = blobs([60, 60], dimensions=4)
    rows = features.astype(np.float64)
    mixture = GaussianMixture(k, reg_covar=1e-3, random_state=0).fit(rows)
    ours = bic(mixture.score(rows) * len(rows), k, len(rows), 4)
    # There are K t(t + 1)/2 + K t + K − 1 parameters. The paper's term does not subtract the 1.
    assert ours == pytest.approx(mixture.bic(rows) / 2 + np.log(len(rows)) / 2, rel=1e-12)


@pytest.mark.parametrize("sizes", [[200], [150, 90], [100, 60, 140]])
def test_the_sweep_chooses_what_the_bic_of_scikit_learn_chooses(sizes):
    features, truth = blobs(sizes)
    clustering = cluster(features, MixtureSettings(), seed=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        rows = features.astype(np.float64)
        theirs = [GaussianMixture(k, reg_covar=1e-3, random_state=0).fit(rows).bic(rows) for k in range(1, 6)]
    assert clustering.components == int(np.argmin(theirs)) + 1 == len(sizes)
    assert all(len(np.unique(clustering.assignments[truth == k])) == 1 for k in range(len(sizes)))
    best = clustering.components - 1
    assert clustering.criteria[best] == pytest.approx(min(theirs) / 2 + np.log(len(features)) / 2, rel=1e-9)


def test_the_sweep_stops_after_two_values_without_improvement():
    features, _ = blobs([150, 90])
    assert len(cluster(features, MixtureSettings(), 0).criteria) == 4
    assert len(cluster(features, MixtureSettings(patience=1), 0).criteria) == 3
    assert len(cluster(features, MixtureSettings(max_components=1), 0).criteria) == 1


def test_the_order_of_the_rows_does_not_matter():
    features, _ = blobs([40, 30, 50], distance=3)
    order = np.random.default_rng(1).permutation(len(features))
    first, second = (cluster(x, MixtureSettings(), 0) for x in (features, features[order]))
    assert first.criteria == second.criteria
    assert np.array_equal(first.assignments[order], second.assignments)


@pytest.mark.parametrize(
    "features",
    [
        np.zeros((1, 3)),
        np.ones((50, 3)),
        np.repeat(np.eye(3), 20, axis=0),
        np.random.default_rng(0).normal(size=(3, 8)),
    ],
    ids=["one row", "constant", "three distinct rows", "fewer rows than dimensions"],
)
def test_degenerate_classes_are_clustered_without_complaint(features):
    clustering = cluster(features.astype(np.float32), MixtureSettings(), 0)
    assert clustering.assignments.shape == (len(features),)
    assert set(clustering.assignments) <= set(range(clustering.components))
    assert np.isfinite(clustering.criteria).all()


def test_real_features_agree_with_scikit_learn(real_data):
    with np.load(real_data / "evidence" / "cifar10-multiple-source-0.25.npz") as file:
        bird = file["labels"] == 2
        features, poisoned = file["features"][bird].astype(np.float32), file["poisoned"][bird]
    clustering = cluster(features, MixtureSettings(max_components=4, dimensions=None), 0)
    rows = features.astype(np.float64)
    mixture = GaussianMixture(clustering.components, reg_covar=1e-3, random_state=0).fit(rows)
    n = len(rows)
    assert clustering.criteria[clustering.components - 1] == pytest.approx(
        mixture.bic(rows) / 2 + np.log(n) / 2, rel=1e-3
    )
    assert max(np.bincount(clustering.assignments[poisoned])) >= 970


def test_a_cluster_of_several_groups_is_kept_together():
    """A class, and eight small groups far from it and from each other: of two clusters, one is the class."""
    generator = np.random.default_rng(0)
    groups = [generator.normal(size=(30, 8)) + 9 * np.eye(8)[k] + 6 for k in range(8)]
    features = np.concatenate([generator.normal(size=(300, 8)), *groups]).astype(np.float32)
    truth = np.arange(540) >= 300
    clustering = cluster(features, MixtureSettings(max_components=2, restarts=1), 0)
    assert clustering.components == 2
    assert len(np.unique(clustering.assignments[truth])) == len(np.unique(clustering.assignments[~truth])) == 1


def test_whitened_features_have_the_same_variance_in_every_direction():
    generator = np.random.default_rng(0)
    rows = generator.normal(size=(4000, 3)) * [1.0, 100.0, 0.1] @ np.linalg.qr(generator.normal(size=(3, 3)))[0]
    assert np.cov(whiten(rows, 1e-12)[0], rowvar=False) == pytest.approx(np.eye(3), abs=1e-2)
    assert np.abs(whiten(np.ones((5, 3)), 1e-3)[0]).max() == 0


def test_likelihoods_of_whitened_rows_are_those_of_the_rows():
    """The regularised Gaussian of all rows has the same likelihood before and after whitening, except for the scale."""
    generator = np.random.default_rng(0)
    rows = generator.normal(size=(300, 4)) @ generator.normal(size=(4, 4))
    whitened, ridge, log_scale = whiten(rows, 0.1)
    plain = multivariate_normal(rows.mean(0), np.cov(rows.T, bias=True) + 0.1 * np.eye(4)).logpdf(rows)
    ours = multivariate_normal(np.zeros(4), np.cov(whitened.T, bias=True) + np.diag(ridge)).logpdf(whitened)
    assert ours - log_scale == pytest.approx(plain)


def test_classes_fitted_at_once_are_those_fitted_one_by_one():
    classes = [
        blobs(sizes, dimensions=d, seed=d)[0] for sizes, d in (([90, 60], 3), ([200], 3), ([50, 40], 5), ([1], 3))
    ]
    together = cluster_classes(classes, MixtureSettings(), 0)
    for features, clustering in zip(classes, together, strict=True):
        alone = cluster(features, MixtureSettings(), 0)
        assert clustering.criteria == pytest.approx(alone.criteria, rel=1e-5)
        assert np.array_equal(clustering.assignments, alone.assignments)


@pytest.mark.parametrize("scale", [1e-3, 1e-1, 1e3, 1e6])
def test_features_of_any_scale_are_clustered(scale):
    """Far above the regularisation, float32 does not suffice; far below it, everything is one cluster."""
    features, truth = blobs([150, 90])
    clustering = cluster(features * np.float32(scale), MixtureSettings(), 0)
    assert np.isfinite(clustering.criteria).all()
    assert (clustering.components > 1) == (scale > 1e-2)
    if clustering.components > 1:
        main_component = np.array([np.bincount(clustering.assignments[truth == k]).argmax() for k in range(2)])
        assert (clustering.assignments == main_component[truth]).mean() > 0.97


def test_repeated_rows_form_a_cluster_each_and_k_does_not_exceed_their_number():
    features = np.repeat(np.random.default_rng(0).normal(size=(3, 4)) * 9, [40, 30, 20], axis=0).astype(np.float32)
    clustering = cluster(features, MixtureSettings(), 0)
    assert clustering.components == len(clustering.criteria) == 3
    assert sorted(np.bincount(clustering.assignments)) == [20, 30, 40]


def test_the_same_seed_gives_the_same_bits():
    features, _ = blobs([70, 60, 50], distance=2)
    first, second = (cluster(features, MixtureSettings(), 3) for _ in range(2))
    assert first.criteria == second.criteria
    assert np.array_equal(first.assignments, second.assignments)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_features_that_are_not_finite_are_refused(value):
    features, _ = blobs([20])
    features[3, 1] = value
    with pytest.raises(UndoorError, match="not finite"):
        cluster(features, MixtureSettings(), 0)


def test_a_class_without_images_is_refused():
    with pytest.raises(UndoorError, match="one row or more"):
        cluster(np.empty((0, 4), dtype=np.float32), MixtureSettings(), 0)


@pytest.mark.parametrize(
    "wrong", [{"max_components": 0}, {"patience": 0}, {"iterations": 0}, {"restarts": 0}, {"regularisation": 0.0}]
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(UndoorError, match="give"):
        MixtureSettings(**wrong)


@pytest.fixture
def fits(monkeypatch):
    """The number of rows of every class whose starts are computed."""
    sizes = []
    monkeypatch.setattr(sweep, "small_clusters", lambda *args: sizes.append(len(args[0])) or small_clusters(*args))
    return sizes


ONE_START = MixtureSettings(restarts=1)


def test_clusterings_are_found_once_within_the_context_and_anew_outside(fits):
    features, other = blobs([40, 30])[0], blobs([50])[0]
    expected = cluster(features, ONE_START, 0)
    assert fits == [70]
    with remembered_clusterings():
        first, again = (cluster(features.copy(), ONE_START, 0) for _ in range(2))
        assert fits == [70, 70]
        assert again is first
        assert cluster_classes([other, features, other], ONE_START, 0)[1] is first
        assert fits == [70, 70, 50]
    assert first.criteria == expected.criteria
    assert np.array_equal(first.assignments, expected.assignments)
    cluster(features, ONE_START, 0)
    assert fits == [70, 70, 50, 70]


@pytest.mark.parametrize(
    "changed",
    [{"features": blobs([40, 30], seed=1)[0]}, {"settings": MixtureSettings(restarts=1, patience=1)}, {"seed": 1}],
    ids=["features", "settings", "seed"],
)
def test_other_arguments_are_not_mistaken_for_remembered_ones(fits, changed):
    arguments = {"features": blobs([40, 30])[0], "settings": ONE_START, "seed": 0}
    with remembered_clusterings():
        for given in (arguments, arguments | changed, arguments):
            cluster(**given)
    assert fits == [70, 70]


def test_threads_of_the_engine_share_the_memory(fits):
    classes = [blobs([40 + k])[0] for k in range(4)]
    with remembered_clusterings():
        first, again = (map_items(partial(cluster, settings=ONE_START, seed=0), classes, 2) for _ in range(2))
    assert sorted(fits) == [40, 41, 42, 43]
    assert all(before is after for before, after in zip(first, again, strict=True))


@pytest.mark.parametrize("kind", ["local", "processes"])
def test_the_memory_changes_no_result(kind):
    classes = [blobs([40 + k, 30])[0] for k in range(3)]
    work = partial(cluster, settings=ONE_START, seed=0)
    expected = map_items(work, classes, 1)
    with remembered_clusterings():
        twice = [map_items(work, classes, Engine(kind, 2)) for _ in range(2)]
    for clusterings in twice:
        assert [c.criteria for c in clusterings] == [c.criteria for c in expected]
        assert all(np.array_equal(c.assignments, e.assignments) for c, e in zip(clusterings, expected, strict=True))
