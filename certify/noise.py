"""Smoothing distributions: how each is drawn, and the radius its two class probabilities prove.

Here are the noises whose coordinates are independent and whose radius does not depend on the dimension; those whose
density is a function of a norm of the whole input are in `certify.noise_radial`. Two arguments serve all of them, for a
class of probability at least p_a at x, every other class having at most p_b, and a shift of the input by r:

* *Certificate time.* Let growth(p) bound the rate, per unit of shift, at which a set of probability p can gain or lose
  probability. Every noise here is symmetric about 0, so growth(p) = growth(1 - p), and T, the integral of 1 / growth
  from 1/2, is odd about 1/2. Under the shift the top class keeps T >= T(p_a) - r and any other keeps T <= T(p_b) + r:
  the prediction persists up to r = (T(p_a) - T(p_b)) / 2. For independent coordinates with a log-concave density and L1
  shifts, growth is that of a half-space along one axis, and T is the quantile function of one coordinate. One
  half-space each for the two classes attains it: the radius is exact.
* *Total variation.* Under any noise the top class loses, and any other gains, at most the total variation TV(r) between
  the noise and its shift: the prediction persists while TV(r) <= (p_a - p_b) / 2. For a uniform noise what the shift
  leaves is lost and what it enters is new, so sets that attain both exist: the radius is exact.

Source: Yang, Duan, Hu, Salman, Razenshteyn & Li (2020), the differential and the level-set method, for p_b = 1 - p_a.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from scipy.special import gammainccinv, gammaincinv, ndtri
from torch import Tensor

from certify.binomial import GUARD
from certify.errors import InputError
from certify.threat import Norm, Region

REAL = "real-valued noise; classifier in floating point"
"""The arithmetic in which the theorems are stated. That floats are not reals is ignored, as is usual."""


class Noise(Protocol):
    """A smoothing distribution: random noisy copies of an input, independent over draws."""

    norm: ClassVar[Norm]
    arithmetic: ClassVar[str]
    region: ClassVar[Region]

    def perturb(self, out: Tensor, x: Tensor, generator: torch.Generator) -> None:
        """Overwrite a contiguous (draws, ...) tensor with independent noisy copies of x, which broadcasts to it."""
        ...

    def radius(self, p_a: float, p_b: float | None = None) -> float:
        """The radius proved by p_a <= P(top class) and P(any other class) <= p_b; p_b is 1 - p_a where not given."""
        ...


def check_scale(name: str, value: float) -> None:
    """Refuse a scale that is not a positive number.

    Raises:
        InputError: the rule is broken.
    """
    if not (math.isfinite(value) and value > 0):
        raise InputError(f"need a finite {name} > 0; got {value!r}")


def check_power(value: float) -> None:
    """Refuse a power below 1; from 1 on, exp(-|z|^power) is log-concave.

    Raises:
        InputError: the rule is broken.
    """
    if not (math.isfinite(value) and value >= 1):
        raise InputError(f"need a finite power >= 1; got {value!r}")


def two_probabilities(p_a: float, p_b: float | None) -> tuple[float, float]:
    """Check p_a and p_b; p_b becomes at most 1 - p_a.

    Raises:
        InputError: a probability is outside [0, 1].
    """
    if not 0 <= p_a <= 1 or not (p_b is None or 0 <= p_b <= 1):
        raise InputError(f"need probabilities 0 <= p_a, p_b <= 1; got p_a = {p_a!r}, p_b = {p_b!r}")
    return p_a, 1 - p_a if p_b is None else min(p_b, 1 - p_a)


def two_class_radius(time: Callable[[float], float], p_a: float, p_b: float | None) -> float:
    """(T(p_a) - T(p_b)) / 2, rounded down, 0.0 where nothing is proved.

    Raises:
        InputError: a probability is outside [0, 1].
    """
    p_a, p_b = two_probabilities(p_a, p_b)
    if p_a <= p_b:
        return 0.0
    upper, lower = time(p_a), time(p_b)
    if math.isinf(upper) or math.isinf(lower):
        return math.inf
    return max(0.0, (upper - lower) / 2 - GUARD * (abs(upper) + abs(lower)) / 2)


def variation_radius(shift: Callable[[float], float], p_a: float, p_b: float | None) -> float:
    """The shift with total variation (p_a - p_b) / 2, rounded down, 0.0 where nothing is proved.

    Raises:
        InputError: a probability is outside [0, 1].
    """
    p_a, p_b = two_probabilities(p_a, p_b)
    return 0.0 if p_a <= p_b else shift((p_a - p_b) / 2) * (1 - GUARD)


def symmetric_uniform(out: Tensor, generator: torch.Generator) -> Tensor:
    """Overwrite `out` with draws from the uniform law on (-1, 1), ends excluded, symmetric about 0 to the last bit.

    On the CPU this, `normal_` and gamma draws take their bits from the generator itself; every law is made of them.
    `exponential_` and `bernoulli_` are slower there, and in some builds take one number from it to seed a congruential
    generator of 31 bits (pytorch issue 132395): blocks of noise would repeat.
    """
    half_step = torch.finfo(out.dtype).eps / 2
    return out.uniform_(-1, 1, generator=generator).add_(half_step).clamp_(half_step - 1, 1 - half_step)


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
    region: ClassVar[Region] = "ball"

    def __post_init__(self) -> None:
        check_scale("sigma", self.sigma)

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
        return two_class_radius(self.time, p_a, p_b)


@dataclass(frozen=True, slots=True)
class Laplace:
    """Independent coordinates with density exp(-|z| / scale) / (2 scale); certifies L1.

    Args:
        scale: Mean of |z|, in input units; > 0. The standard deviation is sqrt(2) times that.

    Source: Teng, Lee & Yuan (2019) for p_b = 1 - p_a; the two-class radius, exact, is ours.
    """

    scale: float
    norm: ClassVar[Norm] = "L1"
    arithmetic: ClassVar[str] = REAL
    region: ClassVar[Region] = "ball"

    def __post_init__(self) -> None:
        check_scale("scale", self.scale)

    def perturb(self, out: Tensor, x: Tensor, generator: torch.Generator) -> None:
        """Overwrite a contiguous (draws, ...) tensor with independent noisy copies of x."""
        tail = symmetric_uniform(out, generator).abs().neg_().log1p_().mul_(-self.scale)
        torch.copysign(tail, out, out=out).add_(x)

    def time(self, p: float) -> float:
        """The p-quantile of one coordinate."""
        return laplace_quantile(p, self.scale)

    def radius(self, p_a: float, p_b: float | None = None) -> float:
        """The L1 radius proved by class probabilities.

        Proves: If P(f(x + e) = A) >= p_a and P(f(x + e) = c) <= p_b for every other c, the smoothed classifier
        predicts A in the closed L1 ball of this radius, the largest for which this is so. Real-valued noise.

        Args:
            p_a: Lower bound on the top class; in [0, 1].
            p_b: Upper bound on every other class; 1 - p_a where not given.

        Returns: -scale / 2 * ln(4 (1 - p_a) p_b) where p_a >= 1/2, else scale / 2 * ln(p_a / p_b): radius >= 0 in input
            units, rounded down; 0.0 where p_a <= p_b; inf where p_b is 0.

        Raises:
            InputError: a probability is outside [0, 1].

        Source: certificate time, module docstring.
        """
        return two_class_radius(self.time, p_a, p_b)


def laplace_quantile(p: float, scale: float) -> float:
    """The p-quantile of the Laplace law; infinite at 0 and 1."""
    q = min(p, 1 - p)
    return math.copysign(-scale * math.log(2 * q) if q > 0 else math.inf, p - 0.5)


@dataclass(frozen=True, slots=True)
class Uniform:
    """Independent coordinates, uniform on [-scale, scale]; certifies L1.

    Args:
        scale: Half the width, in input units; > 0. The standard deviation is scale / sqrt(3).

    Source: Lee, Yuan, Chang & Jaakkola (2019) for p_b = 1 - p_a; Yang et al. (2020).
    """

    scale: float
    norm: ClassVar[Norm] = "L1"
    arithmetic: ClassVar[str] = REAL
    region: ClassVar[Region] = "ball"

    def __post_init__(self) -> None:
        check_scale("scale", self.scale)

    def perturb(self, out: Tensor, x: Tensor, generator: torch.Generator) -> None:
        """Overwrite a contiguous (draws, ...) tensor with independent noisy copies of x."""
        out.uniform_(-self.scale, self.scale, generator=generator).add_(x)

    def radius(self, p_a: float, p_b: float | None = None) -> float:
        """The L1 radius proved by class probabilities.

        Proves: If P(f(x + e) = A) >= p_a and P(f(x + e) = c) <= p_b for every other c, the smoothed classifier
        predicts A in the closed L1 ball of this radius, the largest for which this is so. Real-valued noise.

        Args:
            p_a: Lower bound on the top class; in [0, 1].
            p_b: Upper bound on every other class; 1 - p_a where not given.

        Returns: scale * (p_a - p_b), rounded down; 0.0 where p_a <= p_b.

        Raises:
            InputError: a probability is outside [0, 1].

        Source: total variation, module docstring: 1 - prod(1 - |d_i| / (2 scale)) <= |d|_1 / (2 scale), equal along an
            axis.
        """
        return variation_radius(lambda variation: 2 * self.scale * variation, p_a, p_b)


@dataclass(frozen=True, slots=True)
class ExponentialPower:
    """Independent coordinates with density proportional to exp(-|z / scale|^power); certifies L1.

    Power 1 is Laplace, power 2 is the Gaussian of standard deviation scale / sqrt(2), and as the power grows the law
    becomes uniform on [-scale, scale].

    Args:
        scale: In input units; > 0.
        power: At least 1, so that the density is log-concave.

    Source: Yang et al. (2020) for p_b = 1 - p_a; the two-class radius, exact, is ours.
    """

    scale: float
    power: float
    norm: ClassVar[Norm] = "L1"
    arithmetic: ClassVar[str] = REAL
    region: ClassVar[Region] = "ball"

    def __post_init__(self) -> None:
        check_scale("scale", self.scale)
        check_power(self.power)

    def perturb(self, out: Tensor, x: Tensor, generator: torch.Generator) -> None:
        """Overwrite a contiguous (draws, ...) tensor with independent noisy copies of x."""
        z = symmetric_uniform(out, generator).view(-1)
        rejected = (~self._accept(z, generator)).nonzero()[:, 0]
        while rejected.numel():
            again = symmetric_uniform(z.new_empty(rejected.numel()), generator)
            accepted = self._accept(again, generator)
            z[rejected] = again
            rejected = rejected[~accepted]
        out.mul_(self.scale).add_(x)

    def _accept(self, z: Tensor, generator: torch.Generator) -> Tensor:
        """Turn uniform draws on (-1, 1) into proposals, and say which to keep: at least 0.88 of them.

        With t = |z| / scale, the tangent of -t^power at t = 1 bounds it above, and so does 0. The proposals have the
        density exp(min(0, -1 - power (t - 1))), flat up to 1 - 1 / power, whose integral is exactly 1.
        """
        flat = 1 - 1 / self.power
        tail = z.abs().neg_().add_(1).mul_(self.power).log_()  # from 0 at the end of the flat part downwards
        proposal = torch.where(tail < 0, flat - tail / self.power, z.abs())
        log_ratio = -(proposal**self.power) - tail.clamp_(max=0)
        torch.copysign(proposal, z, out=z)
        return torch.empty_like(z).uniform_(generator=generator).log_() <= log_ratio

    def time(self, p: float) -> float:
        """The p-quantile of one coordinate: |z / scale|^power has the gamma law of shape 1 / power."""
        shape = 1 / self.power
        q = min(p, 1 - p)
        middle = 1 - 2 * q  # the probability within the quantile, on both sides; exact
        # Near 0 the law of |z / scale| is uniform up to t^power, relatively, where its gamma quantile may underflow.
        linear = middle * math.gamma(1 + shape)
        if linear**self.power < 2.0**-60:
            t = linear
        else:
            quantile = gammaincinv(shape, middle) if middle < 0.5 else gammainccinv(shape, 2 * q)
            t = float(quantile) ** shape
        return math.copysign(self.scale * t, p - 0.5)

    def radius(self, p_a: float, p_b: float | None = None) -> float:
        """The L1 radius proved by class probabilities.

        Proves: If P(f(x + e) = A) >= p_a and P(f(x + e) = c) <= p_b for every other c, the smoothed classifier
        predicts A in the closed L1 ball of this radius, the largest for which this is so. Real-valued noise.

        Args:
            p_a: Lower bound on the top class; in [0, 1].
            p_b: Upper bound on every other class; 1 - p_a where not given.

        Returns: Radius >= 0 in input units, rounded down; 0.0 where p_a <= p_b; inf where p_b is 0.

        Raises:
            InputError: a probability is outside [0, 1].

        Source: certificate time, module docstring.
        """
        return two_class_radius(self.time, p_a, p_b)
