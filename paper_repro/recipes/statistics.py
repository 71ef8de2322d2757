"""Numbers with both of their uncertainties: that of the seeds, and that of the images."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtri

from analysis.evaluation import exact_interval, round_down, round_up
from certify.accuracy import FloatArray, mean_estimate
from paper_repro.recipes.records import NotRecorded

RHO = 0.05
_RESAMPLES = 1000
_exact_interval = cache(exact_interval)


@dataclass(frozen=True, slots=True)
class Measured:
    """A number, and an interval that holds what the images and what the seeds leave open.

    Attributes:
        value: Mean over seeds.
        low: The least of all seeds' lower ends over images; where there is no interval over images, the least seed.
        high: Likewise above.
        spread: What the two ends are about, in words; "" for a number without chance.
    """

    value: float
    low: float
    high: float
    spread: str = "images and seeds"

    def __str__(self) -> str:
        return (
            f"{self.value:.4g} [{self.low:.4g}, {self.high:.4g}] over {self.spread}"
            if self.spread
            else f"{self.value:g}"
        )


def _spread(seeds: int) -> str:
    return "images and seeds" if seeds > 1 else "images, one seed"


def exactly(value: float) -> Measured:
    """A number without chance, such as a count."""
    return Measured(value, value, value, "")


def over_seeds(values: ArrayLike) -> Measured:
    """The mean of (seeds,) numbers, and the least and the largest of them."""
    v = np.asarray(values, np.float64)
    return Measured(float(v.mean()), float(v.min()), float(v.max()), "seeds" if len(v) > 1 else "one seed")


def difference(first: ArrayLike, second: ArrayLike) -> Measured:
    """Mean of first - second, (seeds, n) each on the same images: the hull of every seed's paired 95 % interval.

    Of hits, the interval of Agresti & Min (2005), which has a width where all images agree; of numbers, the normal one.
    """
    a, b = np.asarray(first), np.asarray(second)
    interval = _of_hits if a.dtype == b.dtype == np.bool_ else _normal
    with np.errstate(invalid="ignore"):  # infinite distances on both sides leave no number
        gaps = a.astype(np.float64) - b.astype(np.float64)
        return _hull(float(gaps.mean()), [interval(row) for row in gaps])


def between_trainings(first: ArrayLike, second: ArrayLike) -> Measured:
    """`difference`, where it is of two trainings: one seed of each cannot tell it from that of two of one's own seeds.

    Raises:
        NotRecorded: there is one seed.
    """
    found = difference(first, second)
    if len(np.asarray(first)) < 2:
        raise NotRecorded(f"{found}, and two seeds of one training differ by as much")
    return found


def _hull(value: float, ends: Sequence[tuple[float, float]]) -> Measured:
    # A normal interval holds the mean of its own seed; that of hits may just miss it.
    return Measured(value, min(value, *(e[0] for e in ends)), max(value, *(e[1] for e in ends)), _spread(len(ends)))


def _normal(values: FloatArray) -> tuple[float, float]:
    return mean_estimate(values, RHO)[2]


def _of_hits(gaps: FloatArray) -> tuple[float, float]:
    """Of a mean of paired differences of hits, each -1, 0 or 1: half a pair is added to each of the four cells."""
    n, total = len(gaps) + 2, float(gaps.sum())
    half = float(ndtri(1 - RHO / 2)) * math.sqrt(float(np.abs(gaps).sum()) + 1 - total**2 / n) / n
    return total / n - half, total / n + half


def ratio(first: ArrayLike, second: ArrayLike) -> Measured:
    """Mean of first over mean of second, (seeds, n) each on the same images.

    The interval is the hull of every seed's paired bootstrap at 95 % over images. Not a number where a distance is
    infinite.
    """
    a, b = np.asarray(first, np.float64), np.asarray(second, np.float64)
    # The resampling is no part of any experiment: one fixed seed serves every table.
    chosen = np.random.default_rng(0).integers(a.shape[1], size=(_RESAMPLES, a.shape[1]))
    with np.errstate(invalid="ignore", divide="ignore"):
        resampled = (x[chosen].mean(1) / y[chosen].mean(1) for x, y in zip(a, b, strict=True))
        ends = [tuple(np.quantile(quotients, [RHO / 2, 1 - RHO / 2]).tolist()) for quotients in resampled]
        return _hull(float(a.mean() / b.mean()), ends)


def accuracy(hits: NDArray[np.bool_]) -> Measured:
    """The share of (seeds, n) hits: mean over seeds, and the hull of every seed's exact 95 % interval over images."""
    n = hits.shape[1]
    return _hull(float(hits.mean()), [_exact_interval(int(count), n, RHO) for count in hits.sum(1)])


def image_mean(values: ArrayLike) -> Measured:
    """The mean of (seeds, n) numbers, and the hull of every seed's normal 95 % interval over images."""
    v = np.asarray(values, np.float64)
    return _hull(float(v.mean()), [_normal(row) for row in v])


def share(hits: NDArray[np.bool_]) -> str:
    """A cell: mean and standard deviation over seeds, and an interval over images.

    Args:
        hits: (seeds, n) bool.

    Returns: "0.8430 +- 0.0120 [0.8011, 0.8790]"; the bracket holds the exact 95 % interval of every seed.
    """
    ends = accuracy(hits)
    return f"{average(hits.mean(1))} [{round_down(ends.low)}, {round_up(ends.high)}]"


def average(values: ArrayLike) -> str:
    """A cell: mean and standard deviation of (seeds,) numbers; one seed has no deviation."""
    v = np.asarray(values, np.float64)
    sd = float(np.std(v, ddof=1)) if len(v) > 1 and np.isfinite(v).all() else math.nan
    return f"{v.mean():.4f} +- {sd:.4f}" if math.isfinite(sd) else f"{v.mean():.4f}"


def mean_of(values: NDArray[np.float64]) -> str:
    """A cell: mean and deviation over seeds of (seeds, n) numbers, and the interval of `image_mean`."""
    ends = image_mean(values)
    return f"{average(values.mean(1))} [{ends.low:.4f}, {ends.high:.4f}]"
