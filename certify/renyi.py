"""The certificate of stability training (Renyi divergence) and its contemporaries, for comparison.

All of them bound the same smoothed classifier from the same two probabilities. For Gaussian noise the radius of
`Gaussian` is the largest that is true; these are what was published before it, or beside it.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from scipy.optimize import minimize_scalar
from scipy.special import ndtr, ndtri
from torch import Tensor, nn

from certify.binomial import GUARD
from certify.certificate import ABSTAIN, Certificate
from certify.errors import InputError
from certify.noise import Gaussian, Laplace
from certify.rng import Stream
from certify.smoothing import Smoothing
from certify.threat import Box
from certify.voting import BaseClassifier

_ORDERS = (math.log(0.05), math.log(20.0))
_LEAST_P_B = 1e-300
_LEAST_EPSILON = 1e-9
_LEAST_SHIFT = 1e-20


def _check(p_a: float, p_b: float | None, scale: float) -> float:
    """Refuse what is no pair of probabilities; returns p_b, or 1 - p_a where it is not given or larger."""
    if not 0 <= p_a <= 1 or not (p_b is None or 0 <= p_b <= 1):
        raise InputError(f"need probabilities 0 <= p_a, p_b <= 1; got p_a = {p_a!r}, p_b = {p_b!r}")
    if not (math.isfinite(scale) and scale > 0):
        raise InputError(f"need a finite scale > 0; got {scale!r}")
    return 1 - p_a if p_b is None else min(p_b, 1 - p_a)


def _maximise(value: Callable[[float], float], low: float, high: float) -> float:
    """The value at the best point found: of a lower bound any point gives a true one, the best gives the largest."""
    found = minimize_scalar(lambda u: -value(u), bounds=(low, high), method="bounded", options={"xatol": 1e-10})
    return max(value(float(found.x)), value(low), value(high))


def _rounded_down(radius: float, tight: float) -> float:
    """A bound computed in floats; where rounding leaves little of it, the largest radius that is true is smaller."""
    return min(radius * (1 - GUARD), tight)


def renyi_radius(p_a: float, p_b: float | None, sigma: float) -> float:
    """The L2 radius that Renyi divergence proves for Gaussian noise: the certificate of stability training (STN).

    Proves: If P(f(x + e) = A) >= p_a and P(f(x + e) = c) <= p_b for every other c, e ~ N(0, sigma^2 I), the smoothed
    classifier predicts A in the closed L2 ball of this radius. Real-valued noise. Never larger than `Gaussian`'s.

    Args:
        p_a: Lower bound on the top class; in [0, 1].
        p_b: Upper bound on every other class; 1 - p_a where None.
        sigma: Standard deviation of the noise, in input units.

    Returns: Radius >= 0, rounded down; 0.0 where p_a <= p_b. The supremum over orders 0.05 to 20; the optimum lies
        between 1.1 and 1.6.

    Raises:
        InputError: a probability or sigma is out of range.

    Source: Li, Chen, Wang & Carin (2019), theorem 1; every order > 0 is valid, not only those above 1.

    >>> round(renyi_radius(0.9, 0.1, 1.0), 8)
    1.03192956
    """
    p_b = _check(p_a, p_b, sigma)
    tight = Gaussian(sigma).radius(p_a, p_b)
    if tight == 0:
        return 0.0
    low, high = math.log(max(p_b, _LEAST_P_B)), math.log(p_a)
    rest = 1 - p_a - p_b

    def squared(log_order: float) -> float:
        order = math.exp(log_order)
        power = 1 - order
        if abs(power) < 1e-9:
            mean = (low + high) / 2  # the geometric mean, the limit at order 1
        else:
            top = max(power * low, power * high)
            terms = math.exp(power * low - top) + math.exp(power * high - top)
            mean = (top + math.log(terms / 2)) / power
        kept = rest + 2 * math.exp(mean)
        return -2 / order * math.log(kept) if kept > 0 else 0.0

    return _rounded_down(sigma * math.sqrt(max(0.0, _maximise(squared, *_ORDERS))), tight)


def pixeldp_radius(p_a: float, p_b: float | None, sigma: float) -> float:
    """The L2 radius of PixelDP for Gaussian noise.

    Proves: As `renyi_radius`, by (epsilon, delta) differential privacy with epsilon <= 1.

    Args:
        p_a: Lower bound on the top class.
        p_b: Upper bound on every other class; 1 - p_a where None.
        sigma: Standard deviation of the noise.

    Returns: Radius >= 0, rounded down: the largest L = sigma * epsilon / sqrt(2 ln(1.25 / delta)) with epsilon <= 1 and
        p_a >= exp(2 epsilon) p_b + (1 + exp(epsilon)) delta; 0.0 where that takes epsilon <= 1e-9.

    Raises:
        InputError: a probability or sigma is out of range.

    Source: Lecuyer et al. (2019), proposition 1.
    """
    p_b = _check(p_a, p_b, sigma)
    tight = Gaussian(sigma).radius(p_a, p_b)
    largest = min(1.0, math.log(p_a / p_b) / 2) if 0 < p_b < p_a else 1.0
    if tight == 0 or largest <= _LEAST_EPSILON:
        return 0.0

    def radius(epsilon: float) -> float:
        delta = (p_a - math.exp(2 * epsilon) * p_b) / (1 + math.exp(epsilon))
        return sigma * epsilon / math.sqrt(2 * math.log(1.25 / delta)) if delta > 0 else 0.0

    return _rounded_down(_maximise(radius, _LEAST_EPSILON, largest), tight)


def hockey_stick_radius(p_a: float, p_b: float | None, sigma: float) -> float:
    """The L2 radius that the best single hockey-stick divergence proves for Gaussian noise.

    Proves: As `renyi_radius`. Equal to `Gaussian`'s radius where p_b = 1 - p_a, a little smaller elsewhere.

    Args:
        p_a: Lower bound on the top class.
        p_b: Upper bound on every other class; 1 - p_a where None.
        sigma: Standard deviation of the noise.

    Returns: Radius >= 0, rounded down: the largest r for which some b >= 1 has
        HS_b(r) < (1 - b (1 - p_a + p_b)) / 2.

    Raises:
        InputError: a probability or sigma is out of range.

    Source: Dvijotham et al. (2020), section 4, with one divergence.
    """
    p_b = _check(p_a, p_b, sigma)
    tight = Gaussian(sigma).radius(p_a, p_b)
    if tight == 0:
        return 0.0
    loss = 1 - p_a + p_b
    if loss <= 0:
        return math.inf

    def room(shift: float, log_b: float) -> float:
        b = math.exp(log_b)
        stick = ndtr(shift / 2 - log_b / shift) - b * ndtr(-shift / 2 - log_b / shift)
        return (1 - b * loss) / 2 - float(stick)

    def certifies(shift: float) -> bool:
        return _maximise(lambda u: room(shift, u), 0.0, -math.log(loss)) > 0

    # It never exceeds the tight radius, (PhiInv(p_a) - PhiInv(p_b)) / 2, which is smaller than this.
    low, high = 0.0, 1.0 - float(ndtri(max(p_b, _LEAST_P_B)))
    while high - low > 1e-12 * high and high > _LEAST_SHIFT:
        middle = (low + high) / 2
        low, high = (middle, high) if certifies(middle) else (low, middle)
    return _rounded_down(sigma * low, tight)


def li_laplace_radius(p_a: float, p_b: float | None, scale: float) -> float:
    """The L1 radius of Li et al. for Laplace noise, the limit of their Renyi bound at infinite order.

    Proves: The smoothed classifier keeps its class in the closed L1 ball of this radius. Real-valued noise.

    Args:
        p_a: Lower bound on the top class.
        p_b: Upper bound on every other class; 1 - p_a where None.
        scale: Of the Laplace noise.

    Returns: -scale * log(1 - p_a + p_b), rounded down; 0.0 where p_a <= p_b, inf where p_a is 1.

    Raises:
        InputError: a probability or the scale is out of range.

    Source: Li et al. (2019).
    """
    p_b = _check(p_a, p_b, scale)
    kept = 1 - p_a + p_b
    if p_a <= p_b:
        return 0.0
    return _rounded_down(-scale * math.log(kept) if kept > 0 else math.inf, Laplace(scale).radius(p_a, p_b))


def pixeldp_laplace_radius(p_a: float, p_b: float | None, scale: float) -> float:
    """The L1 radius of PixelDP for Laplace noise.

    Proves: The smoothed classifier keeps its class in the closed L1 ball of this radius. Real-valued noise.

    Args:
        p_a: Lower bound on the top class.
        p_b: Upper bound on every other class; 1 - p_a where None.
        scale: Of the Laplace noise.

    Returns: scale / 2 * log(p_a / p_b), rounded down; 0.0 where p_a <= p_b, inf where p_b is 0.

    Raises:
        InputError: a probability or the scale is out of range.

    Source: Lecuyer et al. (2019), with delta = 0.
    """
    p_b = _check(p_a, p_b, scale)
    if p_a <= p_b:
        return 0.0
    radius = scale / 2 * math.log(p_a / p_b) if p_b > 0 else math.inf
    return _rounded_down(radius, Laplace(scale).radius(p_a, p_b))


@dataclass(frozen=True, slots=True)
class RenyiSmoothing:
    """Certify a smoothed classifier as stability training (STN) did, with the statistics made sound.

    Args:
        sigma: Standard deviation of the Gaussian noise.
        n0: Votes that choose the class; they are not used again.
        n: Fresh votes that bound the probabilities.
        alpha: Failure probability per example.
        runner_up: Share of alpha spent on the upper bound for the strongest other class; 0 for the binary bound.
        box: Where inputs must lie; None for data that is not pixels.

    Raises:
        InputError: as `Smoothing`.

    Source: Li, Chen, Wang & Carin (2019).
    """

    # Departs from paper: it selects and estimates on the same votes and bounds them with Sison and Glaz's interval,
    # whose coverage falls to a tenth at p = .999 and n = 100; here votes are split and bounds are exact.
    sigma: float
    n0: int = 100
    n: int = 100_000
    alpha: float = 0.001
    runner_up: float = 0.1
    box: Box = (0.0, 1.0)

    def __post_init__(self) -> None:
        self._votes()

    def _votes(self) -> Smoothing:
        return Smoothing(Gaussian(self.sigma), self.n0, self.n, self.alpha, self.runner_up, box=self.box)

    def __call__(self, model: nn.Module | BaseClassifier, x: Tensor, *, rng: Stream | Sequence[Stream]) -> Certificate:
        """Certify each input.

        Proves: As `Smoothing` with Gaussian noise, by Renyi divergence; at equal votes the radius is never larger.

        Args:
            model: (n, ...) -> (n, classes) logits, in evaluation mode; or a BaseClassifier.
            x: (n, ...) float inputs in the box.
            rng: One stream, or one per example; the votes are those of `Smoothing` at the same stream.

        Returns: Certificate with the counts of the n votes.

        Raises:
            InputError: training mode, shape, range or logits are wrong.
        """
        votes = self._votes()
        tight = votes(model, x, rng=rng)
        assert tight.counts is not None
        # Where the tight radius is 0 this one is too, so its abstentions are ours.
        radius = torch.tensor(
            [
                0.0 if a == ABSTAIN else renyi_radius(*votes.probabilities(row, a), self.sigma)
                for row, a in zip(tight.counts.tolist(), tight.prediction.tolist(), strict=True)
            ],
            dtype=torch.float64,
        )
        return replace(tight, radius=radius, prediction=torch.where(radius > 0, tight.prediction, ABSTAIN), method=self)
