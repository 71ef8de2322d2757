"""Accuracy under attacks of growing budgets in two norms: stability training beside its rivals."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.evaluation import beyond
from figures.captions import BESIDE, about, intervals
from figures.marks import SHARES, apart, dots, legend, line, style, title
from paper_repro.recipes.records import Record, Records
from paper_repro.recipes.stability import SMOOTHED
from paper_repro.recipes.statistics import Measured, accuracy


def says(record: Record) -> str:
    """What there is to see: lines, or dots where every norm has one budget alone."""
    beside = "" if _single(record) else f" {BESIDE}"
    return f"Share of images without a counterexample within the budget, in input units.{beside} {intervals('Bars')}"


def draw(figure: Figure, records: Records) -> None:
    """Draw a panel for every norm, and in it a line for every network, or its dot where there is one budget."""
    record = records["attacks"]
    budgets = record.notes["budgets"]
    figure.set_size_inches(9.5, 3.0 if _single(record) else 4.6)
    panels = figure.subplots(1, len(budgets), sharey=True, squeeze=False)[0]
    for panel, norm in zip(panels, budgets, strict=True):
        (_dots if _single(record) else _lines)(panel, record, norm)
    title(figure, f"Smoothed classifiers g and networks f under attack: {about(record)}")
    if not _single(record):
        panels[0].set_ylabel("accuracy under attack")
        legend(figure, panels[0], 4)


def _single(record: Record) -> bool:
    return all(len(values) == 1 for values in record.notes["budgets"].values())


def _lines(panel: Axes, record: Record, norm: str) -> None:
    names, values = record.notes["names"], record.notes["budgets"][norm]
    for k, name in enumerate(names):
        line(panel, values, _found(record, norm, name), _subject(name), style(k), beside=apart(k, len(names)))
    panel.set(xlabel=f"{norm} budget of the attack (input units)", xticks=values, ylim=SHARES)


def _dots(panel: Axes, record: Record, norm: str) -> None:
    names = record.notes["names"]
    dots(panel, [_subject(name) for name in names], {"": [_found(record, norm, name)[0] for name in names]})
    panel.set(xlabel=f"accuracy under attack, {norm} budget {record.notes['budgets'][norm][0]:g}", xlim=SHARES)


def _subject(name: str) -> str:
    return f"{name}, as {'g' if name in SMOOTHED else 'f'}"


def _found(record: Record, norm: str, name: str) -> list[Measured]:
    return [accuracy(beyond(record.of(norm, name), budget)) for budget in record.notes["budgets"][norm]]
