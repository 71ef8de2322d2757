"""A mean that drawings show where not every image has a number."""

import numpy as np
from numpy.typing import NDArray

from certify.accuracy import mean_estimate
from paper_repro.recipes.statistics import RHO, Measured


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
