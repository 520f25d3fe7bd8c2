import warnings

import numpy as np
import pytest
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture

from undoor.mixtures.em import BLOCK, Mixtures, fit_from_starts, from_labels, posterior, step

RIDGE = 1e-3


def overlapping(n=400, t=5, seed=0):
    """Return rows of three overlapping Gaussians, and a random partition of them."""
    generator = np.random.default_rng(seed)
    rows = np.concatenate([generator.normal(size=(n, t)) * generator.uniform(0.5, 2, t) + 1.2 * k for k in range(3)])
    return rows - rows.mean(0), generator.integers(0, 3, len(rows))


def one_class(rows, labels, dtype=torch.float64):
    """Return rows, present, labels, class_of and ridge for one start in one class, as EM takes them."""
    n, t = rows.shape
    return (
        torch.from_numpy(rows).to(dtype)[None],
        torch.ones(1, n, dtype=torch.bool),
        torch.from_numpy(labels)[None],
        torch.zeros(1, dtype=torch.int64),
        torch.full((1, t), RIDGE, dtype=torch.float64),
    )


def scikit_learn(rows, labels, iterations):
    """Return the mixture that scikit-learn fits from the same partition; its first step maximises."""
    parts = [rows[labels == k] for k in range(labels.max() + 1)]
    covariances = [np.cov(part.T, bias=True) + RIDGE * np.eye(rows.shape[1]) for part in parts]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return GaussianMixture(
            len(parts),
            reg_covar=RIDGE,
            tol=0,
            max_iter=iterations,
            weights_init=[len(part) / len(rows) for part in parts],
            means_init=[part.mean(0) for part in parts],
            precisions_init=np.linalg.inv(covariances),
        ).fit(rows)


def covariances(mixtures):
    inverse = torch.linalg.inv(mixtures.whitenings[0]).mT
    return (inverse @ inverse.mT).numpy()


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_steps_are_those_of_scikit_learn(steps):
    rows, labels = overlapping()
    x, present, start, class_of, ridge = one_class(rows, labels)
    ours = from_labels(x, start, class_of, 3, ridge)
    for _ in range(steps):
        likelihood, ours = step(x, present, ours, ridge)
    theirs = scikit_learn(rows, labels, steps)
    assert ours.weights[0].numpy() == pytest.approx(theirs.weights_, rel=1e-9)
    assert ours.means[0].numpy() == pytest.approx(theirs.means_, abs=1e-9)
    assert covariances(ours) == pytest.approx(theirs.covariances_, abs=1e-9)
    if steps > 1:
        assert float(likelihood) / len(rows) == pytest.approx(theirs.lower_bound_, rel=1e-9)
    assert float(posterior(x, ours)[0].sum()) / len(rows) == pytest.approx(theirs.score(rows), rel=1e-9)
    assert np.array_equal(posterior(x, ours)[1][0].numpy(), theirs.predict(rows))


def test_a_tight_cluster_far_away_keeps_its_digits_in_float32():
    generator = np.random.default_rng(0)
    rows = np.concatenate([generator.normal(size=(500, 3)), 0.01 * generator.normal(size=(50, 3)) + 300])
    labels = np.repeat([0, 1], [500, 50])
    x, present, start, class_of, ridge = one_class(rows, labels, torch.float32)
    fitted = step(x, present, from_labels(x, start, class_of, 2, ridge), ridge)[1]
    expected = np.cov(rows[500:].T, bias=True) + RIDGE * np.eye(3)
    assert covariances(fitted)[1] == pytest.approx(expected, rel=1e-3, abs=1e-6)


def test_computing_in_blocks_of_rows_changes_nothing(monkeypatch):
    rows, labels = overlapping()
    x, present, start, class_of, ridge = one_class(rows, labels)
    begin = from_labels(x, start, class_of, 3, ridge)
    whole, likelihoods = step(x, present, begin, ridge), posterior(x, begin)[0]
    monkeypatch.setitem(BLOCK, "cpu", 0)  # blocks of 64 rows
    in_blocks = step(x, present, begin, ridge)
    assert float(in_blocks[0]) == pytest.approx(float(whole[0]), rel=1e-12)
    assert in_blocks[1].whitenings.numpy() == pytest.approx(whole[1].whitenings.numpy(), rel=1e-9, abs=1e-12)
    assert posterior(x, begin)[0].numpy() == pytest.approx(likelihoods.numpy())


def random_starts(rows, seeds):
    """Return rows, present, starts, class_of and ridge for one random start per seed, all in one class."""
    labels = torch.from_numpy(np.stack([np.random.default_rng(s).integers(0, 3, len(rows)) for s in seeds]))
    x, present, _, _, ridge = one_class(rows, labels[0].numpy())
    class_of = torch.zeros(len(seeds), dtype=torch.int64)
    return x, present, from_labels(x, labels, class_of, 3, ridge), class_of, ridge


def test_the_likeliest_of_several_starts_is_returned():
    rows, _ = overlapping()
    floor = torch.tensor([-torch.inf], dtype=torch.float64)
    x = random_starts(rows, [0])[0]
    together = fit_from_starts(*random_starts(rows, [0, 1, 2]), floor, 200)
    alone = [fit_from_starts(*random_starts(rows, [seed]), floor, 200) for seed in (0, 1, 2)]
    best = max(float(posterior(x, mixture)[0].sum()) for mixture in alone)
    assert float(posterior(x, together)[0].sum()) == pytest.approx(best, abs=1e-3 * len(rows))


def test_a_start_that_cannot_reach_the_floor_is_given_up(monkeypatch):
    rows, _ = overlapping()
    running = []
    monkeypatch.setattr("undoor.mixtures.em.step", lambda *args: running.append(len(args[2].weights)) or step(*args))
    fit_from_starts(*random_starts(rows, [0, 1]), torch.tensor([1e9], dtype=torch.float64), 200)
    # The first step has no gain to compare with; after the second, both starts are given up.
    assert running == [2, 2]


def test_a_component_that_loses_all_its_rows_does_no_harm():
    rows, labels = overlapping()
    x, present, start, class_of, ridge = one_class(rows, labels)
    begin = from_labels(x, start, class_of, 3, ridge)
    mixture = Mixtures(begin.weights, begin.means.clone(), begin.whitenings.clone())
    mixture.means[0, 2] = 1e6
    for _ in range(3):
        likelihood, mixture = step(x, present, mixture, ridge)
    assert np.isfinite(float(likelihood))
    assert torch.isfinite(mixture.whitenings).all()
