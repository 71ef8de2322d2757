"""Randomized smoothing with as few votes as each example needs: anytime-valid tests on one stream."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import betaincinv
from torch import Tensor, nn

from certify.binomial import check_alpha
from certify.certificate import ABSTAIN, Certificate, PerExample
from certify.confseq import FloatArray, kt_bounds, threshold_test
from certify.errors import InputError
from certify.noise import Noise
from certify.rng import Stream
from certify.smoothing import check_count, subject
from certify.threat import Box, check_box
from certify.voting import BaseClassifier, check_inputs, count_votes, label_streams, leaders

BoolArray = np.ndarray[tuple[int, ...], np.dtype[np.bool_]]
IntArray = np.ndarray[tuple[int, ...], np.dtype[np.int64]]

_FIRST_LOOK = 16
_LOOK_GROWTH = 0.05


def threshold(noise: Noise, radius: float) -> float:
    """The least class probability that proves a radius: the inverse of `noise.radius`, rounded up.

    Args:
        noise: The smoothing distribution.
        radius: >= 0.

    Returns: A float p in [1/2, 1] with noise.radius(p) >= radius; 1.0 where even certainty proves less.
    """
    low, high = 0.5, 1.0
    if radius <= 0:
        return low
    while (middle := (low + high) / 2) not in (low, high):
        low, high = (low, middle) if noise.radius(middle) >= radius else (middle, high)
    return high


def looks(n_max: int) -> Iterator[int]:
    """Votes from one look to the next: 16 at first, then about 5 % of those so far, n_max in total.

    A function of n_max alone, so that every example of every batch is looked at after the same votes.
    """
    total = 0
    while total < n_max:
        step = min(max(_FIRST_LOOK, int(total * _LOOK_GROWTH) // _FIRST_LOOK * _FIRST_LOOK), n_max - total)
        total += step
        yield step


@dataclass(frozen=True, slots=True)
class AdaptiveSmoothing:
    """Certify a smoothed classifier on a grid of radii, stopping each example as soon as its answer is known.

    Radii are opened in increasing order on one stream of votes, each with a test of its own (`confseq.ThresholdTest`).
    The largest one certified is valid at alpha whenever one stops, so stopping rules are free: an example stops when
    the last radius is certified, when the next one is out of reach (`futility`), or at n_max votes.

    Args:
        noise: The smoothing distribution.
        radii: Increasing, from 0 on, in the noise's norm; the certificate's radius is one of them.
        n0: Votes that choose the class; they are not used again.
        n_max: The most votes that bound its probability.
        alpha: Failure probability per example, over all radii and looks together.
        futility: Give up on the next radius when votes at the (1 - futility) upper confidence bound of the success rate
            would not certify it by n_max. Costs power, never validity; 0 never gives up.
        box: Where inputs must lie; None for data that is not pixels.

    Raises:
        InputError: a value is out of range, or the noise cannot prove a radius even from certainty.

    Source: Voracek (2024) for betting on a radius; the even mixture, the opening of radii and the stopping are ours.
    """

    noise: Noise
    radii: tuple[float, ...]
    n0: int = 100
    n_max: int = 100_000
    alpha: float = 0.001
    futility: float = 0.03
    box: Box = (0.0, 1.0)

    def __post_init__(self) -> None:
        check_count("n0", self.n0)
        check_count("n_max", self.n_max)
        check_alpha(self.alpha)
        check_box(self.box)
        if not 0 <= self.futility < 1:
            raise InputError(f"need 0 <= futility < 1; got {self.futility!r}")
        rising = all(a < b for a, b in zip(self.radii, self.radii[1:], strict=False))
        if not self.radii or self.radii[0] < 0 or not rising or not math.isfinite(self.radii[-1]):
            raise InputError(f"need finite radii >= 0 in increasing order; got {self.radii!r}")
        if threshold(self.noise, self.radii[-1]) >= 1:
            raise InputError(f"{self.noise!r} proves no radius of {self.radii[-1]:g}, not even from certainty")

    def __call__(self, model: nn.Module | BaseClassifier, x: Tensor, *, rng: Stream | Sequence[Stream]) -> Certificate:
        """Certify each input.

        Proves: For each example that is not abstained on, g predicts `prediction` in the closed ball of `radius` in the
        noise's norm, with probability at least 1 - alpha per example over the draws, however the draws stopped.
        Real-valued noise; g smooths the base classifier as evaluated.

        Args:
            model: (n, ...) -> (n, classes) logits, in evaluation mode; or a BaseClassifier.
            x: (n, ...) float inputs in the box. Many together fill forward passes better; numbers do not depend on it.
            rng: One stream, or one per example.

        Returns: Certificate; `samples` says what each example took.

        Raises:
            InputError: training mode, shape, range or logits are wrong.
        """
        return certify_sequentially(self, Grid(self, len(x)), model, x, rng)


class Grid:
    """Which radius each example is at, and whether it goes on."""

    def __init__(self, method: AdaptiveSmoothing, n: int) -> None:
        self.method = method
        self.tests = [threshold_test(threshold(method.noise, r), method.alpha, method.n_max) for r in method.radii]
        self.opened = np.zeros(n, np.int64)  # radii[:opened] are certified

    def update(self, live: IntArray, hits: IntArray, trials: int) -> BoolArray:
        """Open radii as far as the votes go; returns which of the live examples continue."""
        going = np.ones(len(live), np.bool_)
        total = np.full(len(live), trials)
        for index, test in enumerate(self.tests):
            here = self.opened[live] == index
            self.opened[live[here]] += test.rejects(hits[here], total[here])
            # An example that just moved on meets the next test in the next turn of this loop.
            still = self.opened[live] == index
            going[still] = self._in_reach(index, hits[still], trials)
        going[self.opened[live] == len(self.tests)] = False
        return going

    def _in_reach(self, index: int, hits: IntArray, trials: int) -> BoolArray:
        """Whether optimistic votes until n_max would certify this radius."""
        misses, left = trials - hits, self.method.n_max - trials
        if self.method.futility == 0:
            return np.ones(len(hits), np.bool_)
        optimistic = np.ones(len(hits))
        some = misses > 0
        optimistic[some] = betaincinv(hits[some] + 1, misses[some], 1 - self.method.futility)
        return self.tests[index].rejects(hits + left * optimistic, np.full(len(hits), float(self.method.n_max)))

    def radius(self) -> tuple[FloatArray, BoolArray]:
        """Each example's certified radius, and whether anything is certified."""
        certified = self.opened > 0
        return np.where(certified, np.array(self.method.radii)[np.maximum(self.opened - 1, 0)], 0.0), certified


