"""The ladder of the MNIST challenge: what each attack leaves of our network, and of the published one."""

import re

import numpy as np
from matplotlib.figure import Figure

from figures.captions import about, threat
from figures.marks import SHARES, dots, legend, title
from paper_repro.recipes.challenge import ALL, PUBLISHED, survives
from paper_repro.recipes.records import Records
from paper_repro.recipes.statistics import Measured, accuracy


def draw(figure: Figure, records: Records) -> None:
    """Draw a row for every attack, in the order of the table."""
    record = records["ladder"]
    names = [*record.notes["names"], ALL]
    figure.set_size_inches(8.0, 1.6 + 0.4 * len(names))
    axes = figure.subplots()
    shown = {
        "our network": [accuracy(record.arrays["correct"][0]), *(accuracy(survives(records, n)) for n in names)],
        "published network, not ours": [_published(name) for name in ("none", *names)],
    }
    dots(axes, ["no attack", *names], shown)
    axes.set(xlabel="accuracy", xlim=SHARES)
    title(figure, f"Ladder of the MNIST challenge in {threat(record)}: {about(record)}")
    legend(figure, axes)


def _published(name: str) -> Measured:
    """The number of a published cell, without an interval; none where nothing is published."""
    found = re.match(r"[\d.]+", PUBLISHED.get(name, ""))
    return Measured(float(found[0]) if found else np.nan, np.nan, np.nan)
