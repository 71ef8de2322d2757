"""Deep Defense: how far the nearest error is, by every attack and network, and how much farther than before."""

import math

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from figures.captions import about
from figures.intervals import found_mean
from figures.marks import dots, legend, title
from paper_repro.recipes.deep_defense import NEAREST
from paper_repro.recipes.records import Record, Records
from paper_repro.recipes.statistics import Measured, ratio


def draw(figure: Figure, records: Records) -> None:
    """Draw the mean relative distance by attack on the left, the quotient over the plain network on the right."""
    record = records["distances"]
    names, attacks = record.notes["names"], [*record.notes["attacks"], NEAREST]
    figure.set_size_inches(10, 2.2 + 0.62 * len(names))
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    shown = {attack: [found_mean(_rho(record, name, attack)) for name in names] for attack in attacks}
    shares = {attack: [_share(record, name, attack) for name in names] for attack in attacks}
    dots(left, names, shown, notes=shares)
    left.set(xlabel="mean of L2 distance over the L2 norm of the image", xlim=(0, None))
    right.axvline(1.0, color="0.4", lw=1, ls="--")
    dots(right, names, {"quotient": [_gain(record, name) for name in names]}, first=6)
    right.set(xlabel="nearest of all, over the plain network's")
    right.tick_params(labelleft=False)
    title(figure, f"Distance of the nearest error: {about(record)}")
    legend(figure, left, 5)


def _rho(record: Record, name: str, attack: str) -> NDArray[np.float64]:
    return record.of(attack, name) / np.array(record.notes["size"])


def _share(record: Record, name: str, attack: str) -> str:
    """On which share of the images the attack found an error; empty where on all, as then the mean is over all."""
    found = np.isfinite(record.of(attack, name))
    return "" if found.all() else f"{math.floor(100 * found.mean())} %"


def _gain(record: Record, name: str) -> Measured:
    first, plain = _rho(record, name, NEAREST), _rho(record, "plain", NEAREST)
    found = (np.isfinite(first) & np.isfinite(plain)).all(0)
    return ratio(first[:, found], plain[:, found]) if found.any() else Measured(np.nan, np.nan, np.nan)
