"""Certified accuracy against radius: the observed curve, and the population band that it proves."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from certify.campaign.tables import Format, Row, read_source, render, row_of
from figures.marks import SHARES, style
from figures.page import write

_POINTS = 400
_BETWEEN_MARKS = 0.12
"""Of a curve's marks, in parts of the diagonal of the axes."""
_ROOM = -0.015
"""Where the axis begins, in parts of its length: marks at its ends are whole."""


def certified_accuracy(
    sources: Sequence[Path], out: Path, radii: Sequence[float], *, rho: float = 0.05, norm: str | None = None
) -> list[Path]:
    """Draw the curves of stores and published logs, with the table at `radii` beside them.

    Args:
        sources: Stores and logs.
        out: The folder.
        radii: Where the table reads the curves.
        rho: Failure probability of the band.
        norm: Of all radii, for the axis, where the caller knows it and the logs do not say it.

    Returns: The files.
    """
    items = [item for source in sources for item in read_source(source)]
    largest = max(float(np.max(item.scores(), initial=0.0)) for item in items)
    grid = np.linspace(0, max(largest * 1.02, 1e-9), _POINTS).tolist()
    curves = [row_of(item, grid, rho=rho) for item in items]
    rows = [row_of(item, radii, rho=rho) for item in items]

    def table(form: Format) -> str:
        return render(rows, form)

    return write("certified_accuracy", out, lambda figure: _draw(figure, curves, norm), table)


def draw_curve(axes: Axes, row: Row, label: str, look: dict[str, Any]) -> None:
    """One run's observed curve, shaded down to the simultaneous population bound, at the radii it was read at."""
    a = row.accuracy
    axes.plot(a.radii, a.observed, lw=1.6, ms=5, fillstyle="none", markevery=_BETWEEN_MARKS, label=label, **look)
    axes.fill_between(a.radii, a.band, a.observed, color=look["color"], alpha=0.15, lw=0)


def describe_curve(row: Row) -> str:
    """What a legend says of a run beside its name."""
    a = row.accuracy
    return f"n = {a.m}, alpha = {a.alpha:g}{'' if row.proved else ' assumed'}, average radius {row.acr:.3f}"


def _draw(figure: Figure, curves: Sequence[Row], norm: str | None = None) -> None:
    axes = figure.subplots()
    for k, row in enumerate(curves):
        draw_curve(axes, row, f"{row.name}: {describe_curve(row)}", style(k))
    rho = curves[0].accuracy.rho
    norms = [norm] if norm else sorted({row.norm for row in curves})
    axes.set(
        xlabel=f"radius ({', '.join(norms)}, input units)",
        ylabel="certified accuracy",
        xlim=(_ROOM * curves[0].accuracy.radii[-1], (1 - _ROOM) * curves[0].accuracy.radii[-1]),
        ylim=SHARES,
        title=f"Line: observed. Shade: down to the {100 * (1 - rho):g} % simultaneous population bound.",
    )
    axes.title.set_fontsize(10)
    figure.legend(loc="outside lower left", fontsize=8, handlelength=4)
