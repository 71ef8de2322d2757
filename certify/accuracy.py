"""What a set of per-example certificates says about the population the examples came from."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from certify.binomial import check_alpha, lower_confidence_bound
from certify.certificate import Certificate, PerExample
from certify.errors import InputError

FloatArray = np.ndarray[tuple[int, ...], np.dtype[np.float64]]


@dataclass(frozen=True, slots=True, eq=False)
class CertifiedAccuracy:
    """Certified accuracy on a sample, and what it proves about the population.

    Attributes:
        radii: (k,) the radii asked for.
        observed: (k,) share of the m examples certified correct at each radius; a statistic, not a bound.
        lower: (k,) population lower bound, at confidence 1 - rho for each radius by itself.
        band: (k,) population lower bound, at confidence 1 - rho for all radii together.
        m: Number of examples.
        alpha: Failure probability of each certificate; 0.0 for deterministic ones.
        rho: Failure probability of `lower`, and of `band`.
    """

    radii: FloatArray
    observed: FloatArray
    lower: FloatArray
    band: FloatArray
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
        rho: Failure probability; 0 < rho < 1.

    Raises:
        InputError: a radius is negative or not finite, `rho` is out of range, or lengths differ.

    Source: The chance that a random example is *reported* certified correct is at most c + (1 - c) * alpha, with c the
        true share; Clopper-Pearson or the one-sided Dvoretzky-Kiefer-Wolfowitz inequality (Massart 1990) bounds it.
    """
    alpha = certificate.guarantee.alpha if isinstance(certificate.guarantee, PerExample) else 0.0
    return accuracy_of_scores(scores(certificate, y), radii, alpha=alpha, rho=rho)


def accuracy_of_scores(
    score: FloatArray, radii: Sequence[float], *, alpha: float, rho: float = 0.05
) -> CertifiedAccuracy:
    """`certified_accuracy` from the scores of any rows, such as a published log whose alpha is taken on trust."""
    check_alpha(rho)
    if not 0 <= alpha < 1:
        raise InputError(f"need 0 <= alpha < 1; got {alpha!r}")
    grid = np.asarray(radii, np.float64)
    if grid.ndim != 1 or not np.isfinite(grid).all() or (grid < 0).any():
        raise InputError(f"need finite radii >= 0; got {list(radii)!r}")
    m = len(score)
    if m == 0:
        raise InputError("need at least one example; got 0")
    hits = (score[None, :] >= grid[:, None]).sum(1)
    pointwise = np.array([lower_confidence_bound(int(k), m, rho) for k in hits])
    return CertifiedAccuracy(
        radii=grid,
        observed=hits / m,
        lower=_discount(pointwise, alpha),
        band=_discount(hits / m - np.sqrt(np.log(1 / rho) / (2 * m)), alpha),
        m=m,
        alpha=alpha,
        rho=rho,
    )


def _discount(reported: FloatArray, alpha: float) -> FloatArray:
    """From a lower bound on the share reported certified correct to one on the share that truly is."""
    return np.maximum(0.0, (reported - alpha) / (1 - alpha))


def average_certified_radius(certificate: Certificate, y: Tensor) -> float:
    """Mean over examples of the certified radius where correct, 0 elsewhere (ACR).

    A statistic of this sample, in units of the input; it grows with n and with alpha, so it is reported beside both.

    Raises:
        InputError: lengths differ.

    Source: Zhai et al. (2020).
    """
    return average_of_scores(scores(certificate, y))


def average_of_scores(score: FloatArray) -> float:
    """`average_certified_radius` from scores."""
    return float(np.mean(np.maximum(score, 0.0)))
