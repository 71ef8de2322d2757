"""What more effort of an attack finds: PGD's step size, its restarts, and attacks without gradients."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from figures.captions import HULL, RANGE, about, setting
from figures.marks import DASHES, apart, dots, line, log_axis, style, title
from paper_repro.recipes.records import Record, Records
from paper_repro.recipes.statistics import accuracy, over_seeds


def says(record: Record) -> str:
    """What there is to see, and what the kinds of attacks are."""
    ladder, most = setting(record, "ladder"), max(steps for steps, _ in record.notes["cells"])
    return (
        "Robust accuracy by the step size of PGD and its number of steps, with bars a few points beside their marks; "
        f"by restarts of the strongest one of up to {most} steps; and by kind of attack, where an image counts that no "
        f"attack of the kind breaks. Left and middle: bars and shades are {RANGE}. Right: bars are {HULL} exact 95 % "
        "intervals over images. "
        f"The ladder with gradients is the one of the table of schedules{f': {ladder[1:-1]}' if ladder else ''}."
    )


def draw(figure: Figure, records: Records) -> None:
    """Draw robust accuracy by step size, by restarts, and by kind of attack; each panel has a legend of its own."""
    record = records["effort"]
    figure.set_size_inches(13, 4.8)
    steps, restarts, kinds = figure.subplots(1, 3, width_ratios=(4, 3, 3))
    _step_sizes(steps, [record, *([records["longer"]] if records.has("longer") else [])])
    _restarts(restarts, record)
    names = record.notes["names"]
    shown = {name: [accuracy(record.of(key, name)) for key in ("white", "black")] for name in names}
    dots(kinds, ["ladder with\ngradients", "black box"], shown)
    kinds.set(xlabel="robust accuracy")
    title(figure, f"Effort of the attack at Linf eps = {record.notes['eps']:g}: {about(record)}")
    for panel in (steps, restarts, kinds):
        panel.legend(loc="upper center", bbox_to_anchor=(0.5, -0.17), fontsize=8, handlelength=3)


def _step_sizes(axes: Axes, stages: Sequence[Record]) -> None:
    """The grid, and where it was run the one of more steps: lines of one network differ in their dashes."""
    names, n = stages[0].notes["names"], stages[0].notes["n"]
    cells = [tuple(cell) for record in stages for cell in record.notes["cells"]]
    numbers, fractions = (sorted(set(values)) for values in zip(*cells, strict=True))
    for k, name in enumerate(names):
        robust = np.concatenate([record.of("robust", name) for record in stages], axis=1) / n
        for j, steps in enumerate(numbers):
            chosen = [i for i, (s, _) in enumerate(cells) if s == steps]
            found = [over_seeds(robust[:, i]) for i in chosen]
            look, beside = style(k) | {"ls": DASHES[j % len(DASHES)]}, apart(j, len(numbers))
            line(axes, [cells[i][1] for i in chosen], found, f"{name}: {steps} steps", look, beside=beside)
    log_axis(axes, "x", fractions)
    axes.set(xlabel="step size of PGD, in parts of eps", ylabel="robust accuracy")


def _restarts(axes: Axes, record: Record) -> None:
    n = record.notes["n"]
    for k, name in enumerate(record.notes["names"]):
        values = record.of("restarts", name) / n
        count = np.arange(1, values.shape[1] + 1)
        look = style(k) | {"ls": "-", "markevery": max(1, len(count) // 8)}
        axes.plot(count, values.mean(0), drawstyle="steps-post", lw=1.4, ms=5, fillstyle="none", label=name, **look)
        axes.fill_between(count, values.min(0), values.max(0), step="post", color=f"C{k}", alpha=0.15, lw=0)
    most = max(steps for steps, _ in record.notes["cells"])
    axes.set(xlabel=f"restarts of the strongest PGD of up to {most} steps", ylabel="robust accuracy")
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
