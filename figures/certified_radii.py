"""Average certified radius by training method, and how far each is above Gaussian augmentation, image by image."""

import numpy as np
from matplotlib.figure import Figure

from figures.captions import about
from figures.marks import dots, gains, title
from paper_repro.recipes.records import Records
from paper_repro.recipes.statistics import accuracy, difference, image_mean

_BASE = "Gaussian"


def draw(figure: Figure, records: Records) -> None:
    """Draw the average certified radius, the accuracy of g, and the paired difference in radius."""
    record = records["radius"]
    names = record.notes["names"]
    radius = {name: np.where(record.of("right", name), record.of("radius", name), 0.0) for name in names}
    figure.set_size_inches(11, 1.9 + 0.36 * len(names))
    left, middle, right = figure.subplots(1, 3, sharey=True)
    dots(left, names, {"": [image_mean(r) for r in radius.values()]})
    left.set(xlabel="average certified radius (L2)")
    dots(middle, names, {"": [accuracy(record.of("right", name)) for name in names]}, first=1)
    middle.set(xlabel="accuracy of g")
    middle.tick_params(labelleft=False)
    others = {name: difference(r, radius[_BASE]) for name, r in radius.items() if name != _BASE}
    gains(right, names, others, f"average radius less that of '{_BASE}'")
    title(figure, f"Training for smoothing: {about(record)}")
