"""Exact bounds on a success probability, from counts drawn in a number fixed in advance."""

import math

from scipy.special import bdtr, bdtrc, betainc, betainccinv, betaincinv

from certify.errors import InputError

# scipy's betaincinv errs by up to 2e-14 relative (tests/unit/test_binomial.py compares it with exact rational tails);
# a step of 1e-12 towards the safe side makes the stored float a bound, at no cost that a table could show.
GUARD = 2.0**-40


def _step(p: float) -> float:
    """How far to step from a computed quantile: GUARD relative to p and 1 - p, and four units in the last place."""
    return p * ((1 - p) * GUARD + 2.0**-50)


def is_whole(count: float) -> bool:
    """Whether it is an integer in value; infinity and NaN are none."""
    return float(count).is_integer()


def _check(successes: int, trials: int, alpha: float) -> None:
    if not is_whole(trials) or trials < 1:
        raise InputError(f"need an integer trials >= 1; got {trials!r}")
    if not is_whole(successes) or not 0 <= successes <= trials:
        raise InputError(f"need an integer successes with 0 <= successes <= trials = {trials}; got {successes!r}")
    check_alpha(alpha)


def check_alpha(alpha: float, name: str = "alpha") -> None:
    """Refuse a failure probability outside (0, 1).

    Raises:
        InputError: the rule is broken.
    """
    if not 0 < alpha < 1:
        raise InputError(f"need 0 < {name} < 1; got {alpha!r}")


def lower_confidence_bound(successes: int, trials: int, alpha: float) -> float:
    """Bound a success probability from below (one-sided Clopper-Pearson).

    Proves: P(bound <= p) >= 1 - alpha for every p, if `trials` was fixed in advance and the draws are independent.
    Exact, hence conservative; rounded down, so that the stored float is itself a bound.

    Args:
        successes: Hits among the draws; 0 <= successes <= trials.
        trials: Independent draws; >= 1.
        alpha: Failure probability; 0 < alpha < 1. One-sided: never halve it.

    Returns: Bound in [0, 1]; exactly 0.0 when `successes` is 0.

    Raises:
        InputError: a count or `alpha` is outside its range.

    Source: Clopper & Pearson (1934); Cohen et al. (2019), LowerConfBound.

    >>> lower_confidence_bound(100, 100, 0.001)
    0.9332543007969...
    """
    _check(successes, trials, alpha)
    if successes == 0:
        return 0.0
    quantile = float(betaincinv(successes, trials - successes + 1, alpha))
    return max(0.0, quantile - _step(quantile))


def upper_confidence_bound(successes: int, trials: int, alpha: float) -> float:
    """Bound a success probability from above (one-sided Clopper-Pearson).

    Proves: P(bound >= p) >= 1 - alpha for every p, if `trials` was fixed in advance and the draws are independent.
    Rounded up.

    Args:
        successes: Hits among the draws; 0 <= successes <= trials.
        trials: Independent draws; >= 1.
        alpha: Failure probability; 0 < alpha < 1. One-sided.

    Returns: Bound in [0, 1]; exactly 1.0 when every draw was a hit.

    Raises:
        InputError: a count or `alpha` is outside its range.

    Source: Clopper & Pearson (1934).
    """
    _check(successes, trials, alpha)
    if successes == trials:
        return 1.0
    quantile = float(betainccinv(successes + 1, trials - successes, alpha))
    return min(1.0, quantile + _step(quantile))


_BISECTIONS = 60
_LEAST_W = 1.001


def randomized_lower_bound(successes: int, trials: int, alpha: float, w: float) -> float:
    """Bound a success probability from below with a randomised test: the exact level, where Clopper-Pearson has slack.

    Proves: P(bound <= p) >= 1 - alpha for every p, if `trials` was fixed in advance and `w` is one uniform draw, made
    once for this bound and independent of the votes. Drawing it again, or choosing it, voids the bound: store it.

    Args:
        successes: Hits among the draws; 0 <= successes <= trials.
        trials: Independent draws; >= 1.
        alpha: Failure probability; 0 < alpha < 1. One-sided.
        w: The uniform draw; 0 < w < 1.

    Returns: inf{p : P(B > k) + w P(B = k) > alpha}, rounded down; never below Clopper-Pearson's. With unanimous votes
        and w <= alpha the formula says 1; here w is then taken as 1.001 alpha, which lowers the bound and keeps it
        finite in units of radius.

    Raises:
        InputError: a count, `alpha` or `w` is outside its range.

    Source: Stevens (1950); Voracek (2024), uniformly most accurate among lower bounds.
    """
    _check(successes, trials, alpha)
    if not 0 < w < 1:
        raise InputError(f"need 0 < w < 1; got {w!r}")
    if successes == trials:
        return (alpha / max(w, _LEAST_W * alpha)) ** (1 / trials) * (1 - 2.0**-50)
    if successes == 0 and w > alpha:
        return 0.0
    k, n = successes, trials

    def excess(p: float) -> float:
        at_least = float(betainc(k, n - k + 1, p)) if k else 1.0
        return w * at_least + (1 - w) * float(betainc(k + 1, n - k, p)) - alpha

    low, high = lower_confidence_bound(k, n, alpha), lower_confidence_bound(k + 1, n, alpha)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (low, middle) if excess(middle) > 0 else (middle, high)
    return max(lower_confidence_bound(k, n, alpha), low - _step(low))


def binomial_test(successes: int, trials: int, p: float, *, tail: str) -> float:
    """Exact one-sided p-value: the chance of a count at least (`tail="upper"`) or at most ("lower") this one under `p`.

    Raises:
        InputError: a count is outside its range, or the tail is neither "upper" nor "lower".
    """
    _check(successes, trials, 0.5)
    if tail == "upper":
        return 1.0 if successes == 0 else float(bdtrc(successes - 1, trials, p))
    if tail == "lower":
        return float(bdtr(successes, trials, p))
    raise InputError(f'need tail "upper" or "lower"; got {tail!r}')


def fewest_votes(alpha: float) -> int:
    """The fewest votes with which any certificate is possible: n unanimous votes bound p_A by alpha^(1/n) > 1/2.

    Raises:
        InputError: `alpha` is outside (0, 1).

    >>> fewest_votes(0.001)
    10
    """
    check_alpha(alpha)
    return math.floor(-math.log2(alpha)) + 1
