"""Deep Defense: the share of images whose nearest error is beyond a budget."""

from matplotlib.figure import Figure

from analysis.evaluation import beyond
from figures.captions import about
from figures.marks import SHARES, legend, radii_to, style, title
from paper_repro.recipes.deep_defense import NEAREST
from paper_repro.recipes.records import Records
from paper_repro.recipes.statistics import accuracy


def draw(figure: Figure, records: Records) -> None:
    """Draw a curve for every network, and a mark with its bar at every budget of the table.

    Bars stand a little beside their marks, so that they do not hide each other.
    """
    record = records["distances"]
    names, budgets = record.notes["names"], record.notes["budgets"]
    stop = 1.06 * max(budgets)
    grid = radii_to(stop)
    figure.set_size_inches(9.0, 5.4)
    axes = figure.subplots()
    for k, name in enumerate(names):
        distance, look = record.of(NEAREST, name), style(k)
        axes.plot(grid, [float(beyond(distance, b).mean()) for b in grid], lw=1, **(look | {"marker": ""}))
        places = [b + 0.006 * stop * (k - (len(names) - 1) / 2) for b in budgets]
        found = [accuracy(beyond(distance, b)) for b in budgets]
        axes.plot(budgets, [v.value for v in found], ms=4, fillstyle="none", **(look | {"ls": ""}))
        axes.vlines(places, [v.low for v in found], [v.high for v in found], color=look["color"], lw=1)
        axes.plot([], [], label=name, ms=4, lw=1, fillstyle="none", **look)
    axes.set(xlabel="L2 budget (input units)", ylabel="accuracy", xlim=(0, stop), ylim=SHARES)
    title(figure, f"No attack finds an error within the budget: {about(record)}")
    legend(figure, axes)
