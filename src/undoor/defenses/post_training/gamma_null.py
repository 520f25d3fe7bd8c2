"""Is a class pair too close? The Gamma null of arXiv 1908.10498, section III-C, as functions of the matrix r.

r_st = 1/‖v_st‖₂ is large where a small perturbation sends class s to class t. Without a backdoor all r are taken for
draws from one Gamma distribution G, and the largest r is compared with the largest of as many draws from G.

The p-values of the paper's formulas (``nominal``) are not uniform on clean draws: the parameters of G are fitted to the
same draws, and inference A fits them to the smallest (K − 1)² values as if these were a random sample. Two departures
from the paper correct that:

- inference A treats the K − 1 values that it leaves out as censored, that is, as known to be no smaller; and
- p is the share of clean matrices, simulated from the fitted Gamma, whose nominal p-value is no larger.
"""

from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import digamma, gammaincc, gammaln, polygamma

from undoor.errors import UndoorError

Rule = Literal["A", "B"]
Matrix = NDArray[np.float64]

DRAWS = 999
"""The number of simulated clean matrices; no p-value is below 1 / (DRAWS + 1)."""

SHAPES_PER_E_FOLD = 4
"""Clean matrices are simulated for this many shapes of the Gamma in every factor of e. Nominal p-values hardly depend
on the shape, so that a finer grid would change nothing."""

SHAPES = (0.1, 1000.0)
"""Clean matrices are simulated for shapes between these two; for a shape outside, the nearer of the two is taken."""

EM_STEPS = 200
"""The most steps of EM. How many are needed depends on the share of censored values."""


class Inference(NamedTuple):
    """What one rule infers from a matrix r.

    Args:
        p: the p-value, uniform on clean draws.
        nominal: the p-value of the paper's formula.
        by_pair: (K, K), 1 − G(r_st)^n, with the G that the pair is compared with and the paper's n; NaN where s = t.
        shape: the shape of the Gamma that the most suspicious pair is compared with.
        scale: the scale of the same Gamma.

    """

    p: float
    nominal: float
    by_pair: Matrix
    shape: float
    scale: float

    @property
    def pair(self) -> tuple[int, int]:
        """The most suspicious pair (s, t)."""
        s, t = np.unravel_index(np.nanargmin(self.by_pair), self.by_pair.shape)
        return int(s), int(t)


def infer(r: Matrix, rule: Rule) -> Inference:
    """Return what ``rule`` infers from r, (K, K), with r_st of the pair (s, t) and anything on its diagonal."""
    k, off_diagonal = len(r), ~np.eye(len(r), dtype=bool)
    if k < 3:
        raise UndoorError(f"{k} classes make too few pairs to tell an unusual one; give a model of 3 or more")
    if not (np.isfinite(r[off_diagonal]).all() and (r[off_diagonal] > 0).all()):
        raise UndoorError("not all r are finite and above 0; give 1/‖v‖ of every class pair")
    by_pair, shapes, scales = compare(r, rule)
    nominal = float(overall(by_pair, rule))
    target = np.nanargmin(by_pair) % k
    shape, scale = float(shapes[target]), float(scales[target])
    if np.ptp(r[off_diagonal]) <= 1e-9 * r[off_diagonal].max():  # no pair differs from another
        return Inference(1.0, nominal, by_pair, shape, scale)
    rung = round(np.log(np.clip(shape, *SHAPES)) * SHAPES_PER_E_FOLD)
    clean = _clean_draws(rule, k, rung)
    return Inference(float((1 + (clean <= nominal).sum()) / (1 + DRAWS)), nominal, by_pair, shape, scale)


def compare(r: Matrix, rule: Rule) -> tuple[Matrix, Matrix, Matrix]:
    """Compare every pair of r, (..., K, K), with its null.

    Rule A has one null for all pairs, fitted to the (K − 1)² smallest r, with n = K(K − 1). Rule B has a null for each
    target t, fitted to all r of other targets, with n = K − 1.

    Returns:
        1 − G(r_st)^n, (..., K, K), and the shapes and scales of the Gammas, (..., K), one a target.

    """
    k = r.shape[-1]
    diagonal = np.eye(k, dtype=bool)
    if rule == "A":
        ordered = np.sort(r[..., ~diagonal], axis=-1)
        fitted = fit_gamma(ordered[..., : (k - 1) ** 2], k - 1)
        shape, scale = (np.repeat(parameter[..., None], k, axis=-1) for parameter in fitted)
    else:
        sums = [np.where(diagonal, 0.0, values).sum(axis=-2) for values in (r, np.log(np.where(diagonal, 1.0, r)))]
        means_of_others = [(by_target.sum(axis=-1, keepdims=True) - by_target) / (k - 1) ** 2 for by_target in sums]
        shape, scale = _most_likely(*means_of_others)
    by_pair = exceedance(r, shape[..., None, :], scale[..., None, :], k * (k - 1) if rule == "A" else k - 1)
    return np.where(diagonal, np.nan, by_pair), shape, scale


