"""Our mixture with the interface of scikit-learn, compared with the mixture of scikit-learn."""

import pickle

import numpy as np
import pytest
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from helpers.blobs import blobs
from undoor.errors import UndoorError
from undoor.integrations import BicMixture


@parametrize_with_checks([BicMixture()])
def test_the_checks_of_scikit_learn_pass(estimator, check):
    check(estimator)


def same_parameters(ours):
    """Return scikit-learn's mixture with the parameters of ours."""
    theirs = GaussianMixture(ours.n_components_)
    theirs.weights_, theirs.means_ = ours.weights_, ours.means_
    theirs.covariances_, theirs.precisions_cholesky_ = ours.covariances_, ours.precisions_cholesky_
    return theirs


@pytest.mark.parametrize("sizes", [[200], [150, 90], [100, 60, 140]])
@pytest.mark.parametrize("offset", [0, 1e5])
def test_equal_parameters_give_what_scikit_learn_gives(sizes, offset):
    rows = blobs(sizes, distance=3)[0].astype(np.float64) + offset
    ours = BicMixture(random_state=0).fit(rows)
    theirs = same_parameters(ours)
    assert ours.bic(rows) == pytest.approx(theirs.bic(rows), rel=1e-9)
    assert ours.score(rows) == pytest.approx(theirs.score(rows), rel=1e-9)
    assert ours.score_samples(rows) == pytest.approx(theirs.score_samples(rows), rel=1e-6)
    assert ours.predict_proba(rows) == pytest.approx(theirs.predict_proba(rows), abs=1e-6)
    assert np.array_equal(ours.predict(rows), theirs.predict(rows))
    assert np.array_equal(ours.labels_, ours.predict(rows))


@pytest.mark.parametrize("sizes", [[200], [150, 90], [100, 60, 140]])
def test_the_mixture_is_that_of_a_sweep_with_scikit_learn(sizes):
    features, truth = blobs(sizes)
    rows = features.astype(np.float64)
    ours = BicMixture(random_state=0).fit(rows)
    sweep = [GaussianMixture(k, reg_covar=1e-3, random_state=0, n_init=3).fit(rows) for k in range(1, 6)]
    theirs = min(sweep, key=lambda mixture: mixture.bic(rows))
    assert ours.n_components_ == theirs.n_components == len(sizes)
    assert ours.bic(rows) == pytest.approx(theirs.bic(rows), rel=1e-6)
    # The groups are the same; only their numbers may differ.
    pairs = set(zip(ours.predict(rows), theirs.predict(rows), truth, strict=True))
    assert len(pairs) == len(sizes)
    ours_first, theirs_first = np.argsort(ours.means_[:, 0]), np.argsort(theirs.means_[:, 0])
    assert ours.weights_[ours_first] == pytest.approx(theirs.weights_[theirs_first], abs=1e-6)
    assert ours.means_[ours_first] == pytest.approx(theirs.means_[theirs_first], abs=1e-4)
    assert ours.covariances_[ours_first] == pytest.approx(theirs.covariances_[theirs_first], abs=1e-3)


def test_it_works_in_pipelines_and_cross_validation():
    rows = blobs([80, 80])[0].astype(np.float64)
    rows = rows[np.random.default_rng(0).permutation(len(rows))]
    pipeline = make_pipeline(StandardScaler(), BicMixture(max_components=4, random_state=0))
    assert len(set(pipeline.fit_predict(rows))) == 2
    assert np.isfinite(cross_val_score(pipeline, rows, cv=3)).all()


def test_pickling_changes_no_bit():
    rows = blobs([60, 40])[0]
    ours = BicMixture(random_state=0).fit(rows)
    again = pickle.loads(pickle.dumps(ours))
    assert np.array_equal(again.score_samples(rows), ours.score_samples(rows))


@pytest.mark.parametrize("wrong", [{"max_components": 0}, {"restarts": 0}, {"regularisation": 0.0}])
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(UndoorError, match="give"):
        BicMixture(**wrong).fit(blobs([20])[0])
