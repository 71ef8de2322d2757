"""Certified accuracy by three bounds on the same votes of the same networks."""

import numpy as np
from matplotlib.figure import Figure

from figures.captions import about
from figures.marks import SHARES, curve, legend, radii_to, style, title
from paper_repro.recipes.records import Records
from paper_repro.recipes.stability import BOUNDS


def draw(figure: Figure, records: Records) -> None:
    """Draw a panel for every training, a curve for every bound."""
    record = records["votes"]
    names, radii = record.notes["names"], record.notes["radii"]
    figure.set_size_inches(3.6 * len(names), 4.2)
    panels = figure.subplots(1, len(names), sharex=True, sharey=True, squeeze=False)[0]
    stop = 1.05 * max(float(record.arrays[bound].max()) for bound in BOUNDS) or 1.0
    for panel, name in zip(panels, names, strict=True):
        for k, bound in enumerate(BOUNDS):
            scores = np.where(record.of("right", name), record.of(bound, name), -1.0)
            curve(panel, scores, radii_to(stop), bound, style(k), [r for r in radii if r <= stop])
        panel.set(xlabel="L2 radius (input units)", xlim=(0, stop), ylim=SHARES)
        panel.set_title(f"trained by {name}", fontsize=10)
    panels[0].set_ylabel("certified accuracy of g")
    title(figure, f"Three bounds on the same votes: {about(record)}")
    legend(figure, panels[0])
