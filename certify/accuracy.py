"""What a set of per-example certificates says about the population the examples came from."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import ndtri
from torch import Tensor

from certify.binomial import GUARD, binomial_test, check_alpha, is_whole, lower_confidence_bound
from certify.certificate import Certificate, PerExample
from certify.errors import InputError
from certify.rng import Stream

FloatArray = np.ndarray[tuple[int, ...], np.dtype[np.float64]]


@dataclass(frozen=True, slots=True, eq=False)
class CertifiedAccuracy:
    """Certified accuracy on a sample, and what it proves about the population.

    Attributes:
        radii: (k,) the radii asked for.
        observed: (k,) share of the m examples certified correct at each radius; a statistic, not a bound.
        lower: (k,) population lower bound, at confidence 1 - rho for each radius by itself.
        band: (k,) population lower bound, at confidence 1 - rho for all radii together.
        joint: (k,) lower bound on the true share among these m examples, which stand for no others, at confidence
            1 - rho for each radius by itself; see `joint_lower_bound`.
        m: Number of examples.
        alpha: Failure probability of each certificate; 0.0 for deterministic ones.
        rho: Failure probability of `lower`, of `band`, and of `joint`.
    """

    radii: FloatArray
    observed: FloatArray
    lower: FloatArray
    band: FloatArray
    joint: FloatArray
    m: int
    alpha: float
    rho: float


@dataclass(frozen=True, slots=True)
class AverageRadius:
    """Average certified radius of a sample (ACR), how far it may be from the population's, and what it proves.

    Attributes:
        value: Mean over the m examples of the certified radius where correct, 0 elsewhere; a statistic, not a bound.
        se: Its standard error over examples; inf for a single one.
        estimate: Two-sided interval for the population's mean, about 1 - rho. Not proved.
        lower: Population lower bound on the mean *robust* radius of the subject, at confidence 1 - rho. Proved.
        m: Number of examples.
        alpha: Failure probability of each certificate; 0.0 for deterministic ones.
        rho: Failure probability of `lower`, and nominally of `estimate`.
    """

    value: float
    se: float
    estimate: tuple[float, float]
    lower: float
    m: int
    alpha: float
    rho: float


def scores(certificate: Certificate, y: Tensor) -> FloatArray:
    """Each example's certified radius where the prediction is its label, -inf elsewhere.

    Raises:
        InputError: `y` has another length.
    """
    if y.shape != (len(certificate),):
        raise InputError(f"need one label per example, ({len(certificate)},); got {tuple(y.shape)}")
    return np.where((certificate.prediction == y).numpy(), certificate.radius.numpy(), -np.inf)


def certified_accuracy(
    certificate: Certificate, y: Tensor, radii: Sequence[float], *, rho: float = 0.05
) -> CertifiedAccuracy:
    """Certified accuracy of the certificate's subject at each radius.

    Proves: With probability at least 1 - rho over test examples and certifier draws together, at least `lower` (at one
    radius) or `band` (at all radii at once) of the population is classified correctly and keeps its class
    throughout the ball, provided that the examples are independent draws from it.

    Args:
        certificate: For m examples.
        y: (m,) labels.
        radii: Radii >= 0 in the certificate's norm and units.
        rho: Failure probability; 0 < rho <= 0.5, for the band's inequality is proved no further.

    Raises:
        InputError: a radius is negative or not finite, `rho` is out of range, or lengths differ.

    Source: The chance that a random example is *reported* certified correct is at most c + (1 - c) * alpha, with c the
        true share; Clopper-Pearson or the one-sided Dvoretzky-Kiefer-Wolfowitz inequality (Massart 1990) bounds it.
    """
    return accuracy_of_scores(scores(certificate, y), radii, alpha=_alpha(certificate), rho=rho)


def _alpha(certificate: Certificate) -> float:
    return certificate.guarantee.alpha if isinstance(certificate.guarantee, PerExample) else 0.0


def accuracy_of_scores(
    score: FloatArray, radii: Sequence[float], *, alpha: float, rho: float = 0.05
) -> CertifiedAccuracy:
    """`certified_accuracy` from the scores of any rows, such as a published log whose alpha is taken on trust."""
    _check(score, alpha, rho)
    grid = check_radii(radii)
    m = len(score)
    hits = (score[None, :] >= grid[:, None]).sum(1)
    pointwise = np.array([lower_confidence_bound(int(k), m, rho) for k in hits])
    return CertifiedAccuracy(
        radii=grid,
        observed=hits / m,
        lower=_discount(pointwise, alpha),
        band=_discount(hits / m - _band_width(m, rho), alpha),
        joint=np.array([joint_lower_bound(int(k), m, alpha, rho) for k in hits]),
        m=m,
        alpha=alpha,
        rho=rho,
    )


def _check(score: FloatArray, alpha: float, rho: float) -> None:
    check_alpha(rho, "rho")
    if rho > 0.5:  # beyond, Massart's constant in the one-sided inequality is not proved
        raise InputError(f"need rho <= 0.5 for a band; got {rho!r}")
    if not 0 <= alpha < 1:
        raise InputError(f"need 0 <= alpha < 1; got {alpha!r}")
    if len(score) == 0:
        raise InputError("need at least one example; got 0")


def check_radii(radii: Sequence[float]) -> FloatArray:
    """Radii as an array.

    Raises:
        InputError: one is negative or not finite.
    """
    grid = np.asarray(radii, np.float64)
    if grid.ndim != 1 or not np.isfinite(grid).all() or (grid < 0).any():
        raise InputError(f"need finite radii >= 0; got {list(radii)!r}")
    return grid


def _band_width(m: int, rho: float) -> float:
    return math.sqrt(math.log(1 / rho) / (2 * m))


def _discount(reported: FloatArray, alpha: float) -> FloatArray:
    """From a lower bound on the share reported certified correct to one on the share that truly is."""
    return np.maximum(0.0, (reported - alpha) / (1 - alpha))


def joint_lower_bound(certified: int, examples: int, alpha: float, rho: float) -> float:
    """Bound from below how many of these very examples are truly certified correct, given that certificates may fail.

    Proves: With probability at least 1 - rho over the certifier's draws, which are independent between examples, the
    subject is right on at least this share of these `examples` examples, throughout the ball asked for. It covers
    certificate failures on this very test set and not test sampling: `CertifiedAccuracy.lower` covers both.

    Args:
        certified: Examples reported certified correct; 0 <= certified <= examples.
        examples: All examples, certified or not, chosen without a look at the certificates.
        alpha: Failure probability of each certificate; 0 <= alpha < 1.
        rho: Failure probability of the bound; 0 < rho < 1.

    Returns: The smallest g with P(Bin(examples - g, alpha) >= certified - g) > rho, over `examples`; a tail that
        equals rho up to rounding counts as above it.

    Raises:
        InputError: a count, `alpha` or `rho` is outside its range.

    Source: With g true ones, at most g + Bin(examples - g, alpha) are reported, stochastically; a test of every g,
        inverted. Tighter than Cohen et al. (2019), theorem 6, which bounds the same by Bernstein's inequality.

    >>> joint_lower_bound(300, 500, alpha=0.001, rho=0.001)
    0.594
    """
    if not is_whole(examples) or examples < 1:
        raise InputError(f"need an integer number of examples >= 1; got {examples!r}")
    if not is_whole(certified) or not 0 <= certified <= examples:
        raise InputError(f"need an integer certified with 0 <= certified <= examples = {examples}; got {certified!r}")
    if not 0 <= alpha < 1:
        raise InputError(f"need 0 <= alpha < 1; got {alpha!r}")
    check_alpha(rho, "rho")
    # The count reported grows stochastically with g, so the tail does; at g = certified it is 1. The guard can only
    # lower the bound.
    low, high = 0, int(certified)
    while low < high:
        g = (low + high) // 2
        above = binomial_test(certified - g, examples - g, alpha, tail="upper") > rho * (1 - GUARD)
        low, high = (low, g) if above else (g + 1, high)
    return low / examples


_RESAMPLES = 5000
_DRAWS_AT_ONCE = 2**22


def average_certified_radius(
    certificate: Certificate, y: Tensor, *, rho: float = 0.05, rng: Stream | None = None
) -> AverageRadius:
    """Mean over examples of the certified radius where correct, 0 elsewhere (ACR).

    It grows with n and with alpha, so it is reported beside both, and compared only on the same examples.

    Proves: With probability at least 1 - rho over test examples and certifier draws together, the population's mean
    robust radius (the distance to the nearest input the subject gets wrong; 0 where it is wrong already) is at least
    `lower`, provided that the examples are independent draws from it. Nothing is assumed of the radii's distribution.
    `estimate` is none of this: it is an interval for the mean of reported radii, good for large m.

    Args:
        certificate: For m examples.
        y: (m,) labels.
        rho: Failure probability; 0 < rho <= 0.5, as for `certified_accuracy`.
        rng: With a stream, `estimate` is the percentile bootstrap of 5,000 resamples; without, the normal interval.

    Raises:
        InputError: `rho` is out of range, lengths differ, or a radius is infinite.

    Source: Zhai et al. (2020). The bound is the integral of the band of `certified_accuracy` over all radii
        (Anderson 1969), for a mean is the integral of its survival function.
    """
    return average_of_scores(scores(certificate, y), alpha=_alpha(certificate), rho=rho, rng=rng)


def average_of_scores(
    score: FloatArray, *, alpha: float, rho: float = 0.05, rng: Stream | None = None
) -> AverageRadius:
    """`average_certified_radius` from scores."""
    _check(score, alpha, rho)
    radius = reported_radius(score)
    value, se, estimate = mean_estimate(radius, rho)
    if rng is not None:
        estimate = _bootstrap(radius, rho, rng)
    m = len(radius)
    steps = np.diff(np.sort(radius), prepend=0.0)
    share_at_least = np.arange(m, 0, -1) / m
    lower = float(steps @ _discount(share_at_least - _band_width(m, rho), alpha))
    return AverageRadius(
        value=value,
        se=se,
        estimate=(max(0.0, estimate[0]), estimate[1]),
        lower=lower * (1 - GUARD),
        m=m,
        alpha=alpha,
        rho=rho,
    )


def reported_radius(score: FloatArray) -> FloatArray:
    """Certified radius where correct, 0 elsewhere: what ACR is the mean of.

    Raises:
        InputError: a score is nan or +inf, and has no mean.
    """
    if not (score < np.inf).all():
        raise InputError("need finite radii for an average; got an infinite one, or nan")
    return np.maximum(score, 0.0)


def mean_estimate(values: FloatArray, rho: float) -> tuple[float, float, tuple[float, float]]:
    """Mean, standard error, and the normal interval at about 1 - rho; one value leaves the error infinite."""
    mean = float(np.mean(values))
    se = float(np.std(values, ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else math.inf
    half = float(ndtri(1 - rho / 2)) * se
    return mean, se, (mean - half, mean + half)


def _bootstrap(values: FloatArray, rho: float, rng: Stream) -> tuple[float, float]:
    generator, m = rng.generator(), len(values)
    at_once = max(1, _DRAWS_AT_ONCE // m)
    means = [
        values[torch.randint(m, (min(at_once, _RESAMPLES - done), m), generator=generator).numpy()].mean(1)
        for done in range(0, _RESAMPLES, at_once)
    ]
    low, high = np.quantile(np.concatenate(means), (rho / 2, 1 - rho / 2))
    return float(low), float(high)