@dataclass(frozen=True, slots=True)
class ToleranceSmoothing:
    """Certify a smoothed classifier until its radius is known within a tolerance.

    Args:
        noise: The smoothing distribution.
        tolerance: Stop when the confidence sequence's radii, lower and upper, differ by at most this; > 0.
        n0: Votes that choose the class; they are not used again.
        n_max: The most votes that bound its probability. A unanimous vote has no finite upper radius under unbounded
            noise, and goes on until here.
        alpha: Failure probability per example, over all looks together.
        box: Where inputs must lie; None for data that is not pixels.

    Raises:
        InputError: a value is out of range.

    Source: Voracek (2024); the Krichevsky-Trofimov confidence sequence of `confseq.kt_bounds`.
    """

    noise: Noise
    tolerance: float
    n0: int = 100
    n_max: int = 100_000
    alpha: float = 0.001
    box: Box = (0.0, 1.0)

    def __post_init__(self) -> None:
        check_count("n0", self.n0)
        check_count("n_max", self.n_max)
        check_alpha(self.alpha)
        check_box(self.box)
        if not (math.isfinite(self.tolerance) and self.tolerance > 0):
            raise InputError(f"need a finite tolerance > 0; got {self.tolerance!r}")

    def __call__(self, model: nn.Module | BaseClassifier, x: Tensor, *, rng: Stream | Sequence[Stream]) -> Certificate:
        """Certify each input.

        Proves: As `AdaptiveSmoothing`, for a radius that is not confined to a grid.

        Args:
            model: (n, ...) -> (n, classes) logits, in evaluation mode; or a BaseClassifier.
            x: (n, ...) float inputs in the box.
            rng: One stream, or one per example.

        Returns: Certificate; `samples` says what each example took.

        Raises:
            InputError: training mode, shape, range or logits are wrong.
        """
        return certify_sequentially(self, Interval(self, len(x)), model, x, rng)


