"""The nearest error against the distance that errors in noise predict, over all seeds; in a half-space they agree."""

import re

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.special import ndtri

from figures.captions import about, columns, each_seed
from figures.marks import dots, legend, style, title
from paper_repro.recipes.records import Record, Records
from paper_repro.recipes.statistics import Measured, ratio


def draw(figure: Figure, records: Records) -> None:
    """Draw a panel of images for every network, its seeds by mark, and a panel of the slopes."""
    record = records["boundary"]
    names = record.notes["names"]
    figure.set_size_inches(3.1 * (len(names) + 1), 4.2)
    *panels, slopes = figure.subplots(1, len(names) + 1)
    used = [_used(record, name) for name in names]
    right, top = (1.05 * max(float(pair[k].max()) for pair in used) or 1.0 for k in (0, 1))
    for panel, name, (predicted, distance) in zip(panels, names, used, strict=True):
        for seed, (label, x, y) in enumerate(zip(each_seed(record), predicted, distance, strict=True)):
            look = style(seed) | {"ls": ""}
            panel.plot(x[x > 0], y[x > 0], ms=4, mew=0.8, fillstyle="none", label=label, **look)
        panel.plot([0, max(right, top)], [0, max(right, top)], "k--", lw=1, label="half-space: distance = prediction")
        panel.set(xlim=(0, right), ylim=(0, top))
        panel.set_xlabel(f"predicted: -sigma PhiInv({_mu(record):g})\n(L2, input units)")
        counts = ", ".join(str(int((x > 0).sum())) for x in predicted)
        panel.set_title(f"{name}: {counts}\nof {predicted.shape[1]} images by seed", fontsize=9)
    panels[0].set_ylabel("distance of the nearest error, by PGD\n(L2, input units)")
    dots(slopes, names, {"": [slope(record, name) for name in names]})
    slopes.axvline(1.0, color="0.4", lw=1, ls="--")
    slopes.set_xlabel("slope of distance against prediction")
    title(figure, f"Distance to the boundary and errors in noise: {about(record, columns(record, 'sigma'))}")
    legend(figure, panels[0], 4)


def slope(record: Record, name: str) -> Measured:
    """The mean slope over seeds, as in the table, and the hull of every seed's bootstrap over its images."""
    predicted, distance = _used(record, name)
    if not predicted.any(1).all():
        return Measured(np.nan, np.nan, np.nan)
    used = [(x[x > 0], y[x > 0]) for x, y in zip(predicted, distance, strict=True)]
    # By least squares through the origin a slope is a quotient of means.
    found = [ratio([x * y], [x**2]) for x, y in used]
    value = float(record.of("slope", name).mean())
    return Measured(value, min(m.low for m in found), max(m.high for m in found))


def _used(record: Record, name: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(seeds, n) prediction and distance; both 0 where an image is misclassified, or one of the two was not found."""
    sigma, distance = record.of("sigma", name), record.of("distance", name)
    used = (sigma > 0) & np.isfinite(sigma) & np.isfinite(distance)
    return -float(ndtri(_mu(record))) * np.where(used, sigma, 0.0), np.where(used, distance, 0.0)


def _mu(record: Record) -> float:
    """The rate of errors in noise that sets sigma."""
    found = re.search(r"\bmu=([0-9.e-]+)", record.notes["method"])
    return float(found[1]) if found else np.nan
