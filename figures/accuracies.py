"""Accuracies of several trainings on the same images, and how far each is above one of them, image by image."""

import numpy as np
from matplotlib.figure import Figure

from figures.captions import about, threat
from figures.marks import SHARES, dots, gains, legend, title
from paper_repro.recipes.loss_landscape_stages import WARMED
from paper_repro.recipes.records import Records
from paper_repro.recipes.statistics import accuracy, difference


def draw(figure: Figure, records: Records, stage: str = "schedules", base: str = WARMED) -> None:
    """Draw clean and robust accuracy on the left, the paired difference in robust accuracy on the right."""
    record = records[stage]
    names = record.notes["names"]
    robust = {name: np.isinf(record.of("distance", name)) for name in names}
    figure.set_size_inches(10, 2.1 + 0.36 * len(names))
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    shown = {
        "clean accuracy": [accuracy(record.of("correct", name)) for name in names],
        "robust accuracy": [accuracy(hits) for hits in robust.values()],
    }
    dots(left, names, shown)
    left.set(xlabel="share of images", xlim=SHARES)
    others = {name: difference(hits, robust[base]) for name, hits in robust.items() if name != base}
    gains(right, names, others, f"robust accuracy less that of\n'{base}'")
    title(figure, f"Clean, and under attack in {threat(record)}: {about(record)}")
    legend(figure, left)
