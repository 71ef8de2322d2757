"""Accuracy under attacks of growing budgets in two norms: stability training beside its rivals."""

from matplotlib.figure import Figure

from analysis.evaluation import beyond
from figures.captions import about
from figures.marks import SHARES, legend, line, style, title
from paper_repro.recipes.records import Records
from paper_repro.recipes.stability import SMOOTHED
from paper_repro.recipes.statistics import accuracy


def draw(figure: Figure, records: Records) -> None:
    """Draw a panel for every norm, a line for every network."""
    record = records["attacks"]
    names, budgets = record.notes["names"], record.notes["budgets"]
    figure.set_size_inches(9.5, 4.6)
    panels = figure.subplots(1, len(budgets), sharey=True, squeeze=False)[0]
    for panel, (norm, values) in zip(panels, budgets.items(), strict=True):
        for k, name in enumerate(names):
            subject = "g" if name in SMOOTHED else "f"
            shift = 0.012 * max(values) * (k - (len(names) - 1) / 2)
            found = [accuracy(beyond(record.of(norm, name), b)) for b in values]
            line(panel, [b + shift for b in values], found, f"{name}, as {subject}", style(k))
        panel.set(xlabel=f"{norm} budget of the attack (input units)", xticks=values, ylim=SHARES)
    panels[0].set_ylabel("accuracy under attack")
    title(figure, f"Smoothed classifiers g and networks f under attack: {about(record)}")
    legend(figure, panels[0], 4)
