"""The published table: certified accuracy from a fixed number of votes, and from as many as each image needs."""

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from figures.captions import about
from figures.marks import SHARES, apart, curve, legend, line, radii_to, style, title
from paper_repro.recipes.records import Record, Records
from paper_repro.recipes.statistics import accuracy


def draw(figure: Figure, records: Records, stage: str = "votes") -> None:
    """Draw a panel for every sigma, a curve for every training.

    The adaptive certifier answers at the radii of the table and at no others: there, marks with bars.
    """
    record = records[stage]
    names, radii, sigmas = record.notes["names"], record.notes["radii"], record.notes["sigmas"]
    figure.set_size_inches(3.6 * len(sigmas), 4.2)
    panels = figure.subplots(1, len(sigmas), sharey=True, squeeze=False)[0]
    for panel, sigma in zip(panels, sigmas, strict=True):
        mine = [name for name in names if float(name.split()[1]) == sigma]
        largest = max(float(_scores(record, name).max()) for name in mine)
        stop = 1.05 * max(largest, radii[1] if len(radii) > 1 else 1.0)
        shown = [r for r in radii if r <= stop]
        for k, name in enumerate(mine):
            scores, label = _scores(record, name), name.split()[0]
            if stage == "votes":
                curve(panel, scores, radii_to(stop), label, style(k), shown)
            else:
                found = [accuracy(scores >= r) for r in shown]
                line(panel, shown, found, label, style(k), beside=apart(k, len(mine)))
        votes = ", ".join(f"{name.split()[0]} {record.of('samples', name).mean():,.0f}" for name in mine)
        panel.set(xlabel="L2 radius (input units)", ylim=SHARES)
        panel.set_title(f"sigma = {sigma:g}\nvotes per image: {votes}", fontsize=8)
    panels[0].set_ylabel("certified accuracy of g")
    kind = "a fixed number of votes" if stage == "votes" else "as many votes as each image needs"
    title(figure, f"Certified accuracy from {kind}: {about(record)}")
    legend(figure, panels[0])


def _scores(record: Record, name: str) -> NDArray[np.float64]:
    return np.where(record.of("right", name), record.of("radius", name), -1.0)
