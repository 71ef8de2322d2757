"""Smoothing distributions whose density is a function of a norm of the whole input, and so know its dimension.

The two arguments behind the radii, certificate time and total variation, are in `certify.noise`. What has cubes for
level sets is a mixture of uniform cubes, and is drawn as one.

Two rows of Yang et al.'s table are left out. Laplace noise against Linf: their radius is an approximation, not a bound.
Pareto coordinates against L1: the certificate time is a hypergeometric function, computed without an error bound.

Source: Yang, Duan, Hu, Salman, Razenshteyn & Li (2020), for p_b = 1 - p_a.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from scipy.special import betainccinv, betaincinv, betaln
from torch import Tensor

from certify.errors import InputError
from certify.noise import (
    REAL,
    check_power,
    check_scale,
    laplace_quantile,
    symmetric_uniform,
    two_class_radius,
    variation_radius,
)
from certify.threat import Norm, Region


def check_dimension(value: int, least: int) -> None:
    """Refuse a dimension that is not an integer of at least `least`.

    Raises:
        InputError: the rule is broken.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InputError(f"need an integer dimension >= {least}; got {value!r}")


def _check_elements(out: Tensor, dimension: int) -> None:
    if out[0].numel() != dimension:
        raise InputError(f"need inputs of {dimension} elements, the noise's dimension; got {out[0].numel()}")


def _gamma(shape: Tensor, generator: torch.Generator) -> Tensor:
    # torch.distributions.Gamma cannot be given a generator.
    return torch._standard_gamma(shape, generator=generator)  # pyright: ignore[reportPrivateImportUsage]


def _shapes(out: Tensor, shape: float) -> Tensor:
    """One float64 shape parameter per draw."""
    return torch.full((out.shape[0],), shape, dtype=torch.float64, device=out.device)


def _scale_rows(out: Tensor, factors: Tensor) -> Tensor:
    return out.mul_(factors.to(out.dtype).view(-1, *[1] * (out.ndim - 1)))


def _spread_on_spheres(out: Tensor, lengths: Tensor, generator: torch.Generator) -> Tensor:
    """Overwrite each draw with a uniform direction of that L2 length."""
    lengths_drawn = out.normal_(generator=generator).flatten(1).norm(dim=1).double()
    return _scale_rows(out, lengths / lengths_drawn.clamp_min(torch.finfo(out.dtype).tiny))


def _spread_in_cubes(out: Tensor, widths: Tensor, generator: torch.Generator) -> Tensor:
    """Overwrite each draw with a uniform one from the cube [-width, width]^d."""
    return _scale_rows(symmetric_uniform(out, generator), widths)


def gamma_ratio(x: float, step: float) -> float:
    """Gamma(x + step) / Gamma(x), to a relative error far below GUARD; x > 0, 0 < step <= 1."""
    # lgamma(1e5) is 1e6, and a difference of two such would keep nine digits: Stirling's series, subtracted by term.
    if x < 16:
        return math.gamma(x + step) / math.gamma(x)
    main = (x + step - 0.5) * math.log1p(step / x) + step * (math.log(x) - 1)
    return math.exp(main + _stirling_rest(x + step) - _stirling_rest(x))


def _stirling_rest(x: float) -> float:
    """What Stirling's formula leaves of lgamma(x)."""
    z = 1 / (x * x)
    return (1 / 12 - z * (1 / 360 - z * (1 / 1260 - z * (1 / 1680 - z / 1188)))) / x


@dataclass(frozen=True, slots=True)
class UniformLinf:
    """Uniform on the cube [-scale, scale]^d, as `Uniform` is; certifies Linf.

    Args:
        scale: Half the width, in input units; > 0.
        dimension: Elements of an input.

    Source: Yang et al. (2020).
    """

    scale: float
    dimension: int
    norm: ClassVar[Norm] = "Linf"
    arithmetic: ClassVar[str] = REAL
    region: ClassVar[Region] = "ball"

    def __post_init__(self) -> None:
        check_scale("scale", self.scale)
        check_dimension(self.dimension, 1)

    def perturb(self, out: Tensor, x: Tensor, generator: torch.Generator) -> None:
        """Overwrite a contiguous (draws, ...) tensor with independent noisy copies of x.

        Raises:
            InputError: an input has another number of elements than `dimension`.
        """
        _check_elements(out, self.dimension)
        out.uniform_(-self.scale, self.scale, generator=generator).add_(x)

    def radius(self, p_a: float, p_b: float | None = None) -> float:
        """The Linf radius proved by class probabilities.

        Proves: If P(f(x + e) = A) >= p_a and P(f(x + e) = c) <= p_b for every other c, the smoothed classifier
        predicts A in the closed Linf ball of this radius, the largest for which this is so. Real-valued noise.

        Args:
            p_a: Lower bound on the top class; in [0, 1].
            p_b: Upper bound on every other class; 1 - p_a where not given.

        Returns: 2 scale (1 - (1 - (p_a - p_b) / 2)^(1 / dimension)), rounded down; 0.0 where p_a <= p_b.

        Raises:
            InputError: a probability is outside [0, 1].

        Source: total variation, `certify.noise`: 1 - prod(1 - |d_i| / (2 scale)) is largest in a corner of the ball.
        """
        return variation_radius(
            lambda variation: -2 * self.scale * math.expm1(math.log1p(-variation) / self.dimension), p_a, p_b
        )


