"""The numbers that drawings show, with the very intervals that the tables beside them state."""

from functools import cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from analysis.evaluation import exact_interval
from certify.accuracy import mean_estimate
from paper_repro.recipes.statistics import RHO, Measured

_exact_interval = cache(exact_interval)


def accuracy(hits: NDArray[np.bool_]) -> Measured:
    """The share of (seeds, n) hits: mean over seeds, and the hull of every seed's exact 95 % interval over images."""
    n = hits.shape[1]
    ends = [_exact_interval(int(count), n, RHO) for count in hits.sum(1)]
    return Measured(float(hits.mean()), min(e[0] for e in ends), max(e[1] for e in ends))


def image_mean(values: ArrayLike) -> Measured:
    """The mean of (seeds, n) numbers, averaged over seeds image by image, and its normal 95 % interval over images."""
    mean, _, (low, high) = mean_estimate(np.asarray(values, np.float64).mean(0), RHO)
    return Measured(mean, low, high)


def found_mean(values: NDArray[np.float64]) -> Measured:
    """The mean of the finite ones among (seeds, n) numbers, as a mean over seeds.

    Its normal 95 % interval is over the images with a finite number in any seed, widened to every seed's own mean.
    Not a number where a seed has none.
    """
    finite = np.isfinite(values)
    if not finite.any(1).all():
        return Measured(np.nan, np.nan, np.nan)
    each = np.array([row[kept].mean() for row, kept in zip(values, finite, strict=True)])
    kept = finite.any(0)
    per_image = np.where(finite, values, 0.0).sum(0)[kept] / finite.sum(0)[kept]
    _, _, (low, high) = mean_estimate(per_image, RHO)
    return Measured(float(each.mean()), min(low, float(each.min())), max(high, float(each.max())))
