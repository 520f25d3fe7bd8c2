"""Is a class pair too close? The Gamma null of arXiv 1908.10498, section III-C, as functions of the matrix r.

r_st = 1/‖v_st‖₂ is large where a small perturbation sends class s to class t. Without a backdoor all r are taken for
draws from one Gamma distribution, G; the largest is compared with what the largest of so many draws would be.

The printed p-values (``nominal``) are not uniform on clean draws: the parameters of G are fitted to the same draws, and
inference A fits them to the smallest (K − 1)² values as if these were a sample. Two departures mend that:

- inference A counts the K − 1 values that it leaves out as known to be no smaller (censored), and
- p is the share of clean draws, simulated from the fitted Gamma, whose nominal p-value is no larger.
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
"""Simulated clean matrices; no p-value is below 1 / (DRAWS + 1)."""

SHAPES_AN_E_FOLD = 4
"""How finely the shapes are told apart for which clean matrices are simulated: nominal p-values hardly depend on it."""

SHAPES = (0.1, 1000.0)
"""Between which clean matrices are simulated; less or more regular ones are taken for the nearest."""

EM_STEPS = 200
"""At most; the censored share of the values decides how many are needed."""


class Inference(NamedTuple):
    """What one rule says of a matrix r.

    Args:
        p: the p-value, uniform on clean draws.
        nominal: the p-value of the paper's formula.
        by_pair: (K, K), 1 − G(r_st)^n, with the G that the pair is compared with and the paper's n; NaN where s = t.
        shape: of the Gamma that the most suspicious pair is compared with.
        scale: of the same.

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
    """Return what inference ``rule`` says of r, (K, K) with r_st of the pair (s, t) and anything on its diagonal."""
    k, off = len(r), ~np.eye(len(r), dtype=bool)
    if k < 3:
        raise UndoorError(f"{k} classes make too few pairs to tell an unusual one; give a model of 3 or more")
    if not (np.isfinite(r[off]).all() and (r[off] > 0).all()):
        raise UndoorError("not all r are finite and above 0; give 1/‖v‖ of every class pair")
    by_pair, shapes, scales = compare(r, rule)
    nominal = float(overall(by_pair, rule))
    target = np.nanargmin(by_pair) % k
    shape, scale = float(shapes[target]), float(scales[target])
    if np.ptp(r[off]) <= 1e-9 * r[off].max():  # no pair differs from another
        return Inference(1.0, nominal, by_pair, shape, scale)
    rung = round(np.log(np.clip(shape, *SHAPES)) * SHAPES_AN_E_FOLD)
    clean = _clean_draws(rule, k, rung)
    return Inference(float((1 + (clean <= nominal).sum()) / (1 + DRAWS)), nominal, by_pair, shape, scale)


def compare(r: Matrix, rule: Rule) -> tuple[Matrix, Matrix, Matrix]:
    """Compare every pair of r, (..., K, K), with its null.

    A: one null for all, fitted to the (K − 1)² smallest r, n = K(K − 1). B: a null for each target t, fitted to all r
    of other targets, n = K − 1.

    Returns:
        1 − G(r_st)^n, (..., K, K), and the Gammas' shapes and scales, (..., K), one a target.

    """
    k = r.shape[-1]
    diagonal = np.eye(k, dtype=bool)
    if rule == "A":
        ordered = np.sort(r[..., ~diagonal], axis=-1)
        shape, scale = (np.repeat(one[..., None], k, axis=-1) for one in fit_gamma(ordered[..., : (k - 1) ** 2], k - 1))
    else:
        by_target = [np.where(diagonal, 0.0, values).sum(axis=-2) for values in (r, np.log(np.where(diagonal, 1.0, r)))]
        shape, scale = _most_likely(*((one.sum(axis=-1, keepdims=True) - one) / (k - 1) ** 2 for one in by_target))
    by_pair = exceedance(r, shape[..., None, :], scale[..., None, :], k * (k - 1) if rule == "A" else k - 1)
    return np.where(diagonal, np.nan, by_pair), shape, scale


def overall(by_pair: Matrix, rule: Rule) -> Matrix:
    """Return the nominal p-values (...) of what ``compare`` returned: A: min p_st; B: 1 − (1 − min p_st)^K."""
    smallest = np.nanmin(by_pair, axis=(-2, -1))
    return smallest if rule == "A" else _any_of(smallest, by_pair.shape[-1])


def exceedance(r: Matrix, shape: Matrix | float, scale: Matrix | float, n: int) -> Matrix:
    """Return 1 − G(r)^n: how likely the largest of n draws from a Gamma is above r. Precise where it is small."""
    return _any_of(gammaincc(shape, r / scale), n)


def _any_of(p: Matrix, n: int) -> Matrix:
    """Return 1 − (1 − p)^n."""
    result: Matrix = -np.expm1(n * np.log1p(-np.minimum(p, 1 - 1e-16)))
    return result


def fit_gamma(values: Matrix, censored: int = 0) -> tuple[Matrix, Matrix]:
    """Return shapes and scales (...) of the Gammas of maximum likelihood of (..., n) values.

    ``censored``: how many more values there are, of which only is known that none is below the largest of the n. EM
    puts their expectations in their place: with z = largest / scale,

        E[x | x > largest] = shape · scale · Q(shape + 1, z) / Q(shape, z),
        E[log x | x > largest] = log scale + ∂ log Γ(shape, z) / ∂ shape.
    """
    n = values.shape[-1]
    mean, log_mean, end = values.mean(axis=-1), np.log(values).mean(axis=-1), values.max(axis=-1)
    shape, scale = _most_likely(mean, log_mean)
    for _ in range(EM_STEPS if censored else 0):
        z = end / scale
        beyond = shape * scale * np.exp(_log_tail(shape + 1, z) - _log_tail(shape, z))
        h = 1e-4 * shape
        rise = (_log_tail(shape + h, z) - _log_tail(shape - h, z) + gammaln(shape + h) - gammaln(shape - h)) / (2 * h)
        means = (n * mean + censored * beyond) / (n + censored)
        log_means = (n * log_mean + censored * (np.log(scale) + rise)) / (n + censored)
        former, (shape, scale) = shape, _most_likely(means, log_means)
        if np.all(np.abs(shape - former) <= 1e-7 * shape):
            break
    return shape, scale


def _log_tail(shape: Matrix, z: Matrix) -> Matrix:
    tail: Matrix = np.log(np.maximum(gammaincc(shape, z), np.finfo(np.float64).tiny))
    return tail


def _most_likely(mean: Matrix, log_mean: Matrix) -> tuple[Matrix, Matrix]:
    """Return shape and scale of the Gamma of maximum likelihood of values with this mean and mean logarithm."""
    gap = np.maximum(np.log(mean) - log_mean, 1e-9)  # 0 for equal values: the Gamma would be a point
    shape = (3 - gap + np.sqrt((gap - 3) ** 2 + 24 * gap)) / (12 * gap)
    for _ in range(4):  # Newton's method; the start is right to 1.5 %
        shape = shape - (np.log(shape) - digamma(shape) - gap) / (1 / shape - polygamma(1, shape))
    return shape, mean / shape


@lru_cache(maxsize=64)
def _clean_draws(rule: Rule, k: int, rung: int) -> Matrix:
    """Return the nominal p-values of simulated clean matrices; they do not depend on the scale of r."""
    generator = np.random.default_rng((k, rung + 1000))
    draws = generator.gamma(np.exp(rung / SHAPES_AN_E_FOLD), size=(DRAWS, k, k))
    return overall(compare(np.maximum(draws, np.finfo(np.float64).tiny), rule)[0], rule)
