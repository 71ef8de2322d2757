"""Anytime-valid tests: golden stopping times, log-space arithmetic, edges."""

import itertools
import math

import numpy as np
import pytest
from scipy.special import betaln, logsumexp

from certify import Gaussian, InputError
from certify.adaptive import looks, threshold
from certify.confseq import kt_bounds, kt_log_wealth, threshold_test

ALPHA = 0.001
# tau -> the vote at which unanimous success, or unanimous failure, first rejects.
GOLDEN_TAU = [0.5, 0.8413447460685429, 0.9331927987311419, 0.9772498680518208, 0.9986501019683699]
ALL_SUCCESS = [13, 55, 145, 459, 8904]
ALL_FAILURE = [13, 5, 3, 3, 2]


def first(condition: np.ndarray) -> int:
    return int(np.argmax(condition)) + 1


@pytest.mark.parametrize(("tau", "success", "failure"), list(zip(GOLDEN_TAU, ALL_SUCCESS, ALL_FAILURE, strict=True)))
def test_golden_stopping_times(tau: float, success: int, failure: int) -> None:
    t = np.arange(1, 10_000)
    assert first(kt_log_wealth(t, t, tau) > -math.log(ALPHA)) == success
    assert first(kt_log_wealth(0 * t, t, tau) > -math.log(ALPHA)) == failure


@pytest.mark.parametrize("tau", GOLDEN_TAU)
def test_threshold_test_is_no_slower_on_unanimous_votes(tau: float) -> None:
    t = np.arange(1, 10_000)
    golden = ALL_SUCCESS[GOLDEN_TAU.index(tau)]
    assert first(threshold_test(tau, ALPHA, 100_000).rejects(t, t)) <= golden


def test_kt_wealth_is_the_product_of_its_bets() -> None:
    """The closed form against the bets themselves, predictor (H + 1/2) / (t + 1), one vote after another."""
    votes, tau, log_wealth, hits = [1, 1, 0, 1, 0, 0, 1, 1, 1, 1], 0.6, 0.0, 0
    for seen, vote in enumerate(votes):
        q = (hits + 0.5) / (seen + 1)
        log_wealth += math.log(q / tau) if vote else math.log((1 - q) / (1 - tau))
        hits += vote
    assert float(kt_log_wealth(hits, len(votes), tau)) == pytest.approx(log_wealth, abs=1e-12)
    assert float(kt_log_wealth(0, 0, tau)) == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("tau", [0.5, 0.8413447, 0.99865, 0.9999])
def test_threshold_wealth_is_a_fair_game_at_tau_and_unfair_below(tau: float) -> None:
    """The expected wealth after n votes, summed over all outcomes in exact binomial weights, is 1 at p = tau."""
    n = 60
    h = np.arange(n + 1)
    test = threshold_test(tau, ALPHA, 10_000)

    def expected(p: float) -> float:
        log_choose = -betaln(h + 1, n - h + 1) - math.log(n + 1)
        log_weight = log_choose + h * math.log(p) + (n - h) * math.log1p(-p)
        return float(np.exp(logsumexp(log_weight + test.log_wealth(h, np.full(n + 1, n)))))

    assert expected(tau) == pytest.approx(1.0, abs=1e-9)
    assert expected(0.9 * tau) < 1.0
    assert expected(tau + 0.9 * (1 - tau)) > 1.0


def test_a_rate_of_tau_or_less_never_rejects() -> None:
    """However many votes: the trap of tails computed outside log space."""
    for tau in (0.5, 0.9, 0.9999):
        test = threshold_test(tau, ALPHA, 10**7)
        n = np.array([10**3, 10**5, 10**7])
        assert not test.rejects(np.floor(tau * n), n).any()
        assert not test.rejects(0 * n, n).any()
        assert np.isfinite(test.log_wealth(np.floor(tau * n), n)).all()
    # and far above it always does, where exp would overflow
    assert threshold_test(0.5, ALPHA, 10**7).rejects(np.array(9 * 10**6), np.array(10**7))
    assert threshold_test(0.5, ALPHA, 10**7).log_wealth(np.array(9 * 10**6), np.array(10**7)) > 1000


def test_alternatives_span_the_horizon() -> None:
    test = threshold_test(0.9, ALPHA, 100_000)
    p = 0.9 * np.exp(test.log_gain)
    assert p[-1] == 1.0
    with np.errstate(divide="ignore", invalid="ignore"):
        kl = p * test.log_gain + np.where(p < 1, (1 - p) * test.log_loss, 0.0)
    times = -math.log(ALPHA) / kl
    assert times[0] == pytest.approx(100_000 / 1.1, rel=1e-6)
    assert all(a / b <= 4 + 1e-6 for a, b in itertools.pairwise(times))


def test_kt_bounds_are_where_the_wealth_crosses() -> None:
    h, t = np.array([0, 3, 50, 100, 99_990]), np.array([10, 10, 100, 100, 100_000])
    lower, upper = kt_bounds(h, t, 0.01)
    limit = -math.log(0.01)
    assert lower[0] == 0.0
    assert upper[3] == 1.0
    for bound, inner in ((lower[1:], 1e-9), (upper[[0, 1, 2, 4]], -1e-9)):
        which = [1, 2, 3, 4] if inner > 0 else [0, 1, 2, 4]
        assert (kt_log_wealth(h[which], t[which], bound) > limit).all()
        assert (kt_log_wealth(h[which], t[which], bound + inner) < limit + 1e-3).all()


def test_looks_add_up_and_do_not_shrink() -> None:
    for n_max in (1, 15, 16, 17, 1000, 100_000):
        steps = list(looks(n_max))
        assert sum(steps) == n_max
        assert all(a <= b for a, b in itertools.pairwise(steps[:-1]))
    total, steps = 0, list(looks(100_000))
    for step in steps[:-1]:
        assert step <= max(16, 0.05 * total)
        total += step


@pytest.mark.parametrize("radius", [0.0, 0.25, 0.7, 1.3, 1.9])
def test_threshold_inverts_the_radius_upwards(radius: float) -> None:
    noise = Gaussian(0.5)
    p = threshold(noise, radius)
    assert noise.radius(p) >= radius
    if radius:
        assert noise.radius(math.nextafter(p, 0)) < radius
    else:
        assert p == 0.5


@pytest.mark.parametrize("tau", [0.0, 1.0, -0.5, float("nan")])
def test_refuses_tau(tau: float) -> None:
    with pytest.raises(InputError, match="need 0 < tau < 1"):
        threshold_test(tau, ALPHA, 1000)


def test_refuses_alpha() -> None:
    with pytest.raises(InputError, match="need 0 < alpha < 1; got 2"):
        threshold_test(0.5, 2.0, 1000)
    with pytest.raises(InputError, match="need 0 < alpha < 1; got 2"):
        kt_bounds(np.array([1]), np.array([2]), 2.0)
