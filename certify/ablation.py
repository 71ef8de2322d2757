"""Randomized ablation: a classifier that sees few pixels is hard to change through few pixels. Certifies L0."""

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

import torch
from torch import Tensor

from certify.errors import InputError
from certify.threat import Norm, Region

NULL = -1.0
"""What stands for a pixel that is not shown; outside [0, 1]. `certify.layers.AblationEncoding` tells it from grey."""

_KEYS = 1 << 31
_CHUNK = 1 << 17


@dataclass(frozen=True, slots=True)
class Ablation:
    """Show `keep` pixels, chosen uniformly without replacement, and NULL elsewhere; certifies L0.

    A pixel is a spatial position: its channels are kept or dropped together, and L0 counts positions, whatever happens
    to their channels. Inputs are (d,) or (channels, ...); all but the first dimension of the latter are positions.

    Args:
        keep: Pixels shown in each copy; 1 <= keep <= pixels.
        pixels: Positions per input.

    Raises:
        InputError: an argument is out of range.

    Source: Levine & Feizi (2020), "Robustness certificates for sparse adversarial attacks by randomized ablation".
    """

    keep: int
    pixels: int
    norm: ClassVar[Norm] = "L0"
    arithmetic: ClassVar[str] = "integers and fractions; exact up to the classifier's determinism"
    region: ClassVar[Region] = "ball"

    def __post_init__(self) -> None:
        whole = all(isinstance(v, int) and not isinstance(v, bool) for v in (self.keep, self.pixels))
        if not whole or not 1 <= self.keep <= self.pixels:
            raise InputError(f"need integers 1 <= keep <= pixels; got keep = {self.keep!r}, pixels = {self.pixels!r}")

    def kept(self, draws: int, generator: torch.Generator) -> Tensor:
        """Choose the pixels of each draw.

        Proves: Every row is uniform among the subsets of `keep` pixels, if the generator's numbers are independent and
        alike; a draw where two keys tie across the edge of the subset is drawn again, which keeps the symmetry.

        Returns: (draws, pixels) bool, `keep` of each row true, on the generator's device.
        """
        kept = torch.empty(draws, self.pixels, dtype=torch.bool, device=generator.device)
        rows = torch.arange(draws, device=generator.device)
        while len(rows):
            keys = torch.empty(len(rows), self.pixels, dtype=torch.int32, device=generator.device)
            keys.random_(0, _KEYS, generator=generator)
            smallest = keys <= keys.kthvalue(self.keep, dim=1, keepdim=True).values
            kept[rows] = smallest
            rows = rows[smallest.sum(1) != self.keep]
        return kept

    def perturb(self, out: Tensor, x: Tensor, generator: torch.Generator) -> None:
        """Overwrite a contiguous (draws, ...) tensor with independent ablations of x, which broadcasts to it.

        Raises:
            InputError: x does not have `pixels` positions.
        """
        positions = out.shape[1:] if out.ndim == 2 else out.shape[2:]
        if math.prod(positions) != self.pixels:
            raise InputError(f"need inputs of {self.pixels} pixels; got {math.prod(positions)}, {tuple(out.shape[1:])}")
        out.copy_(x.expand(out.shape))
        rows = max(1, _CHUNK // self.pixels)  # what fits a CPU's cache
        for part in out.split(rows):
            channels = [] if out.ndim == 2 else [1]
            part.masked_fill_(~self.kept(len(part), generator).view(len(part), *channels, *positions), NULL)

    def delta(self, changed: int) -> Fraction:
        """The probability that some changed pixel is shown: 1 - C(pixels - changed, keep) / C(pixels, keep)."""
        return 1 - Fraction(math.comb(self.pixels - changed, self.keep), math.comb(self.pixels, self.keep))

    def radius(self, p_a: float | Fraction, p_b: float | Fraction | None = None) -> float:
        """The L0 radius proved by class probabilities.

        Proves: If P(f(ablated x) = A) >= p_a and P(f(ablated x) = c) <= p_b for every other c, then A is strictly the
        most likely class at every x' that differs from x in at most this many pixels, by whatever values. The radius is
        the largest integer rho with p_a - delta(rho) > p_b + delta(rho), compared as fractions.

        Args:
            p_a: Lower bound on the top class; in [0, 1].
            p_b: Upper bound on every other class; 1 - p_a where not given.

        Returns: A whole number of pixels; 0.0 where no rho > 0 is proved.

        Raises:
            InputError: a probability is outside [0, 1].

        Source: Levine & Feizi (2020), theorem 1 and its multi-class form.
        """
        if not 0 <= p_a <= 1 or not (p_b is None or 0 <= p_b <= 1):
            raise InputError(f"need probabilities 0 <= p_a, p_b <= 1; got p_a = {p_a!r}, p_b = {p_b!r}")
        rest = 1 - Fraction(p_a)
        gap = Fraction(p_a) - (rest if p_b is None else min(Fraction(p_b), rest))
        # 2 * delta < gap, over a common denominator: 2 C(pixels - rho, keep) > (2 - gap) C(pixels, keep).
        threshold = (2 - gap) * math.comb(self.pixels, self.keep) / 2
        low, high = 0, self.pixels - self.keep + 1
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if math.comb(self.pixels - middle, self.keep) > threshold else (low, middle)
        return float(low)
