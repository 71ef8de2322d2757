"""Smoothing in integers, for inputs on the lattice {0, 1/levels, ..., 1}: no rounding error can break the certificate.

Floating-point noise leaks. x + e rounds, and the low bits of the sum betray the x it came from, so a base classifier
that reads them is certified in balls that hold adversarial examples (tests/differential/test_float_soundness.py). Here
the noise is an integer drawn from a table, added to the integer input, and looked up once in a table of floats: the
base classifier sees a pure function of the integer sum.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from scipy.special import ndtr, ndtri
from torch import Tensor

from certify.errors import InputError
from certify.noise import Gaussian
from certify.threat import Norm, Region

LATTICE: Region = "lattice"
"""The region of a certificate that speaks of perturbed inputs on the lattice alone."""
TOLERANCE = 2.0**-22
"""How far from the lattice a float32 may lie that stands for one of its points: a few units in the last place."""
_MOST_LEVELS = 65_535
_UNIFORM_BITS = 63
_BUCKET_BITS = 16
_CHUNK = 1 << 16
# scipy's ndtr, argument rounding included, down to the cut where it drops below 2**-62: the tests compare with mpmath.
_NDTR_ERROR = 2.0**-46


def check_levels(levels: int) -> None:
    """Refuse a number of lattice steps that is not an integer in [1, 65535].

    Raises:
        InputError: the rule is broken.
    """
    if isinstance(levels, bool) or not isinstance(levels, int) or not 1 <= levels <= _MOST_LEVELS:
        raise InputError(f"need an integer levels with 1 <= levels <= {_MOST_LEVELS}; got {levels!r}")


def to_lattice(x: Tensor, levels: int) -> Tensor:
    """The integers v with x = v / levels.

    Args:
        x: Inputs on the lattice, as floats.
        levels: Steps from 0 to 1; 255 for 8-bit images.

    Returns: Integers in [0, levels], int64, of the shape of x.

    Raises:
        InputError: a value lies further than a float32's rounding from the lattice.
    """
    exact = x.double() * levels
    v = exact.round().clamp(0, levels)
    distance = float((exact - v).abs().max()) / levels
    if not distance <= TOLERANCE:  # NaN too
        raise InputError(
            f"need inputs on the lattice k / {levels} with k = 0 .. {levels}, as 8-bit images are with levels = 255, "
            f"to float32 precision; got one at distance {distance:.3g}"
        )
    return v.long()


class _Tables(NamedTuple):
    cuts: Tensor
    guide: Tensor
    floats: Tensor


def _cuts(deviation: float, reach: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """2**63 P(round(N(0, deviation^2)) <= j) for j = -reach .. reach - 1, to the nearest integers below.

    The upper half mirrors the lower one, where floats resolve the tail.
    """
    lower = np.floor(ndtr((np.arange(-reach, 0) + 0.5) / deviation) * 2.0**_UNIFORM_BITS).astype(np.int64)
    largest = np.int64(2**_UNIFORM_BITS - 1)
    return np.concatenate([lower, largest - np.maximum(lower[::-1], 1) + 1])


@lru_cache(maxsize=8)
def _tables(deviation: float, reach: int, levels: int, device: torch.device) -> _Tables:
    cuts = _cuts(deviation, reach)
    # The leading bits of a uniform say at once where it falls, unless a cut shares them (about 1 % of the draws).
    step = 1 << (_UNIFORM_BITS - _BUCKET_BITS)
    first = np.arange(1 << _BUCKET_BITS, dtype=np.int64) * step
    low, high = (np.searchsorted(cuts, edge, side="right") for edge in (first, first + (step - 1)))
    guide = np.where(low == high, low, -1).astype(np.int32)
    floats = (np.arange(-reach, levels + reach + 1) / levels).astype(np.float32)
    return _Tables(*(torch.from_numpy(table).to(device) for table in (cuts, guide, floats)))


@dataclass(frozen=True, slots=True)
class RoundedGaussian:
    """N(0, sigma^2 I) rounded to the lattice of the inputs, in integer arithmetic; certifies L2.

    The noise is round(levels * N(0, sigma^2)) / levels, by inverse CDF from 63-bit uniforms, at most `tail` standard
    deviations long. Its weights are differences of the Gaussian CDF, not values of its density: x + noise is then
    round(levels * (x + N(0, sigma^2))) / levels in law, and the Gaussian theorem applies to the base classifier
    composed with rounding, which is a function on all of R^d.

    Args:
        sigma: Standard deviation before rounding, in input units; > 0.
        dimension: Numbers per input; what truncation costs grows with it.
        levels: Steps of the lattice from 0 to 1; inputs must lie on it.
        tail: Where the noise is cut off, in standard deviations; >= 8.

    Raises:
        InputError: an argument is out of range.

    Source: after Voracek & Hein (2023), "Sound randomized smoothing in floating-point arithmetics", with rounded
        instead of density weights, and one table lookup after the integer sum.
    """

    sigma: float
    dimension: int
    levels: int = 255
    tail: float = 8.0
    norm: ClassVar[Norm] = "L2"
    arithmetic: ClassVar[str] = "integer noise on the lattice of the inputs; exact up to the classifier's determinism"
    region: ClassVar[Region] = LATTICE

    def __post_init__(self) -> None:
        Gaussian(self.sigma)  # one rule for sigma
        check_levels(self.levels)
        if isinstance(self.dimension, bool) or not isinstance(self.dimension, int) or self.dimension < 1:
            raise InputError(f"need an integer dimension >= 1; got {self.dimension!r}")
        if not 8 <= self.tail < math.inf:
            raise InputError(f"need a finite tail >= 8 standard deviations; got {self.tail!r}")

    @property
    def deviation(self) -> float:
        """The standard deviation in lattice steps; it rounds by 2**-53 of itself, which GUARD in radii covers."""
        return self.sigma * self.levels

    @property
    def reach(self) -> int:
        """The largest noise, in steps of the lattice."""
        return math.ceil(self.tail * self.deviation)

    @property
    def defect(self) -> float:
        """How far the drawn noise can be from the rounded Gaussian.

        Proves: The total variation between the two laws, over all coordinates, is below this number: truncation, the
        table's rounding, and 2**-50 for the float arithmetic that uses it. Presumes perfect 63-bit uniforms.
        """
        truncation = 2 * float(ndtr(-self.reach / self.deviation))
        below = ndtr((np.arange(-self.reach, 0) + 0.5) / self.deviation)
        table = 2 * (float(below.sum()) * _NDTR_ERROR + self.reach * 2.0 ** (1 - _UNIFORM_BITS))
        return self.dimension * (truncation + table) * (1 + 2.0**-20) + 2.0**-50

    def draw(self, shape: Sequence[int], generator: torch.Generator) -> Tensor:
        """Independent integer noise of that shape, int32, on the generator's device."""
        return self._places(math.prod(shape), generator).sub_(self.reach).view(*shape)

    def add(self, out: Tensor, v: Tensor, noise: Tensor) -> None:
        """Overwrite a contiguous float32 tensor with the floats of the lattice points v + noise.

        Args:
            out: (draws, ...).
            v: Integers from `to_lattice`; broadcasts to `out`.
            noise: Integers in [-reach, reach], shaped like `out`, int32 or int64.
        """
        self._look_up(out, v, noise + self.reach)

    def perturb(self, out: Tensor, x: Tensor, generator: torch.Generator) -> None:
        """Overwrite a contiguous (draws, ...) tensor with independent noisy copies of x, which broadcasts to it.

        Args:
            out: float32, contiguous.
            x: On the lattice.
            generator: On the device of `out`.

        Raises:
            InputError: x is not on the lattice, or not of `dimension` numbers.
        """
        size = math.prod(out.shape[1:])
        if size != self.dimension:
            raise InputError(f"need inputs of dimension = {self.dimension} numbers; got {size}")
        v = to_lattice(x, self.levels).int().expand(out.shape)
        rows = max(1, _CHUNK // size)  # what fits a CPU's cache
        for part, points in zip(out.split(rows), v.split(rows), strict=True):
            self._look_up(part, points, self._places(part.numel(), generator).view(part.shape))

    def radius(self, p_a: float, p_b: float | None = None) -> float:
        """The L2 radius proved by class probabilities.

        Proves: If P(f(x + e) = A) >= p_a and P(f(x + e) = c) <= p_b for every other c, e being this noise as drawn,
        then g, the class most likely under this noise as drawn, is A at every lattice point x' of the closed ball of
        this radius around the lattice point x. So is the Gaussian smoothing of f composed with rounding, at every
        real x' of the ball; but only at lattice points can integer noise evaluate it, hence the region "lattice".

        Args:
            p_a: Lower bound on the top class; in [0, 1].
            p_b: Upper bound on every other class; 1 - p_a where not given.

        Returns: Radius >= 0 in input units, rounded down; 0.0 where nothing is proved.

        Raises:
            InputError: a probability is outside [0, 1].

        Source: Cohen et al. (2019), theorem 1; the defect is taken off at x, and once more at x'.
        """
        gaussian = Gaussian(self.sigma)
        if gaussian.radius(p_a, p_b) == 0:
            return 0.0
        defect = self.defect
        lower = max(0.0, p_a - defect)
        upper = min(1.0, (1 - p_a if p_b is None else min(p_b, 1 - p_a)) + defect)
        ideal = gaussian.radius(lower, upper)
        if ideal == 0:
            return 0.0
        # sigma * u inside the ideal radius, the two classes are Phi(c + u) - Phi(c - u) >= 2 u phi(|c| + 1) apart for
        # u <= 1; a gap of twice the defect keeps their order under the noise as drawn.
        c = float(ndtri(lower) + ndtri(upper)) / 2
        u = defect * math.sqrt(2 * math.pi) * math.exp((abs(c) + 1) ** 2 / 2)
        return max(0.0, ideal - self.sigma * u) if u <= 1 else 0.0

    def _places(self, count: int, generator: torch.Generator) -> Tensor:
        """Flat noise + reach."""
        uniform = torch.empty(count, dtype=torch.int64, device=generator.device)
        return self._invert(uniform.random_(generator=generator))

    def _invert(self, uniform: Tensor) -> Tensor:
        """How many cuts lie at or below each uniform: the inverse of the distribution function, plus reach."""
        cuts, guide, _ = _tables(self.deviation, self.reach, self.levels, uniform.device)
        place = guide.index_select(0, uniform >> (_UNIFORM_BITS - _BUCKET_BITS))
        unsettled = (place < 0).nonzero().squeeze(1)
        place[unsettled] = torch.searchsorted(cuts, uniform[unsettled], right=True, out_int32=True)
        return place

    def _look_up(self, out: Tensor, v: Tensor, place: Tensor) -> None:
        """Overwrite `out` with the floats of v + noise; `place`, which is noise + reach, is used up."""
        floats = _tables(self.deviation, self.reach, self.levels, out.device).floats
        torch.index_select(floats, 0, place.add_(v).reshape(-1), out=out.view(-1))
