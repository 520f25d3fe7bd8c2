"""Properties of mixtures, impurity and metrics that hold for every input.

Hypothesis draws the examples, which are the same in every run.
"""

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.special import logsumexp
from scipy.stats import multivariate_normal
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import roc_auc_score
from sklearn.mixture import GaussianMixture

from conftest import always
from undoor.defenses.training_set.impurity import certain_impurity, certain_share, confident_changes, impurity
from undoor.findings.metrics import detection
from undoor.mixtures.em import Mixtures, from_labels, log_densities, posterior, step
from undoor.mixtures.sweep import MixtureSettings, bic, cluster, whiten

# Mixtures


@st.composite
def rows_and_parts(draw):
    """Draw rows around three centres, and a partition into k parts that may cut across them."""
    seed, t, k = draw(st.integers(0, 2**32 - 1)), draw(st.integers(1, 4)), draw(st.integers(1, 3))
    generator = np.random.default_rng(seed)
    centres = generator.normal(size=(3, t)) * draw(st.floats(0, 6))
    rows = np.concatenate([centre + generator.normal(size=(20, t)) * generator.uniform(0.2, 2) for centre in centres])
    labels = generator.permutation(np.arange(60) % k)
    return rows - rows.mean(0), labels, k


def em_arguments(rows, labels, k, ridge=1e-3):
    """Return rows, present rows, the mixture that a partition starts, and the ridge, as EM takes them."""
    x, class_of = torch.from_numpy(rows)[None], torch.zeros(1, dtype=torch.int64)
    ridges = torch.full((1, rows.shape[1]), ridge, dtype=torch.float64)
    return (
        x,
        torch.ones(1, len(rows), dtype=torch.bool),
        from_labels(x, torch.from_numpy(labels)[None], class_of, k, ridges),
        ridges,
    )


@given(rows_and_parts())
@always(25)
def test_em_raises_the_likelihood_and_its_densities_are_gaussian(drawn):
    rows, labels, k = drawn
    # Without a ridge, no step of EM lowers the likelihood.
    x, present, mixture, ridge = em_arguments(rows, labels, k, ridge=1e-9)
    reached = -np.inf
    for _ in range(6):
        likelihood, better = step(x, present, mixture, ridge)
        assert float(likelihood) >= reached - 1e-6 * max(1.0, abs(reached))
        reached, mixture = float(likelihood), better

    assert float(mixture.weights.sum()) == pytest.approx(1)
    logs = log_densities((x[:, None] - mixture.means[:, :, None]), mixture)[0].numpy()
    inverses = torch.linalg.inv(mixture.whitenings[0]).mT
    expected = np.stack(
        [
            np.log(weight) + multivariate_normal(mean, covariance, allow_singular=True).logpdf(rows)
            for weight, mean, covariance in zip(
                mixture.weights[0].numpy(), mixture.means[0].numpy(), (inverses @ inverses.mT).numpy(), strict=True
            )
        ]
    )
    assert logs == pytest.approx(expected, rel=1e-6, abs=1e-6)
    likelihoods, assignments = posterior(x, mixture)
    assert likelihoods[0].numpy() == pytest.approx(logsumexp(expected, axis=0), rel=1e-6, abs=1e-6)
    shares = np.exp(logs - likelihoods[0].numpy())
    assert shares.sum(0) == pytest.approx(np.ones(len(rows)))
    assert np.array_equal(assignments[0].numpy(), shares.argmax(0))