class Interval:
    """The running intersection of each example's confidence intervals."""

    def __init__(self, method: ToleranceSmoothing, n: int) -> None:
        self.method = method
        self.lower, self.upper = np.zeros(n), np.ones(n)

    def update(self, live: IntArray, hits: IntArray, trials: int) -> BoolArray:
        """Tighten the intervals; returns which of the live examples continue."""
        lower, upper = kt_bounds(hits, np.full(len(hits), trials), self.method.alpha)
        self.lower[live] = np.maximum(self.lower[live], lower)
        self.upper[live] = np.minimum(self.upper[live], upper)
        radius = self.method.noise.radius
        width = [radius(min(1.0, u)) - radius(p) for p, u in zip(self.lower[live], self.upper[live], strict=True)]
        # An upper end of one half or less proves that nothing will ever be certified.
        return (np.array(width) > self.method.tolerance) & (self.upper[live] > 0.5)

    def radius(self) -> tuple[FloatArray, BoolArray]:
        """Each example's certified radius, and whether anything is certified."""
        radius = np.array([self.method.noise.radius(p) for p in self.lower])
        return radius, radius > 0


def draw_until_decided(
    state: Grid | Interval, n: int, n_max: int, votes: Callable[[IntArray, int, int], IntArray]
) -> IntArray:
    """Look after look, draw for the examples that still need it; the others leave.

    Args:
        state: What the votes decide.
        n: Number of examples.
        n_max: The most votes per example.
        votes: votes(live, look, step) draws `step` more for each live example and gives all their hits so far.

    Returns: (n,) votes drawn per example.
    """
    live, drawn, trials = np.arange(n), np.zeros(n, np.int64), 0
    for look, step in enumerate(looks(n_max)):
        hits = votes(live, look, step)
        trials += step
        drawn[live] = trials
        live = live[state.update(live, hits, trials)]
        if not len(live):
            break
    return drawn


def certify_sequentially(
    method: AdaptiveSmoothing | ToleranceSmoothing,
    state: Grid | Interval,
    model: nn.Module | BaseClassifier,
    x: Tensor,
    rng: Stream | Sequence[Stream],
) -> Certificate:
    """Choose each example's class, then draw its votes until `state` has decided."""
    check_inputs(x, method.box)
    base, streams = BaseClassifier.of(model, x), label_streams(rng, x.shape[0])
    chosen = leaders(count_votes(base, x, method.noise, [s.child("select") for s in streams], method.n0))[0][:, 0]
    counts = torch.zeros(len(x), base.classes, dtype=torch.int64)

    def votes(live: IntArray, look: int, step: int) -> IntArray:
        names = [streams[i].child("estimate", look) for i in live]
        counts[live] += count_votes(base, x[live], method.noise, names, step)
        return counts[live, chosen[live]].numpy()

    drawn = draw_until_decided(state, len(x), method.n_max, votes)
    radius, certified = state.radius()
    return Certificate(
        prediction=torch.where(torch.from_numpy(certified), chosen, ABSTAIN),
        radius=torch.from_numpy(radius),
        norm=method.noise.norm,
        subject=subject(method.noise, base),
        guarantee=PerExample(method.alpha),
        method=method,
        samples=torch.from_numpy(drawn) + method.n0,
        counts=counts,
        region=method.noise.region,
        arithmetic=method.noise.arithmetic,
    )
