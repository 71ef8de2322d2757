"""Deep Defense: the share of images whose nearest error is beyond a budget."""

from matplotlib.figure import Figure

from analysis.evaluation import beyond
from figures.captions import about
from figures.marks import SHARES, apart, bars, legend, radii_to, style, title
from paper_repro.recipes.deep_defense import NEAREST
from paper_repro.recipes.records import Records
from paper_repro.recipes.statistics import accuracy


def draw(figure: Figure, records: Records) -> None:
    """Draw a curve for every network, and a mark with its bar at every budget of the table.

    Bars stand a few points beside their marks, in the dashes of their curve.
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
        found = [accuracy(beyond(distance, b)) for b in budgets]
        axes.plot(budgets, [v.value for v in found], ms=4, fillstyle="none", **(look | {"ls": ""}))
        bars(axes, budgets, found, look, apart(k, len(names)))
        axes.plot([], [], label=name, ms=4, lw=1, fillstyle="none", **look)
    axes.set(xlabel="L2 budget (input units)", ylabel="robust accuracy", xlim=(0, stop), ylim=SHARES)
    title(figure, f"No attack finds an error within the budget: {about(record)}")
    legend(figure, axes)
