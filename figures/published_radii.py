"""The published table: our average certified radius beside the published one on the same images."""

import numpy as np
from matplotlib.figure import Figure

from figures.captions import about
from figures.marks import dots, gains, legend, title
from paper_repro.recipes.published_table import PUBLISHED, PUBLISHED_SD
from paper_repro.recipes.records import Records
from paper_repro.recipes.statistics import Measured, difference, image_mean


def draw(figure: Figure, records: Records) -> None:
    """Draw both radii by network, and by how much stability training is above Gaussian augmentation."""
    record = records["votes"]
    names = [name for name in PUBLISHED if name in record.notes["names"]]
    radius = {name: np.where(record.of("right", name), record.of("radius", name), 0.0) for name in names}
    figure.set_size_inches(9.5, 2.0 + 0.4 * len(names))
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    shown = {
        "ours": [image_mean(r) for r in radius.values()],
        "published, the same images of MNIST, 5 seeds": [_published(name) for name in names],
    }
    dots(left, names, shown)
    left.set(xlabel="average certified radius (L2, input units)")
    found = {}
    for name in names:
        rival = name.replace("stability", "gaussian")
        if rival != name and rival in radius:
            found[name] = difference(radius[name], radius[rival])
    gains(right, names, found, "stability less gaussian, ours")
    title(figure, f"Average certified radius: {about(record)}")
    legend(figure, left)


def _published(name: str) -> Measured:
    """The mean of the published seeds, and a standard deviation of theirs to either side."""
    mean, sd = PUBLISHED[name], PUBLISHED_SD[name]
    return Measured(mean, mean - sd, mean + sd, "published seeds")
