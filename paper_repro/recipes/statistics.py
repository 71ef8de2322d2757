"""Numbers with both of their uncertainties: that of the seeds, and that of the images."""

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from analysis.evaluation import exact_interval, round_down, round_up
from certify.accuracy import mean_estimate

RHO = 0.05
_RESAMPLES = 1000
_exact_interval = cache(exact_interval)


@dataclass(frozen=True, slots=True)
class Measured:
    """A number, and an interval that holds what the images and what the seeds leave open.

    Attributes:
        value: Mean over seeds.
        low: The smaller of the lower end over images and the least seed's own value.
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
    """Mean of first - second, (seeds, n) each on the same images: a normal interval at 95 % over images, paired.

    The images' values are means over seeds; the interval is widened to every seed's own difference.
    """
    with np.errstate(invalid="ignore"):  # infinite distances on both sides leave no number
        gaps = np.asarray(first, np.float64) - np.asarray(second, np.float64)
        mean, _, (low, high) = mean_estimate(gaps.mean(0), RHO)
        each = gaps.mean(1)
    return Measured(mean, min(low, float(each.min())), max(high, float(each.max())), _spread(len(gaps)))


def ratio(first: ArrayLike, second: ArrayLike) -> Measured:
    """Mean of first over mean of second, (seeds, n) each on the same images: paired bootstrap at 95 % over images.

    As for `difference`, widened to every seed's own ratio. Not a number where a distance is infinite.
    """
    a, b = np.asarray(first, np.float64), np.asarray(second, np.float64)
    # The resampling is no part of any experiment: one fixed seed serves every table.
    chosen = np.random.default_rng(0).integers(a.shape[1], size=(_RESAMPLES, a.shape[1]))
    with np.errstate(invalid="ignore", divide="ignore"):
        resampled = a.mean(0)[chosen].mean(1) / b.mean(0)[chosen].mean(1)
        low, high = np.quantile(resampled, [RHO / 2, 1 - RHO / 2])
        each = a.mean(1) / b.mean(1)
        value = float(a.mean() / b.mean())
    return Measured(value, float(min(low, each.min())), float(max(high, each.max())), _spread(len(a)))


def accuracy(hits: NDArray[np.bool_]) -> Measured:
    """The share of (seeds, n) hits: mean over seeds, and the hull of every seed's exact 95 % interval over images."""
    n = hits.shape[1]
    ends = [_exact_interval(int(count), n, RHO) for count in hits.sum(1)]
    return Measured(float(hits.mean()), min(e[0] for e in ends), max(e[1] for e in ends), _spread(len(hits)))


def image_mean(values: ArrayLike) -> Measured:
    """The mean of (seeds, n) numbers, averaged over seeds image by image, and its normal 95 % interval over images."""
    mean, _, (low, high) = mean_estimate(np.asarray(values, np.float64).mean(0), RHO)
    return Measured(mean, low, high, "images")


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
    """A cell: mean and deviation over seeds of (seeds, n) numbers, and the normal interval of their mean over images.

    The mean over seeds is taken image by image first.
    """
    ends = image_mean(values)
    return f"{average(values.mean(1))} [{ends.low:.4f}, {ends.high:.4f}]"