@dataclass(frozen=True, slots=True)
class UniformBall:
    """Uniform on the L2 ball of radius `scale`; certifies L2.

    Args:
        scale: Radius of the ball, in input units; > 0.
        dimension: Elements of an input.

    Source: Yang et al. (2020).
    """

    scale: float
    dimension: int
    norm: ClassVar[Norm] = "L2"
    arithmetic: ClassVar[str] = REAL
    region: ClassVar[Region] = "ball"

    def __post_init__(self) -> None:
        check_scale("scale", self.scale)
        check_dimension(self.dimension, 1)

    def perturb(self, out: Tensor, x: Tensor, generator: torch.Generator) -> None:
        """Overwrite a contiguous (draws, ...) tensor with independent noisy copies of x.

        Raises:
            InputError: an input has another number of elements than `dimension`.
        """
        _check_elements(out, self.dimension)
        volume = torch.rand(out.shape[0], dtype=torch.float64, device=out.device, generator=generator)
        _spread_on_spheres(out, self.scale * volume ** (1 / self.dimension), generator).add_(x)

    def radius(self, p_a: float, p_b: float | None = None) -> float:
        """The L2 radius proved by class probabilities.

        Proves: If P(f(x + e) = A) >= p_a and P(f(x + e) = c) <= p_b for every other c, the smoothed classifier
        predicts A in the closed L2 ball of this radius, the largest for which this is so. Real-valued noise.

        Args:
            p_a: Lower bound on the top class; in [0, 1].
            p_b: Upper bound on every other class; 1 - p_a where not given.

        Returns: Radius >= 0 in input units, rounded down; 0.0 where p_a <= p_b.

        Raises:
            InputError: a probability is outside [0, 1].

        Source: total variation, `certify.noise`: that of two balls at distance r is the probability of |z_1| <= r / 2,
            and (z_1 / scale)^2 has the beta law of 1/2 and (dimension + 1) / 2.
        """
        return variation_radius(
            lambda variation: 2 * self.scale * math.sqrt(betaincinv(0.5, (self.dimension + 1) / 2, variation)),
            p_a,
            p_b,
        )


