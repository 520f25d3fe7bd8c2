import warnings

import numpy as np
import pytest
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture

from undoor.mixtures.em import BLOCK, Mixtures, from_labels, posterior, race, step

RIDGE = 1e-3


def overlapping(n=400, t=5, seed=0):
    generator = np.random.default_rng(seed)
    rows = np.concatenate([generator.normal(size=(n, t)) * generator.uniform(0.5, 2, t) + 1.2 * k for k in range(3)])
    return rows - rows.mean(0), generator.integers(0, 3, len(rows))


def tensors(rows, labels, dtype=torch.float64):
    """Rows, present, labels, of and ridge for one start in one class."""
    n, t = rows.shape
    return (
        torch.from_numpy(rows).to(dtype)[None],
        torch.ones(1, n, dtype=torch.bool),
        torch.from_numpy(labels)[None],
        torch.zeros(1, dtype=torch.int64),
        torch.full((1, t), RIDGE, dtype=torch.float64),
    )


def scikit_learn(rows, labels, iterations):
    """EM by scikit-learn from the same partition, whose first step is to maximise."""
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
def test_steps_are_scikit_learns(steps):
    rows, labels = overlapping()
    x, present, start, of, ridge = tensors(rows, labels)
    ours = from_labels(x, start, of, 3, ridge)
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
    x, present, start, of, ridge = tensors(rows, labels, torch.float32)
    found = step(x, present, from_labels(x, start, of, 2, ridge), ridge)[1]
    expected = np.cov(rows[500:].T, bias=True) + RIDGE * np.eye(3)
    assert covariances(found)[1] == pytest.approx(expected, rel=1e-3, abs=1e-6)


def test_blocks_of_rows_change_nothing(monkeypatch):
    rows, labels = overlapping()
    x, present, start, of, ridge = tensors(rows, labels)
    begin = from_labels(x, start, of, 3, ridge)
    whole, likelihoods = step(x, present, begin, ridge), posterior(x, begin)[0]
    monkeypatch.setitem(BLOCK, "cpu", 0)  # blocks of 64 rows
    parted = step(x, present, begin, ridge)
    assert float(parted[0]) == pytest.approx(float(whole[0]), rel=1e-12)
    assert parted[1].whitenings.numpy() == pytest.approx(whole[1].whitenings.numpy(), rel=1e-9, abs=1e-12)
    assert posterior(x, begin)[0].numpy() == pytest.approx(likelihoods.numpy())


def starts(rows, seeds):
    """Several random starts in one class."""
    labels = torch.from_numpy(np.stack([np.random.default_rng(s).integers(0, 3, len(rows)) for s in seeds]))
    x, present, _, _, ridge = tensors(rows, labels[0].numpy())
    of = torch.zeros(len(seeds), dtype=torch.int64)
    return x, present, from_labels(x, labels, of, 3, ridge), of, ridge


def test_the_race_is_won_by_the_likeliest_start():
    rows, _ = overlapping()
    nowhere = torch.tensor([-torch.inf], dtype=torch.float64)
    together = race(*(given := starts(rows, [0, 1, 2]))[:3], *given[3:], nowhere, 200)
    alone = [race(*(one := starts(rows, [seed]))[:3], *one[3:], nowhere, 200) for seed in (0, 1, 2)]
    best = max(float(posterior(given[0], mixture)[0].sum()) for mixture in alone)
    assert float(posterior(given[0], together)[0].sum()) == pytest.approx(best, abs=1e-3 * len(rows))


def test_a_start_that_cannot_reach_the_floor_is_given_up(monkeypatch):
    rows, _ = overlapping()
    x, present, begin, of, ridge = starts(rows, [0, 1])
    taken = []
    monkeypatch.setattr("undoor.mixtures.em.step", lambda *given: taken.append(len(given[2].weights)) or step(*given))
    race(x, present, begin, of, ridge, torch.tensor([1e9], dtype=torch.float64), 200)
    # After the first step nothing is known of the gain, after the second enough.
    assert taken == [2, 2]


def test_a_component_that_loses_all_its_rows_does_no_harm():
    rows, labels = overlapping()
    x, present, start, of, ridge = tensors(rows, labels)
    begin = from_labels(x, start, of, 3, ridge)
    lost = Mixtures(begin.weights, begin.means.clone(), begin.whitenings.clone())
    lost.means[0, 2] = 1e6
    for _ in range(3):
        likelihood, lost = step(x, present, lost, ridge)
    assert np.isfinite(float(likelihood))
    assert torch.isfinite(lost.whitenings).all()
