"""What an update costs by every method, in multiples of the first one."""

import numpy as np
from matplotlib.figure import Figure

from figures.marks import dots, legend, log_axis, title
from paper_repro.recipes.cost import passes
from paper_repro.recipes.records import Records
from paper_repro.recipes.statistics import exactly

_TICKS = (0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200)


def draw(figure: Figure, records: Records, stage: str = "cost") -> None:
    """Draw passes and time of every method on a logarithmic axis."""
    record = records[stage]
    names = record.notes["names"]
    seconds = record.arrays["seconds"] / record.arrays["seconds"][0]
    found = {
        "forward and backward passes of an update": [passes(records, name, stage) for name in names],
        "time of an epoch": [exactly(float(s)) for s in seconds],
    }
    figure.set_size_inches(7.5, 1.9 + 0.4 * len(names))
    axes = figure.subplots()
    axes.axvline(1.0, color="0.4", lw=1, ls="--")
    dots(axes, names, found)
    ends = [v.value for values in found.values() for v in values]
    low, high = 0.8 * min(ends), 1.25 * max(ends)
    log_axis(axes, "x", [t for t in _TICKS if low <= t <= high])
    axes.set(xlabel=f"multiples of {names[0]}", xlim=(low, high))
    least, most = (_plain(float(end(record.arrays["seconds"]))) for end in (np.min, np.max))
    title(figure, f"What training costs ({least} to {most} s an epoch; median over updates, all taking turns)")
    legend(figure, axes)


def _plain(seconds: float) -> str:
    """Two digits, or all digits before the point."""
    return f"{seconds:.0f}" if seconds >= 99.5 else f"{seconds:.2g}"
