"""Smoothing distributions: how each is drawn, and the exact radius its two class probabilities prove.

Every noise here has a *certificate time* T, odd about 1/2: if class A has probability p at x, then p > 1/2 persists up
to distance T(p) in the noise's norm. With a lower bound p_a on the top class and an upper bound p_b on every other
class, the prediction persists up to (T(p_a) - T(p_b)) / 2.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from scipy.special import ndtri
from torch import Tensor

from certify.binomial import GUARD
from certify.errors import InputError
from certify.threat import Norm


REAL = "real-valued noise; classifier in floating point"
"""The arithmetic in which the theorems are stated. That floats are not reals is ignored, as is usual."""


class Noise(Protocol):
    """A smoothing distribution: random noisy copies of an input, independent over draws."""

    norm: ClassVar[Norm]
    arithmetic: ClassVar[str]

    def perturb(self, out: Tensor, x: Tensor, generator: torch.Generator) -> None:
        """Overwrite a contiguous (draws, ...) tensor with independent noisy copies of x, which broadcasts to it."""
        ...

    def radius(self, p_a: float, p_b: float | None = None) -> float:
        """The radius proved by p_a <= P(top class) and P(any other class) <= p_b; p_b is 1 - p_a where not given."""
        ...


def _check_scale(name: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise InputError(f"need a finite {name} > 0; got {value!r}")


def _two_class_radius(time: Callable[[float], float], p_a: float, p_b: float | None) -> float:
    """(T(p_a) - T(p_b)) / 2, rounded down, 0.0 where nothing is proved."""
    if not 0 <= p_a <= 1 or not (p_b is None or 0 <= p_b <= 1):
        raise InputError(f"need probabilities 0 <= p_a, p_b <= 1; got p_a = {p_a!r}, p_b = {p_b!r}")
    p_b = 1 - p_a if p_b is None else min(p_b, 1 - p_a)
    if p_a <= p_b:
        return 0.0
    upper, lower = time(p_a), time(p_b)
    if math.isinf(upper) or math.isinf(lower):
        return math.inf
    return max(0.0, (upper - lower) / 2 - GUARD * (abs(upper) + abs(lower)) / 2)


@dataclass(frozen=True, slots=True)
class Gaussian:
    """N(0, sigma^2 I); certifies L2.

    Args:
        sigma: Standard deviation, in input units; > 0.

    Source: Cohen et al. (2019), theorem 1: R = sigma / 2 * (PhiInv(p_a) - PhiInv(p_b)), tight.
    """

    sigma: float
    norm: ClassVar[Norm] = "L2"
    arithmetic: ClassVar[str] = REAL

    def __post_init__(self) -> None:
        _check_scale("sigma", self.sigma)

    def perturb(self, out: Tensor, x: Tensor, generator: torch.Generator) -> None:
        """Overwrite a contiguous (draws, ...) tensor with independent noisy copies of x."""
        out.normal_(0.0, self.sigma, generator=generator).add_(x)

    def time(self, p: float) -> float:
        """Sigma * PhiInv(p)."""
        return self.sigma * float(ndtri(p))

    def radius(self, p_a: float, p_b: float | None = None) -> float:
        """The L2 radius proved by class probabilities.

        Proves: If P(f(x + e) = A) >= p_a and P(f(x + e) = c) <= p_b for every other c, the smoothed classifier
        predicts A in the closed L2 ball of this radius. Real-valued noise.

        Args:
            p_a: Lower bound on the top class; in [0, 1].
            p_b: Upper bound on every other class; 1 - p_a where not given.

        Returns: Radius >= 0 in input units, rounded down; 0.0 where p_a <= p_b; inf where p_b is 0.

        Raises:
            InputError: a probability is outside [0, 1].

        Source: Cohen et al. (2019), theorem 1.
        """
        return _two_class_radius(self.time, p_a, p_b)
