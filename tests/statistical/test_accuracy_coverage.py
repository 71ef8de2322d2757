"""How often bounds on accuracy fail, at fixed sample sizes; a false alarm once in 10^9 runs of each test.

Mutants that must die here: the joint bound as the code of Cohen et al. computes it (without the factor 2 under the root
and without 1/(1 - alpha)), not discounted at all, and one example higher; the mean radius without discount and without
band; McNemar's test with mid-p and with chi-squared; Wald's interval for a difference.
"""

import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy.stats import binom, binomtest, chi2, norm

from certify.accuracy import average_of_scores, joint_lower_bound
from certify.comparison import compare_scores

FALSE_ALARM = 1e-9


def is_refuted(failures: int, repetitions: int, rho: float) -> bool:
    """Whether so many failures have chance below FALSE_ALARM if each has chance at most rho."""
    return binom.sf(failures - 1, repetitions, rho) < FALSE_ALARM


# --- joint bound --------------------------------------------------------------------------------------------------

JointBound = Callable[[int, int, float, float], float]
REPETITIONS = 100_000


def joint_failures(bound: JointBound, true: int, m: int, alpha: float, rho: float) -> int:
    """Report m examples: those `true` ones that hold, and every other one with the chance that alpha allows."""
    reported = true + np.random.default_rng(0).binomial(m - true, alpha, REPETITIONS)
    counts, times = np.unique(reported, return_counts=True)
    too_high = [bound(int(y), m, alpha, rho) > true / m for y in counts]
    return int(times[too_high].sum())


def as_in_the_code(certified: int, m: int, alpha: float, rho: float) -> float:
    log = math.log(1 / rho)
    return certified / m - alpha - math.sqrt(alpha * (1 - alpha) * log / m) - log / (3 * m)


def theorem_6(certified: int, m: int, alpha: float, rho: float) -> float:
    log = math.log(1 / rho)
    reported = certified / m - alpha - math.sqrt(2 * alpha * (1 - alpha) * log / m) - log / (3 * m)
    return reported / (1 - alpha)


def undiscounted(certified: int, m: int, alpha: float, rho: float) -> float:
    return certified / m


def one_higher(certified: int, m: int, alpha: float, rho: float) -> float:
    return joint_lower_bound(certified, m, alpha, rho) + 1 / m


SETTINGS = [
    # true examples, m, alpha, rho
    (300, 500, 0.001, 0.001),
    (300, 500, 0.01, 0.05),
    (0, 10_000, 0.05, 0.001),
    (6000, 10_000, 0.1, 0.2),
    (499, 500, 0.05, 0.06),
    (5, 20, 0.3, 0.2),
]


@pytest.mark.parametrize(("true", "m", "alpha", "rho"), SETTINGS)
def test_the_joint_bound_fails_at_most_rho(true: int, m: int, alpha: float, rho: float) -> None:
    assert not is_refuted(joint_failures(joint_lower_bound, true, m, alpha, rho), REPETITIONS, rho)


@pytest.mark.parametrize(
    ("mutant", "setting"),
    [
        (as_in_the_code, SETTINGS[2]),
        (undiscounted, SETTINGS[0]),
        (undiscounted, SETTINGS[1]),
        (one_higher, SETTINGS[5]),
    ],
)
def test_joint_mutants_die(mutant: JointBound, setting: tuple[int, int, float, float]) -> None:
    assert is_refuted(joint_failures(mutant, *setting), REPETITIONS, setting[-1])


def test_the_printed_theorem_is_no_mutant() -> None:
    """So what kills the code's version is what it drops, and not the setting."""
    assert not is_refuted(joint_failures(theorem_6, *SETTINGS[2]), REPETITIONS, SETTINGS[2][-1])


# --- average radius -----------------------------------------------------------------------------------------------


