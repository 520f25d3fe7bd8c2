import numpy as np
import pytest
from scipy import stats
from scipy.optimize import minimize

from undoor.defenses.post_training.gamma_null import exceedance, fit_gamma, infer
from undoor.errors import UndoorError

NULL = stats.gamma(5, scale=0.3)


def clean_matrix(generator, classes=10):
    """Return a matrix r without a backdoor."""
    return NULL.rvs((classes, classes), random_state=generator)


def test_the_fit_is_that_of_scipy():
    values = NULL.rvs(81, random_state=0)
    shape, _, scale = stats.gamma.fit(values, floc=0)
    assert fit_gamma(values) == pytest.approx((shape, scale), rel=1e-4)


def test_the_censored_fit_is_that_of_scipy():
    values = np.sort(NULL.rvs(90, random_state=1))
    data = stats.CensoredData(uncensored=values[:81], right=np.full(9, values[80]))

    def loss(logs):
        return -(stats.gamma.logpdf(values[:81], np.exp(logs[0]), scale=np.exp(logs[1])).sum()) - 9 * stats.gamma.logsf(
            values[80], np.exp(logs[0]), scale=np.exp(logs[1])
        )

    shape, scale = fit_gamma(values[:81], censored=9)
    assert (shape, scale) == pytest.approx(np.exp(minimize(loss, [1, -1], tol=1e-9).x), rel=1e-3)
    # scipy's own censored fit is no more likely, wherever its search ends.
    fitted = stats.gamma.fit(data, floc=0)
    assert loss(np.log([shape, scale])) <= loss(np.log([fitted[0], fitted[2]])) + 1e-6


def test_exceedance_is_the_formula_and_precise_in_the_tail():
    assert exceedance(np.array([1.5]), 5, 0.3, 90) == pytest.approx(1 - NULL.cdf(1.5) ** 90)
    assert exceedance(np.array([30.0]), 5, 0.3, 90) == pytest.approx(90 * NULL.sf(30), rel=1e-6)
    assert 0 < exceedance(np.array([30.0]), 5, 0.3, 90)[0] < 1e-30


@pytest.mark.parametrize("rule", ["A", "B"])
@pytest.mark.parametrize("classes", [4, 10])
def test_p_is_uniform_on_clean_matrices(rule, classes):
    generator = np.random.default_rng(0)
    p = [infer(clean_matrix(generator, classes), rule).p for _ in range(300)]
    assert stats.kstest(p, "uniform").pvalue > 0.05


def test_p_is_not_uniform_if_the_smallest_are_fitted_as_if_they_were_all():
    generator = np.random.default_rng(0)
    p = []
    for _ in range(100):
        ordered = np.sort(clean_matrix(generator)[~np.eye(10, dtype=bool)])
        p.append(exceedance(ordered[-1:], *fit_gamma(ordered[:81]), 90)[0])
    assert stats.kstest(p, "uniform").pvalue < 1e-6
    assert np.mean(np.array(p) <= 0.05) > 0.2


def test_p_does_not_depend_on_the_scale_or_the_order_of_the_classes():
    r = clean_matrix(np.random.default_rng(3))
    order = np.random.default_rng(4).permutation(10)
    for rule in "AB":
        plain, scaled, permuted = (infer(matrix, rule) for matrix in (r, 50 * r, r[np.ix_(order, order)]))
        assert scaled.p == plain.p
        assert scaled.nominal == pytest.approx(plain.nominal, rel=1e-3)
        assert permuted.nominal == pytest.approx(plain.nominal, rel=1e-3)
        assert tuple(order[list(permuted.pair)]) == plain.pair


def test_both_rules_find_a_close_pair_and_b_finds_many_sources():
    r = clean_matrix(np.random.default_rng(5))
    single, many = r.copy(), r.copy()
    single[2, 7] = 8
    many[:, 7] = 6 + 0.1 * np.arange(10)
    for rule in "AB":
        assert infer(r, rule).p > 0.05
        assert infer(single, rule).pair == (2, 7)
        assert infer(single, rule).p <= 0.01
    inference = infer(many, "B")
    assert inference.p <= 0.01
    assert inference.pair == (9, 7)
    assert (np.delete(inference.by_pair[:, 7], 7) < 0.05).all()


def test_equal_values_are_no_evidence():
    assert infer(np.ones((5, 5)), "A").p == 1
    assert infer(np.ones((5, 5)), "B").p == 1


@pytest.mark.parametrize(("r", "message"), [(np.ones((2, 2)), "3 or more"), (np.zeros((4, 4)), "finite and above 0")])
def test_a_matrix_that_cannot_be_judged_is_refused(r, message):
    with pytest.raises(UndoorError, match=message):
        infer(r, "A")