@dataclass(frozen=True, slots=True)
class ExponentialL2:
    """Density proportional to exp(-|z|_2 / scale); certifies L2.

    Args:
        scale: In input units; > 0. The mean of |z|_2 is dimension * scale.
        dimension: Elements of an input; at least 2 (`Laplace` is the case of one).

    Source: Yang et al. (2020).
    """

    scale: float
    dimension: int
    norm: ClassVar[Norm] = "L2"
    arithmetic: ClassVar[str] = REAL
    region: ClassVar[Region] = "ball"

    def __post_init__(self) -> None:
        check_scale("scale", self.scale)
        check_dimension(self.dimension, 2)

    def perturb(self, out: Tensor, x: Tensor, generator: torch.Generator) -> None:
        """Overwrite a contiguous (draws, ...) tensor with independent noisy copies of x.

        Raises:
            InputError: an input has another number of elements than `dimension`.
        """
        _check_elements(out, self.dimension)
        lengths = self.scale * _gamma(_shapes(out, self.dimension), generator)
        _spread_on_spheres(out, lengths, generator).add_(x)

    def time(self, p: float) -> float:
        """Scale * (dimension - 1) * atanh(w), w the p-quantile of one coordinate of a uniform direction."""
        q = min(p, 1 - p)
        if q == 0:
            return math.copysign(math.inf, p - 0.5)
        # w^2 has the beta law of 1/2 and a, and is within the quantile with probability 1 - 2 q, which is exact where
        # it is small. Whichever of w^2 and 1 - w^2 is small is computed to full relative accuracy.
        a = (self.dimension - 1) / 2
        square = float(betaincinv(0.5, a, 1 - 2 * q) if q > 0.25 else betainccinv(0.5, a, 2 * q))
        if square < 0.5:
            angle = math.atanh(math.sqrt(square))
        else:
            rest = float(betaincinv(a, 0.5, 2 * q))
            # Below that its law is a power, to all digits, and rest may underflow.
            log_rest = math.log(rest) if rest > 1e-290 else (math.log(2 * a * q) + float(betaln(a, 0.5))) / a
            angle = math.log1p(math.sqrt(1 - rest)) - log_rest / 2
        return math.copysign(self.scale * (self.dimension - 1) * angle, p - 0.5)

    def radius(self, p_a: float, p_b: float | None = None) -> float:
        """The L2 radius proved by class probabilities.

        Proves: If P(f(x + e) = A) >= p_a and P(f(x + e) = c) <= p_b for every other c, the smoothed classifier
        predicts A in the closed L2 ball of this radius. Real-valued noise. Not the largest such radius: the set that
        loses fastest is a cone about the shift with its tip at the input, and no fixed set stays one while both move.

        Args:
            p_a: Lower bound on the top class; in [0, 1].
            p_b: Upper bound on every other class; 1 - p_a where not given.

        Returns: Radius >= 0 in input units, rounded down; 0.0 where p_a <= p_b; inf where p_b is 0.

        Raises:
            InputError: a probability is outside [0, 1].

        Source: certificate time, `certify.noise`: growth(p) is E[w; w >= c] / scale, where w >= c, a cone, has
            probability p. That is (1 - c^2) / ((dimension - 1) scale) times the density of w at c.
        """
        return two_class_radius(self.time, p_a, p_b)


@dataclass(frozen=True, slots=True)
class ExponentialLinf:
    """Density proportional to exp(-|z|_inf / scale); certifies Linf.

    Args:
        scale: In input units; > 0. The mean of |z|_inf is dimension * scale.
        dimension: Elements of an input.

    Source: Yang et al. (2020).
    """

    scale: float
    dimension: int
    norm: ClassVar[Norm] = "Linf"
    arithmetic: ClassVar[str] = REAL
    region: ClassVar[Region] = "ball"

    def __post_init__(self) -> None:
        check_scale("scale", self.scale)
        check_dimension(self.dimension, 1)

    def perturb(self, out: Tensor, x: Tensor, generator: torch.Generator) -> None:
        """Overwrite a contiguous (draws, ...) tensor with independent noisy copies of x.

        Raises:
            InputError: an input has another number of elements than `dimension`.
        """
        _check_elements(out, self.dimension)
        widths = self.scale * _gamma(_shapes(out, self.dimension + 1), generator)
        _spread_in_cubes(out, widths, generator).add_(x)

    def time(self, p: float) -> float:
        """The p-quantile of the Laplace law: that of (max z + min z) / 2 in every dimension."""
        return laplace_quantile(p, self.scale)

    def radius(self, p_a: float, p_b: float | None = None) -> float:
        """The Linf radius proved by class probabilities.

        Proves: If P(f(x + e) = A) >= p_a and P(f(x + e) = c) <= p_b for every other c, the smoothed classifier
        predicts A in the closed Linf ball of this radius, the largest for which this is so. Real-valued noise.

        Args:
            p_a: Lower bound on the top class; in [0, 1].
            p_b: Upper bound on every other class; 1 - p_a where not given.

        Returns: Radius >= 0 in input units, rounded down; 0.0 where p_a <= p_b; inf where p_b is 0.

        Raises:
            InputError: a probability is outside [0, 1].

        Source: certificate time, `certify.noise`: the log density has Lipschitz constant 1 / scale, so growth(p) is at
            most min(p, 1 - p) / scale. Exact because a shift of every element by r moves (max z + min z) / 2, whose law
            is Laplace's, by r.
        """
        return two_class_radius(self.time, p_a, p_b)


