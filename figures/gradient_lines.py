"""Gradient scattering: the loss's slope along a line in parameter space, with the adversary held and answering anew."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from figures.captions import about, images
from figures.marks import dots, legend, line, style, title
from paper_repro.recipes.loss_landscape import line_places
from paper_repro.recipes.records import Record, Records
from paper_repro.recipes.statistics import over_seeds

_COLUMNS = 3
_KINDS = (("line_frozen", "perturbations held fixed"), ("line_reattacked", "attacked anew at every point"))


def draw(figure: Figure, records: Records) -> None:
    """Draw a panel for the line of every eps, and one for the jumps."""
    record = records["landscape"]
    names = record.notes["names"]
    rows = -(-(len(names) + 1) // _COLUMNS)
    figure.set_size_inches(11, 0.8 + 3.1 * rows)
    panels: list[Axes] = []
    for k, name in enumerate(names):
        panels.append(figure.add_subplot(rows, _COLUMNS, k + 1, sharey=panels[0] if panels else None))
        _line(panels[-1], record, name)
    for panel in panels[::_COLUMNS]:
        panel.set_ylabel("slope of the loss, v'grad")
    _jumps(figure.add_subplot(rows, _COLUMNS, len(names) + 1), record)
    title(
        figure,
        f"Slope at theta + t v along the top eigenvector v: {about(record, images(record, 'training images'))}",
    )
    legend(figure, panels[0])


def _line(axes: Axes, record: Record, name: str) -> None:
    for k, (key, label) in enumerate(_KINDS):
        found = [over_seeds(column) for column in record.of(key, name).T]
        line(axes, line_places(record), found, label, style(k), shaded=True)
    axes.axhline(0.0, color="0.4", lw=0.8)
    jump = over_seeds(record.of("jump", name))
    axes.set_xlabel("distance t in parameter space")
    axes.set_title(f"eps = {name}: jump {jump.value:.2g} [{jump.low:.2g}, {jump.high:.2g}]", fontsize=10)


def _jumps(axes: Axes, record: Record) -> None:
    names = record.notes["names"]
    dots(axes, [f"eps = {name}" for name in names], {"": [over_seeds(record.of("jump", name)) for name in names]}, 2)
    for place, name in enumerate(names):
        every = record.of("jump", name)
        axes.plot(every, np.full(len(every), place + 0.2), ls="", marker="|", color="black", ms=7)
    axes.set_xlabel("jump of the gradient (L2 norm); strokes: seeds")
    axes.set_title("largest jump met on the line", fontsize=10)
