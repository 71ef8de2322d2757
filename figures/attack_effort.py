"""What more effort of an attack finds: PGD's step size, its restarts, and attacks without gradients."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from figures.captions import about
from figures.marks import DASHES, dots, legend, line, log_axis, style, title
from paper_repro.recipes.records import Record, Records
from paper_repro.recipes.statistics import accuracy, over_seeds


def draw(figure: Figure, records: Records) -> None:
    """Draw robust accuracy by step size, by restarts, and by kind of attack."""
    record = records["effort"]
    figure.set_size_inches(12.5, 4.4)
    steps, restarts, kinds = figure.subplots(1, 3, width_ratios=(4, 3, 3))
    _step_sizes(steps, record)
    _restarts(restarts, record)
    names = record.notes["names"]
    shown = {name: [accuracy(record.of(key, name)) for key in ("white", "black")] for name in names}
    dots(kinds, ["ladder with\ngradients", "black box"], shown)
    kinds.set(xlabel="robust accuracy")
    title(figure, f"Effort of the attack at Linf eps = {record.notes['eps']:g}: {about(record)}")
    legend(figure, steps, 2)


def _step_sizes(axes: Axes, record: Record) -> None:
    cells, n = record.notes["cells"], record.notes["n"]
    fractions = sorted({fraction for _, fraction in cells})
    for k, name in enumerate(record.notes["names"]):
        for j, steps in enumerate(sorted({steps for steps, _ in cells})):
            chosen = [i for i, (s, _) in enumerate(cells) if s == steps]
            found = [over_seeds(record.of("robust", name)[:, i] / n) for i in chosen]
            line(
                axes,
                [cells[i][1] for i in chosen],
                found,
                f"{name}: {steps} steps",
                style(k) | {"ls": DASHES[j % len(DASHES)]},
            )
    log_axis(axes, "x", fractions)
    axes.set(xlabel="step size of PGD, in parts of eps", ylabel="robust accuracy")


def _restarts(axes: Axes, record: Record) -> None:
    n = record.notes["n"]
    for k, name in enumerate(record.notes["names"]):
        values = record.of("restarts", name) / n
        count = np.arange(1, values.shape[1] + 1)
        look = style(k) | {"ls": "-", "markevery": max(1, len(count) // 8)}
        axes.plot(count, values.mean(0), drawstyle="steps-post", lw=1.4, ms=5, fillstyle="none", **look)
        axes.fill_between(count, values.min(0), values.max(0), step="post", color=f"C{k}", alpha=0.15, lw=0)
    axes.set(xlabel="restarts of the strongest PGD", ylabel="robust accuracy")
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
