"""Anytime-valid tests of a success probability: look after every vote, stop when you like, at one alpha.

Two tests, both *betting* ones: a gambler starts with wealth 1 against the claim that the success probability is (at
most) tau, and by Ville's inequality her wealth ever reaches 1 / alpha with probability at most alpha if it is true.

* Krichevsky and Trofimov's bets know no tau, so their confidence sequence answers every tau at once, both ways.
* A `ThresholdTest` bets against p <= tau only, spreading its stake evenly over the scales of p - tau that the votes
  affordable can resolve. Opened for increasing tau, each when the one before was rejected, such tests share one
  stream and one alpha: the first true claim is the only one that can be rejected wrongly (fixed-sequence testing).
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.optimize import root_scalar
from scipy.special import betaln, logsumexp

from certify.binomial import check_alpha
from certify.errors import InputError

FloatArray = np.ndarray[tuple[int, ...], np.dtype[np.float64]]
BoolArray = np.ndarray[tuple[int, ...], np.dtype[np.bool_]]
Counts = np.ndarray[tuple[int, ...], np.dtype[np.int64]] | FloatArray | int

_SCALE_RATIO = 4.0
_HEADROOM = 1.1
_ROOT_STEPS = 60
# Rounding in a log-wealth of up to 1e7 votes; added to the wealth that rejects, so that a rejection is never due to it.
_ROUNDING = 1e-8


def kt_log_wealth(successes: Counts, trials: Counts, tau: FloatArray | float) -> FloatArray:
    """Log-wealth of Krichevsky and Trofimov's bets against "the success probability is tau".

    Proves: If it is tau, exp of this is a nonnegative martingale that starts at 1, so it ever reaches 1 / alpha with
    probability at most alpha.

    Args:
        successes: Hits so far; array or scalar.
        trials: Votes so far, >= successes.
        tau: The claimed probability, in (0, 1).

    Source: Krichevsky & Trofimov (1981); Orabona & Jun (2024); Voracek (2024) for smoothing.
    """
    h, f = np.asarray(successes, np.float64), np.asarray(trials, np.float64) - np.asarray(successes, np.float64)
    return betaln(h + 0.5, f + 0.5) - betaln(0.5, 0.5) - h * np.log(tau) - f * np.log1p(-np.asarray(tau))


def kt_bounds(successes: Counts, trials: Counts, alpha: float) -> tuple[FloatArray, FloatArray]:
    """The interval of probabilities that Krichevsky and Trofimov's bets have not rejected.

    Proves: With probability at least 1 - alpha it contains the true probability at every time, in both directions
    together; so does the intersection of all intervals so far.

    Args:
        successes: (n,) hits so far.
        trials: (n,) votes so far; >= 1.
        alpha: Failure probability.

    Returns: Lower and upper ends, (n,) each, rounded outwards.

    Raises:
        InputError: `alpha` is out of range.
    """
    check_alpha(alpha)
    h, t = np.atleast_1d(np.asarray(successes, np.float64)), np.atleast_1d(np.asarray(trials, np.float64))
    rejects = -math.log(alpha) + _ROUNDING
    best = h / t

    def search(inside: FloatArray, outside: FloatArray) -> FloatArray:
        """Bisect for the end of the interval; returns points that are rejected, hence bounds."""
        for _ in range(_ROOT_STEPS):
            middle = (inside + outside) / 2
            with np.errstate(divide="ignore", invalid="ignore"):
                out = kt_log_wealth(h, t, middle) > rejects
            outside, inside = np.where(out, middle, outside), np.where(out, inside, middle)
        return outside

    return search(best, np.zeros_like(best)), search(best, np.ones_like(best))


@dataclass(frozen=True, slots=True, eq=False)
class ThresholdTest:
    """A test of "the success probability is at most tau" that may be looked at after every vote.

    The stake is split evenly over alternatives p > tau, each betting its likelihood ratio against tau. Every ratio is a
    supermartingale for every p <= tau, and so is their mean.

    Attributes:
        tau: The claim.
        alpha: Its probability of being rejected, ever, if true.
        log_gain: (k,) log(p / tau).
        log_loss: (k,) log((1 - p) / (1 - tau)); -inf for p = 1.
    """

    tau: float
    alpha: float
    log_gain: FloatArray
    log_loss: FloatArray

    def log_wealth(self, successes: Counts, trials: Counts) -> FloatArray:
        """Log of the mean wealth over the alternatives, in log space throughout."""
        h = np.asarray(successes, np.float64)[..., None]
        f = np.asarray(trials, np.float64)[..., None] - h
        losses = np.where(f == 0, 0.0, f * np.where(f == 0, 0.0, self.log_loss))
        return logsumexp(h * self.log_gain + losses, axis=-1) - math.log(len(self.log_gain))

    def rejects(self, successes: Counts, trials: Counts) -> BoolArray:
        """Whether the claim is rejected now.

        Proves: If the success probability is at most tau, this is ever true with probability at most alpha. A success
        rate of tau or less never rejects, whatever the rounding.
        """
        above = np.asarray(successes, np.float64) > self.tau * np.asarray(trials, np.float64)
        return above & (self.log_wealth(successes, trials) >= -math.log(self.alpha) + _ROUNDING)


@lru_cache(maxsize=256)
def threshold_test(tau: float, alpha: float, horizon: int) -> ThresholdTest:
    """The test whose alternatives would each be certified within `horizon` votes on average.

    The alternatives' expected times log(1 / alpha) / KL(p, tau) form a geometric grid from the horizon down to p = 1,
    the fastest. A truth between two alternatives costs a few per cent; the even split costs the log of their number.
    Neither touches validity.

    Args:
        tau: The claim, in (0, 1).
        alpha: Failure probability.
        horizon: The most votes that will be drawn.

    Raises:
        InputError: a value is out of range.

    Source: mixtures of likelihood ratios: Robbins (1970); Howard et al. (2021).
    """
    check_alpha(alpha)
    if not 0 < tau < 1:
        raise InputError(f"need 0 < tau < 1; got {tau!r}")
    needed, log_tau, log_rest = -math.log(alpha), math.log(tau), math.log1p(-tau)

    def divergence(log_q: float) -> float:
        """KL(p, tau) for p = 1 - exp(log_q), accurate for p near 1."""
        q = math.exp(log_q)
        return (1 - q) * (math.log1p(-q) - log_tau) + q * (log_q - log_rest)

    log_q: list[float] = []
    fastest = needed / -log_tau
    time = horizon / _HEADROOM
    while time > fastest:
        goal = needed / time
        # From p = 1 (KL is largest) to p = tau (KL is zero).
        log_q.append(root_scalar(lambda u, goal=goal: divergence(u) - goal, bracket=(-700.0, log_rest)).root)
        time /= _SCALE_RATIO
    return ThresholdTest(
        tau=tau,
        alpha=alpha,
        log_gain=np.array([math.log1p(-math.exp(u)) - log_tau for u in log_q] + [-log_tau]),
        log_loss=np.array([u - log_rest for u in log_q] + [-np.inf]),
    )
