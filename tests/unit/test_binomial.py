"""Exact values of the binomial bounds."""

import math
from fractions import Fraction

import pytest
from scipy.special import ndtri
from statsmodels.stats.proportion import proportion_confint

from certify import Gaussian, InputError, lower_confidence_bound, upper_confidence_bound
from certify.accuracy import joint_lower_bound
from certify.binomial import GUARD, binomial_test, fewest_votes

# (k, n, alpha) -> bound and normal quantile, to every digit of the published-by-specification table.
GOLDEN = [
    (100, 100, 0.001, ".9332543008", "1.50047502"),
    (99, 100, 0.001, ".9113731113", "1.34925904"),
    (100_000, 100_000, 0.001, ".9999309248", "3.81145656"),
    (99_000, 100_000, 0.001, ".9889893404", "2.28999996"),
    (80_000, 100_000, 0.001, ".7960660712", ".82765156"),
    (50_200, 100_000, 0.001, ".4971089478", None),
    (100_000, 100_000, 0.01, ".9999539494", "3.91051043"),
]


def digits(value: float, like: str) -> str:
    """The value printed with as many decimals as the golden text."""
    return f"{value:.{len(like.partition('.')[2])}f}".lstrip("0")


@pytest.mark.parametrize(("k", "n", "alpha", "bound", "z"), GOLDEN)
def test_golden_lower_bounds(k: int, n: int, alpha: float, bound: str, z: str | None) -> None:
    p = lower_confidence_bound(k, n, alpha)
    assert digits(p, bound) == bound
    if z is None:
        assert p < 0.5
        assert Gaussian(1.0).radius(p) == 0.0
    else:
        assert digits(float(ndtri(p)), z) == z.lstrip("0")
        assert digits(Gaussian(1.0).radius(p), z) == z.lstrip("0")


def exact_upper_tail(k: int, n: int, p: Fraction) -> Fraction:
    return sum((math.comb(n, j) * p**j * (1 - p) ** (n - j) for j in range(k, n + 1)), Fraction(0))


@pytest.mark.parametrize("alpha", [1e-6, 0.001, 0.05])
@pytest.mark.parametrize("n", [10, 60, 150])
def test_the_stored_float_is_itself_a_bound(n: int, alpha: float) -> None:
    """In exact rational arithmetic, P(B >= k) <= alpha at the lower bound; a quantile rounded to nearest fails."""
    for k in range(n + 1):
        lower, upper = lower_confidence_bound(k, n, alpha), upper_confidence_bound(k, n, alpha)
        if k > 0:
            tail = exact_upper_tail(k, n, Fraction(lower))
            assert tail <= Fraction(alpha)
            assert tail >= Fraction(alpha) - 2 * n * Fraction(GUARD)  # the tail's slope in p is at most n
        if k < n:
            tail = 1 - exact_upper_tail(k + 1, n, Fraction(upper))
            assert tail <= Fraction(alpha)
            assert tail >= Fraction(alpha) - 2 * n * Fraction(GUARD)


def test_rounding_to_nearest_would_be_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("certify.binomial._step", lambda p: 0.0)
    unsound = [
        k for k in range(1, 151) if exact_upper_tail(k, 150, Fraction(lower_confidence_bound(k, 150, 0.001))) > 0.001
    ]
    assert unsound


@pytest.mark.parametrize(("k", "n"), [(0, 10), (1, 10), (7, 10), (10, 10), (503, 1000), (99_000, 100_000)])
@pytest.mark.parametrize("alpha", [0.001, 0.01, 0.2])
def test_agrees_with_statsmodels(k: int, n: int, alpha: float) -> None:
    """Their interval is two-sided: our one-sided alpha is their 2 * alpha."""
    low, high = proportion_confint(k, n, alpha=2 * alpha, method="beta")
    assert lower_confidence_bound(k, n, alpha) == pytest.approx(0.0 if k == 0 else low, rel=1e-9)
    assert upper_confidence_bound(k, n, alpha) == pytest.approx(1.0 if k == n else high, rel=1e-9)


def test_edges() -> None:
    assert lower_confidence_bound(0, 5, 0.01) == 0.0
    assert upper_confidence_bound(5, 5, 0.01) == 1.0
    assert lower_confidence_bound(1, 1, 0.25) == pytest.approx(0.25)


def test_bounds_are_monotone() -> None:
    bounds = [lower_confidence_bound(k, 50, 0.01) for k in range(51)]
    assert bounds == sorted(bounds)
    by_alpha = [lower_confidence_bound(40, 50, a) for a in (0.001, 0.01, 0.1)]
    assert by_alpha == sorted(by_alpha)
    unanimous = [lower_confidence_bound(n, n, 0.01) for n in (1, 10, 100, 1000)]
    assert unanimous == sorted(unanimous)


@pytest.mark.parametrize(
    ("k", "n", "alpha", "rule"),
    [
        (-1, 10, 0.1, "0 <= successes <= trials = 10; got -1"),
        (11, 10, 0.1, "0 <= successes <= trials = 10; got 11"),
        (1.5, 10, 0.1, "integer successes"),
        (0, 0, 0.1, "trials >= 1; got 0"),
        (1, 10, 0.0, "need 0 < alpha < 1; got 0.0"),
        (1, 10, 1.5, "need 0 < alpha < 1; got 1.5"),
        (1, 10, float("nan"), "need 0 < alpha < 1; got nan"),
        (math.nan, 10, 0.1, "integer successes .*; got nan"),
        (math.inf, 10, 0.1, "integer successes .*; got inf"),
        (1, math.nan, 0.1, "integer trials >= 1; got nan"),
        (1, math.inf, 0.1, "integer trials >= 1; got inf"),
        (1, 10.5, 0.1, "integer trials >= 1; got 10.5"),
    ],
)
def test_misuse(k: int, n: int, alpha: float, rule: str) -> None:
    for bound in (lower_confidence_bound, upper_confidence_bound):
        with pytest.raises(InputError, match=rule):
            bound(k, n, alpha)


def test_counts_of_examples_are_checked_likewise() -> None:
    for certified, examples, rule in ((math.nan, 10, "integer certified"), (1, math.inf, "integer number of examples")):
        with pytest.raises(InputError, match=rule):
            joint_lower_bound(certified, examples, alpha=0.001, rho=0.05)  # type: ignore[arg-type]


def test_binomial_test_is_exact() -> None:
    assert binomial_test(3, 3, 0.5, tail="upper") == 0.125
    assert binomial_test(0, 3, 0.5, tail="upper") == 1.0
    assert binomial_test(1, 3, 0.5, tail="lower") == 0.5
    with pytest.raises(InputError, match='need tail "upper" or "lower"'):
        binomial_test(1, 3, 0.5, tail="both")


@pytest.mark.parametrize("alpha", [0.5, 0.05, 0.001, 2.0**-20])
def test_fewest_votes_is_the_first_that_can_certify(alpha: float) -> None:
    n = fewest_votes(alpha)
    assert lower_confidence_bound(n, n, alpha) > 0.5
    assert n == 1 or lower_confidence_bound(n - 1, n - 1, alpha) <= 0.5