def overall(by_pair: Matrix, rule: Rule) -> Matrix:
    """Return the nominal p-values (...) of what ``compare`` returned: A: min p_st; B: 1 − (1 − min p_st)^K."""
    smallest = np.nanmin(by_pair, axis=(-2, -1))
    return smallest if rule == "A" else _any_of(smallest, by_pair.shape[-1])


def exceedance(r: Matrix, shape: Matrix | float, scale: Matrix | float, n: int) -> Matrix:
    """Return 1 − G(r)^n, the probability that the largest of n draws from a Gamma is above r.

    It is precise where it is small.
    """
    return _any_of(gammaincc(shape, r / scale), n)


def _any_of(p: Matrix, n: int) -> Matrix:
    """Return 1 − (1 − p)^n."""
    result: Matrix = -np.expm1(n * np.log1p(-np.minimum(p, 1 - 1e-16)))
    return result


def fit_gamma(values: Matrix, censored: int = 0) -> tuple[Matrix, Matrix]:
    """Return the shapes and scales (...) of the most likely Gammas of (..., n) values.

    ``censored`` is the number of further values, of which it is only known that none is below the largest of the n. EM
    puts their expectations in their place: with z = largest / scale,

        E[x | x > largest] = shape · scale · Q(shape + 1, z) / Q(shape, z),
        E[log x | x > largest] = log scale + ∂ log Γ(shape, z) / ∂ shape.
    """
    n = values.shape[-1]
    mean, log_mean, largest = values.mean(axis=-1), np.log(values).mean(axis=-1), values.max(axis=-1)
    shape, scale = _most_likely(mean, log_mean)
    for _ in range(EM_STEPS if censored else 0):
        z = largest / scale
        expected = shape * scale * np.exp(_log_tail(shape + 1, z) - _log_tail(shape, z))
        h = 1e-4 * shape
        slope = (_log_tail(shape + h, z) - _log_tail(shape - h, z) + gammaln(shape + h) - gammaln(shape - h)) / (2 * h)
        means = (n * mean + censored * expected) / (n + censored)
        log_means = (n * log_mean + censored * (np.log(scale) + slope)) / (n + censored)
        former, (shape, scale) = shape, _most_likely(means, log_means)
        if np.all(np.abs(shape - former) <= 1e-7 * shape):
            break
    return shape, scale


def _log_tail(shape: Matrix, z: Matrix) -> Matrix:
    tail: Matrix = np.log(np.maximum(gammaincc(shape, z), np.finfo(np.float64).tiny))
    return tail


def _most_likely(mean: Matrix, log_mean: Matrix) -> tuple[Matrix, Matrix]:
    """Return the shape and scale of the most likely Gamma of values with this mean and mean logarithm."""
    gap = np.maximum(np.log(mean) - log_mean, 1e-9)  # equal values have a gap of 0, and no Gamma has
    shape = (3 - gap + np.sqrt((gap - 3) ** 2 + 24 * gap)) / (12 * gap)
    for _ in range(4):  # Newton's method; the start is accurate to 1.5 %
        shape = shape - (np.log(shape) - digamma(shape) - gap) / (1 / shape - polygamma(1, shape))
    return shape, mean / shape


@lru_cache(maxsize=64)
def _clean_draws(rule: Rule, k: int, rung: int) -> Matrix:
    """Return the nominal p-values of simulated clean matrices; they do not depend on the scale of r."""
    generator = np.random.default_rng((k, rung + 1000))
    draws = generator.gamma(np.exp(rung / SHAPES_PER_E_FOLD), size=(DRAWS, k, k))
    return overall(compare(np.maximum(draws, np.finfo(np.float64).tiny), rule)[0], rule)