def test_the_proved_mean_fails_at_most_rho() -> None:
    """True radii are exponential with mean 1/2 where right; certificates are tight, and fail with the longest radius.

    Half of the population is right, so its mean robust radius is 1/4.
    """
    alpha, rho, m, repetitions = 0.3, 0.1, 400, 3000
    truth = 0.5 * 0.5
    rng = np.random.default_rng(1)
    failures = {"lower": 0, "undiscounted": 0, "without band": 0}
    for _ in range(repetitions):
        radius = np.where(rng.random(m) < 0.5, rng.exponential(0.5, m), -np.inf)
        score = np.where(rng.random(m) < alpha, np.maximum(radius, 10.0), radius)
        average = average_of_scores(score, alpha=alpha, rho=rho)
        failures["lower"] += average.lower > truth
        failures["undiscounted"] += average_of_scores(score, alpha=0.0, rho=rho).lower > truth
        failures["without band"] += average.value > truth
    refuted = {name: is_refuted(int(count), repetitions, rho) for name, count in failures.items()}
    assert refuted == {"lower": False, "undiscounted": True, "without band": True}


# --- paired comparison --------------------------------------------------------------------------------------------


def paired(only_first: int, only_second: int, m: int, rho: float) -> tuple[float, float, float]:
    """Interval and p-value of examples of which so many are certified by one side alone."""
    first, second = np.full(m, -np.inf), np.full(m, -np.inf)
    first[:only_first] = 1.0
    second[only_first : only_first + only_second] = 1.0
    compared = compare_scores(first, second, np.arange(m), np.arange(m), [0.5], rho=rho)
    return float(compared.lower[0]), float(compared.upper[0]), float(compared.p_value[0])


def mid_p(k: int, j: int) -> float:
    return binomtest(k, k + j, 0.5).pvalue - binom.pmf(k, k + j, 0.5)


def chi_squared(k: int, j: int) -> float:
    return float(chi2.sf((k - j) ** 2 / (k + j), 1))


def exact(k: int, j: int) -> float:
    return paired(k, j, k + j, 0.05)[2]


@pytest.mark.parametrize(
    ("test", "discordant", "level", "sound"),
    [
        (exact, 5, 0.05, True),
        (exact, 17, 0.05, True),
        (exact, 40, 0.001, True),
        (mid_p, 5, 0.05, False),
        (chi_squared, 12, 0.01, False),
    ],
)
def test_equal_certifiers_are_told_apart_at_most_as_often_as_stated(
    test: Callable[[int, int], float], discordant: int, level: float, sound: bool
) -> None:
    times = np.bincount(np.random.default_rng(2).binomial(discordant, 0.5, REPETITIONS), minlength=discordant + 1)
    rejected = sum(int(t) for k, t in enumerate(times) if t and test(k, discordant - k) <= level)
    assert is_refuted(rejected, REPETITIONS, level) is not sound


def wald(only_first: int, only_second: int, m: int, rho: float) -> tuple[float, float]:
    difference = (only_first - only_second) / m
    half = float(norm.isf(rho / 2)) * math.sqrt(max(0.0, (only_first + only_second) / m - difference**2) / m)
    return difference - half, difference + half


@pytest.mark.parametrize(("p_first", "p_second", "m"), [(0.02, 0.0, 40), (0.2, 0.1, 60), (0.5, 0.5, 30)])
def test_the_interval_of_a_difference_misses_at_most_rho(p_first: float, p_second: float, m: int) -> None:
    rho, truth = 0.1, p_first - p_second
    drawn = np.random.default_rng(3).multinomial(m, [p_first, p_second, 1 - p_first - p_second], 20_000)
    cells, times = np.unique(drawn[:, :2], axis=0, return_counts=True)
    missed = {"exact": 0, "wald": 0}
    for (k, j), count in zip(cells.tolist(), times.tolist(), strict=True):
        for name, (low, high) in (("exact", paired(k, j, m, rho)[:2]), ("wald", wald(k, j, m, rho))):
            missed[name] += count * (not low <= truth <= high)
    assert not is_refuted(missed["exact"], 20_000, rho)
    if p_second == 0:
        assert is_refuted(missed["wald"], 20_000, rho), "in so few examples none may differ, and Wald's width is 0"
