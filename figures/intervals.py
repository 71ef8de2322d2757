"""A mean that drawings show where not every image has a number."""

import numpy as np
from numpy.typing import NDArray

from paper_repro.recipes.statistics import Measured, image_mean


def found_mean(values: NDArray[np.float64]) -> Measured:
    """The mean of the finite ones among (seeds, n) numbers, as a mean over seeds, and the hull of their intervals.

    They are normal at 95 % over the images with a finite number. Not a number where a seed has none.
    """
    finite = np.isfinite(values)
    if not finite.any(1).all():
        return Measured(np.nan, np.nan, np.nan)
    found = [image_mean(row[None, kept]) for row, kept in zip(values, finite, strict=True)]
    return Measured(float(np.mean([m.value for m in found])), min(m.low for m in found), max(m.high for m in found))