@given(rows_and_parts(), st.integers(1, 4))
@always(25)
def test_em_is_that_of_scikit_learn(drawn, steps):
    rows, labels, k = drawn
    x, present, mixture, ridge = em_arguments(rows, labels, k)
    parts = [rows[labels == j] for j in range(k)]
    covariances = [
        np.cov(part.T, bias=True).reshape(rows.shape[1], -1) + 1e-3 * np.eye(rows.shape[1]) for part in parts
    ]
    theirs = GaussianMixture(
        k, reg_covar=1e-3, tol=0, max_iter=steps, weights_init=[len(part) / len(rows) for part in parts],
        means_init=[part.mean(0) for part in parts], precisions_init=np.linalg.inv(covariances),
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        theirs.fit(rows)
    for _ in range(steps):
        mixture = step(x, present, mixture, ridge)[1]
    assert mixture.means[0].numpy() == pytest.approx(theirs.means_, rel=1e-6, abs=1e-6)
    assert mixture.weights[0].numpy() == pytest.approx(theirs.weights_, rel=1e-6)
    ours = bic(float(posterior(x, mixture)[0].sum()), k, *rows.shape)
    assert ours == pytest.approx(theirs.bic(rows) / 2 + np.log(len(rows)) / 2, rel=1e-6)


@given(rows_and_parts(), st.randoms(use_true_random=False))
@always(25)
def test_the_order_of_rows_and_of_components_does_not_matter(drawn, random):
    rows, labels, k = drawn
    x, present, mixture, ridge = em_arguments(rows, labels, k)
    row_order, order = random.sample(range(len(rows)), len(rows)), np.array(random.sample(range(k), k))
    shuffled, _, _, _ = em_arguments(rows[row_order], labels[row_order], k)
    reordered = Mixtures(mixture.weights[:, order], mixture.means[:, order], mixture.whitenings[:, order])
    first, second = step(x, present, mixture, ridge), step(shuffled, present, reordered, ridge)
    assert float(second[0]) == pytest.approx(float(first[0]), rel=1e-9)
    assert second[1].means[0].numpy() == pytest.approx(first[1].means[0].numpy()[order], rel=1e-6, abs=1e-8)


@given(rows_and_parts(), st.floats(0.05, 20))
@always(25)
def test_the_likelihood_of_scaled_rows_is_the_scaled_likelihood(drawn, scale):
    rows, labels, k = drawn
    n, t = rows.shape
    x, present, mixture, ridge = em_arguments(rows, labels, k)
    scaled, _, scaled_mixture, scaled_ridge = em_arguments(scale * rows, labels, k, ridge=1e-3 * scale**2)
    for _ in range(3):
        likelihood, mixture = step(x, present, mixture, ridge)
        scaled_likelihood, scaled_mixture = step(scaled, present, scaled_mixture, scaled_ridge)
    expected = float(likelihood) - n * t * np.log(scale)
    assert float(scaled_likelihood) == pytest.approx(expected, rel=1e-6, abs=1e-6)


@given(rows_and_parts())
@always(25)
def test_whitened_rows_have_unit_variance_and_the_log_scale_is_the_volume(drawn):
    rows, _, _ = drawn
    whitened, added, log_scale = whiten(rows, 1e-3)
    variances = whitened.var(axis=0)
    assert variances + added == pytest.approx(np.ones(rows.shape[1]), rel=1e-6)
    covariance = np.cov(rows.T, bias=True).reshape(rows.shape[1], -1)
    assert np.linalg.slogdet(covariance + 1e-3 * np.eye(rows.shape[1]))[1] / 2 == pytest.approx(log_scale)


@given(
    hnp.arrays(np.float32, st.tuples(st.integers(1, 12), st.integers(1, 3)), elements=st.integers(-3, 3).map(float)),
    st.randoms(use_true_random=False),
)
@always(15)
def test_any_class_is_clustered_and_its_order_does_not_matter(features, random):
    clustering = cluster(features, MixtureSettings(restarts=1, max_components=4), 0)
    distinct = len(np.unique(features, axis=0))
    assert 1 <= clustering.components <= min(distinct, 4)
    assert np.isfinite(clustering.criteria).all()
    assert set(clustering.assignments) <= set(range(clustering.components))
    for row in features:  # equal rows are in the same cluster
        assert len(set(clustering.assignments[(features == row).all(1)])) == 1
    order = random.sample(range(len(features)), len(features))
    again = cluster(features[order], MixtureSettings(restarts=1, max_components=4), 0)
    assert again.criteria == clustering.criteria
    assert np.array_equal(again.assignments, clustering.assignments[order])


# Impurity


@given(st.integers(0, 200), st.integers(0, 200))
@always(100)
def test_impurity_is_minus_the_logarithm_of_the_share_that_is_kept(kept, more):
    examined = kept + more
    s = impurity(kept, examined)
    if examined == 0:
        assert s == 0
    elif kept == 0:
        assert s == pytest.approx(np.log(2 * examined))
        assert s > impurity(1, examined)
    else:
        assert s == pytest.approx(-np.log(kept / examined))
        assert (s == 0) == (more == 0)
        assert impurity(kept, examined + 1) > s


@given(st.integers(1, 300), st.data())
@always(100)
def test_the_certain_share_lies_below_the_share_and_grows_with_the_evidence(examined, data):
    changed = data.draw(st.integers(0, examined))
    share = certain_share(changed, examined)
    assert 0 <= share < 1
    assert (share == 0) == (changed == 0)
    assert share <= changed / examined
    assert share <= certain_share(2 * changed, 2 * examined)
    assert certain_impurity(changed, examined) == pytest.approx(-np.log(1 - share))
    if changed < examined:
        assert share <= certain_share(changed + 1, examined)


@given(st.data(), st.integers(2, 4), st.integers(1, 30), st.randoms(use_true_random=False))
@always(60)
def test_confident_changes_do_not_depend_on_scale_shift_or_order(data, k, n, random):
    after = data.draw(hnp.arrays(np.float32, (n, k), elements=st.integers(-20, 20).map(float)))
    before, labels = (data.draw(hnp.arrays(np.int64, n, elements=st.integers(0, k - 1))) for _ in range(2))
    confident = confident_changes(before, after, labels)
    assert not confident[after.argmax(1) == labels].any()
    kept = (before == labels) & (after.argmax(1) == labels)
    assert set(after.argmax(1)[confident]) <= set(labels[kept])
    assert np.array_equal(confident_changes(before, 4 * after, labels), confident)  # a power of two causes no rounding
    assert np.array_equal(confident_changes(before, after + 3, labels), confident)
    order = random.sample(range(n), n)
    assert np.array_equal(confident_changes(before[order], after[order], labels[order]), confident[order])


# Metrics


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5), st.integers(0, 3), st.booleans()), min_size=1, max_size=60))
@always(150)
def test_detection_counts_every_sample_once(drawn):
    flagged, score, labels, poisoned = (np.array(column) for column in zip(*drawn, strict=True))
    counts = detection(flagged, score.astype(float), labels, poisoned)
    assert [counts[name] for name in ("tp", "fp", "fn", "tn")] == [
        ((flagged == f) & (poisoned == p)).sum() for f, p in ((1, 1), (1, 0), (0, 1), (0, 0))
    ]
    has_both = poisoned.any() and not poisoned.all()
    assert counts["auroc"] == (pytest.approx(roc_auc_score(poisoned, score)) if has_both else None)
    assert counts["tpr"] == (pytest.approx(flagged[poisoned].mean()) if poisoned.any() else None)
    assert counts["fpr_all_classes"] == (pytest.approx(flagged[~poisoned].mean()) if not poisoned.all() else None)
    assert counts["precision"] == (pytest.approx(poisoned[flagged].mean()) if flagged.any() else None)
    clean_in_target = ~poisoned & np.isin(labels, labels[poisoned])
    rate = pytest.approx(flagged[clean_in_target].mean()) if clean_in_target.any() else None
    assert counts["fpr_target_class"] == rate
    if has_both:  # with the opposite scores, the areas add up to one
        opposite = detection(flagged, -score.astype(float), labels, poisoned)["auroc"]
        assert counts["auroc"] + opposite == pytest.approx(1)