@dataclass(frozen=True, slots=True)
class CubeExponential:
    """Density proportional to |z|_inf^-pole * exp(-(|z|_inf / scale)^power); certifies L1.

    Args:
        scale: In input units; > 0.
        dimension: Elements of an input; at least 2.
        power: At least 1.
        pole: 0 <= pole < dimension - 1.

    Source: Yang et al. (2020).
    """

    scale: float
    dimension: int
    power: float = 1.0
    pole: float = 0.0
    norm: ClassVar[Norm] = "L1"
    arithmetic: ClassVar[str] = REAL
    region: ClassVar[Region] = "ball"

    def __post_init__(self) -> None:
        check_scale("scale", self.scale)
        check_dimension(self.dimension, 2)
        check_power(self.power)
        if not 0 <= self.pole < self.dimension - 1:
            raise InputError(f"need 0 <= pole < dimension - 1 = {self.dimension - 1}; got {self.pole!r}")

    def perturb(self, out: Tensor, x: Tensor, generator: torch.Generator) -> None:
        """Overwrite a contiguous (draws, ...) tensor with independent noisy copies of x.

        Raises:
            InputError: an input has another number of elements than `dimension`.
        """
        _check_elements(out, self.dimension)
        # -density'(t) t^dimension is the density of the widths t: two gamma laws of (t / scale)^power, one for each
        # factor that falls, mixed as pole to dimension - pole.
        falls = torch.rand(out.shape[0], dtype=torch.float64, device=out.device, generator=generator)
        shapes = _shapes(out, (self.dimension - self.pole) / self.power) + (falls * self.dimension >= self.pole)
        widths = self.scale * _gamma(shapes, generator) ** (1 / self.power)
        _spread_in_cubes(out, widths, generator).add_(x)

    def radius(self, p_a: float, p_b: float | None = None) -> float:
        """The L1 radius proved by class probabilities.

        Proves: If P(f(x + e) = A) >= p_a and P(f(x + e) = c) <= p_b for every other c, the smoothed classifier
        predicts A in the closed L1 ball of this radius. Real-valued noise. Not the largest such radius, but close to it
        in high dimension.

        Args:
            p_a: Lower bound on the top class; in [0, 1].
            p_b: Upper bound on every other class; 1 - p_a where not given.

        Returns: 2 scale d / (d - 1) * Gamma((d - pole) / power) / Gamma((d - pole - 1) / power) * (p_a - p_b) / 2,
            rounded down; 0.0 where p_a <= p_b.

        Raises:
            InputError: a probability is outside [0, 1].

        Source: total variation, `certify.noise`: along an axis it grows fastest at 0, by the density there of one
            coordinate, (d - 1) / (2 d) * E[1 / |z|_inf].
        """
        d = self.dimension
        mean = self.scale * gamma_ratio((d - self.pole - 1) / self.power, 1 / self.power)
        return variation_radius(lambda variation: 2 * d / (d - 1) * mean * variation, p_a, p_b)


@dataclass(frozen=True, slots=True)
class CubePowerLaw:
    """Density proportional to (1 + |z|_inf / scale)^-power; certifies L1.

    Args:
        scale: In input units; > 0.
        dimension: Elements of an input.
        power: Above `dimension`.

    Source: Yang et al. (2020).
    """

    scale: float
    dimension: int
    power: float
    norm: ClassVar[Norm] = "L1"
    arithmetic: ClassVar[str] = REAL
    region: ClassVar[Region] = "ball"

    def __post_init__(self) -> None:
        check_scale("scale", self.scale)
        check_dimension(self.dimension, 1)
        if not self.dimension < self.power < math.inf:
            raise InputError(f"need a finite power > dimension = {self.dimension}; got {self.power!r}")

    def perturb(self, out: Tensor, x: Tensor, generator: torch.Generator) -> None:
        """Overwrite a contiguous (draws, ...) tensor with independent noisy copies of x.

        Raises:
            InputError: an input has another number of elements than `dimension`.
        """
        _check_elements(out, self.dimension)
        widths = self.scale * _gamma(_shapes(out, self.dimension + 1), generator)
        widths /= _gamma(_shapes(out, self.power - self.dimension), generator)
        _spread_in_cubes(out, widths, generator).add_(x)

    def radius(self, p_a: float, p_b: float | None = None) -> float:
        """The L1 radius proved by class probabilities.

        Proves: If P(f(x + e) = A) >= p_a and P(f(x + e) = c) <= p_b for every other c, the smoothed classifier
        predicts A in the closed L1 ball of this radius. Real-valued noise. Not the largest such radius, but close to it
        in high dimension.

        Args:
            p_a: Lower bound on the top class; in [0, 1].
            p_b: Upper bound on every other class; 1 - p_a where not given.

        Returns: 2 scale d / (power - d) * (p_a - p_b) / 2, rounded down; 0.0 where p_a <= p_b.

        Raises:
            InputError: a probability is outside [0, 1].

        Source: total variation, `certify.noise`, as for `CubeExponential`.
        """
        d = self.dimension
        return variation_radius(lambda variation: 2 * self.scale * d / (self.power - d) * variation, p_a, p_b)
