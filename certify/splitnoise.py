"""Splitting noise without chance: a deterministic L1 certificate, from as many votes as there are shifts."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from certify.certificate import Certificate, Deterministic
from certify.errors import InputError
from certify.lattice import LATTICE, check_levels, to_lattice
from certify.rng import Stream
from certify.smoothing import subject
from certify.voting import BLOCK, BaseClassifier, check_inputs, leaders, tally

_MOST_SHIFTS = 1 << 24
_CHUNK = 1 << 17
ARITHMETIC = "integers; exact up to the classifier's determinism"


def shift_count(scale: float, levels: int) -> int:
    """The shifts that move every cut through one period of 2 * scale, in steps of the lattice.

    Raises:
        InputError: scale or levels is out of range, or the period is not a whole number of steps.
    """
    check_levels(levels)
    if not (math.isfinite(scale) and scale > 0):
        raise InputError(f"need a finite scale > 0; got {scale!r}")
    period = 2 * scale * levels
    if period > _MOST_SHIFTS:
        raise InputError(f"need 2 * scale * levels <= {_MOST_SHIFTS}, all of which are classified; got {period!r}")
    shifts = round(period)
    if shifts < 1 or abs(period - shifts) > 1e-9 * shifts:
        near = f"{max(1, shifts)} / {2 * levels}"
        raise InputError(f"need 2 * scale * levels a whole number of steps, such as scale = {near}; got {period!r}")
    return shifts


def midpoint_table(levels: int) -> Tensor:
    """The floats that a base classifier may see: k / (4 * levels) for k = 0 .. 4 * levels."""
    return (torch.arange(4 * levels + 1, dtype=torch.float64) / (4 * levels)).float()


def show(out: Tensor, v: Tensor, below: Tensor, shifts: int, table: Tensor) -> None:
    """Overwrite `out` with the midpoint of the interval that holds each pixel, the interval cut to [0, 1].

    Args:
        out: float32, contiguous.
        v: Each pixel's lattice point; int32, broadcasts to `out`.
        below: How many whole steps the nearest cut below it is away, in [0, shifts); the cut itself lies half a step
            further down. int32, shaped like `out`.
        shifts: Steps from one cut to the next.
        table: Of `midpoint_table`.
    """
    levels = (len(table) - 1) // 4
    cut = (2 * v - 1) - 2 * below  # in half steps
    ends = cut.clamp(min=0).add_(cut.add_(2 * shifts).clamp_(max=2 * levels))
    torch.index_select(table, 0, ends.reshape(-1), out=out.view(-1))


def spare_shifts(counts: Sequence[int]) -> tuple[int, int]:
    """The most voted class, and how many votes may move before another one wins.

    Proves: If at most that many votes change, in whatever way, the prediction stays. Ties go to the lower class.

    Args:
        counts: Votes per class.

    Returns: The prediction, and an integer >= 0.
    """
    votes = torch.tensor([list(counts)])
    first = int(leaders(votes)[0][0, 0])
    return first, min((counts[first] - c - (k < first)) // 2 for k, c in enumerate(counts) if k != first)


@dataclass(frozen=True, slots=True)
class SplitNoise:
    """Certify L1 by deterministic splitting noise: every pixel is cut into intervals, and only the interval is shown.

    Cuts lie 2 * scale apart, half way between lattice levels, at an offset of the pixel's own; all pixels share one
    shift. g(x) is the class with most votes among the L = 2 * scale * levels shifts, all of which are classified.

    A step of one pixel to a neighbouring level crosses a cut under exactly one shift. Hence a perturbation of L1 length
    D / levels *from lattice point to lattice point* changes at most D votes. Continuous perturbations are not covered:
    the L shifts are a grid, not an integral, so a move of a hundredth of a step may cross a cut and change a vote, and
    the length no longer bounds the votes. g is not even defined off the lattice, and refuses such inputs. Images
    stored in 8 bits lie on it, and so does every adversarial image that anyone can save as one.

    Args:
        scale: Half the distance between cuts, in input units; 2 * scale * levels is an integer. From 0.5 on, a pixel in
            [0, 1] meets at most one cut.
        levels: Steps of the lattice from 0 to 1; inputs must lie on it.
        seed: Of the pixels' offsets, fixed once and for all: another seed is another g.

    Raises:
        InputError: an argument is out of range.

    Source: Levine & Feizi (2021), "Improved, deterministic smoothing for L1 certified robustness".
    """

    scale: float
    levels: int = 255
    seed: int = 0

    def __post_init__(self) -> None:
        _ = shift_count(self.scale, self.levels), Stream(self.seed)

    @property
    def shifts(self) -> int:
        """The votes per example: every position of the cuts."""
        return shift_count(self.scale, self.levels)

    def offsets(self, shape: Sequence[int]) -> Tensor:
        """Each pixel's offset in steps, in [0, shifts); the same on every machine."""
        bits = np.frombuffer(Stream(self.seed).child("offsets").bits(8 * math.prod(shape)), "<u8")
        return torch.from_numpy((bits % np.uint64(self.shifts)).astype(np.int64)).view(*shape)

    def __call__(
        self, model: nn.Module | BaseClassifier, x: Tensor, *, rng: Stream | Sequence[Stream] | None = None
    ) -> Certificate:
        """Certify each input.

        Proves: For each example, with certainty, g predicts `prediction` at every lattice point of [0, 1]^d within L1
        distance `radius`. The comparisons are between integers; what is taken for granted is that the base classifier
        as evaluated is a function of the values shown to it.

        Args:
            model: (n, ...) -> (n, classes) logits, in evaluation mode; or a BaseClassifier.
            x: (n, ...) float inputs on the lattice.
            rng: Not used: nothing is drawn. Every certifier takes one.

        Returns: Certificate with the counts of all shifts. The prediction never abstains; its radius may be 0.

        Raises:
            InputError: training mode, shape, range, lattice or logits are wrong.
        """
        check_inputs(x, (0.0, 1.0))
        v = to_lattice(x, self.levels)
        base = BaseClassifier.of(model, x)
        counts = self.count(base, v)
        best = [spare_shifts(row) for row in counts.tolist()]
        return Certificate(
            prediction=torch.tensor([first for first, _ in best]),
            radius=torch.tensor([self.length(spare) for _, spare in best], dtype=torch.float64),
            norm="L1",
            subject=subject(self, base),
            guarantee=Deterministic(),
            method=self,
            samples=torch.full((len(best),), self.shifts),
            counts=counts,
            region=LATTICE,
            arithmetic=ARITHMETIC,
        )

    def count(self, base: BaseClassifier, v: Tensor) -> Tensor:
        """The votes of all shifts.

        Args:
            base: The classifier.
            v: (n, ...) lattice points.

        Returns: (n, classes) int64 on the CPU; every row sums to `shifts`.

        Raises:
            InputError: a shape does not fit, or a logit is NaN or infinite.
        """
        if tuple(v.shape[1:]) != base.shape:
            raise InputError(f"need inputs of shape {base.shape}; got {tuple(v.shape[1:])}")
        shifts, v, table = self.shifts, v.to(base.device), midpoint_table(self.levels).to(base.device)
        # Under shift t the cuts lie at t + offset + 1/2, modulo the period; the distance down to one falls with t.
        start = ((v - 1 - self.offsets(base.shape).to(base.device)) % shifts).int()
        v = v.int()
        rows = max(1, _CHUNK // math.prod(base.shape))  # what fits a CPU's cache

        def write(example: int, block: int, out: Tensor) -> None:
            t = torch.arange(len(out), dtype=torch.int32, device=base.device).view(-1, *[1] * len(base.shape))
            for part, shift in zip(out.split(rows), (t + block * BLOCK).split(rows), strict=True):
                show(part, v[example], (start[example] - shift).remainder_(shifts), shifts, table)

        return tally(base, [shifts] * len(v), write)

    def length(self, steps: int) -> float:
        """A number of lattice steps as a length, rounded down."""
        quotient = steps / self.levels
        numerator, denominator = quotient.as_integer_ratio()
        return math.nextafter(quotient, 0) if numerator * self.levels > steps * denominator else quotient
