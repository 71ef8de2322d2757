"""Marks and lines that colour, shape and dashes tell apart, each with its interval; shared by the drawings."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator
from matplotlib.transforms import offset_copy
from numpy.typing import NDArray

from paper_repro.recipes.statistics import Measured, accuracy

MARKS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", "--", "-.", ":")
SHARES = (-0.02, 1.02)
"""Ends of an axis of shares, with room for marks at 0 and 1."""
_COLORS = 7
_GRID = 240
_TICKS = 5
_APART, _WIDTH = 2.2, 9.0
"""Points between the bars of neighbouring lines, and over which those of all lines are spread at most."""
_PALE = 0.45


def style(number: int) -> dict[str, Any]:
    """Colour, mark and dashes of the line of that number. They repeat after 7, 7 and 4: a chart has fewer lines."""
    return {"color": f"C{number % _COLORS}", "marker": MARKS[number % len(MARKS)], "ls": DASHES[number % len(DASHES)]}


def line(
    axes: Axes,
    x: Sequence[float],
    values: Sequence[Measured],
    label: str,
    look: dict[str, Any],
    *,
    shaded: bool = False,
    beside: float = 0.0,
) -> None:
    """A line through the values, each with its interval as a bar, or all intervals as a shade.

    Bars stand `beside` points to the right of their marks; lines and marks are always where they belong.
    """
    axes.plot(x, [v.value for v in values], label=label, lw=1.4, ms=5, fillstyle="none", **look)
    if shaded:
        low, high = [v.low for v in values], [v.high for v in values]
        axes.fill_between(x, low, high, color=look["color"], alpha=0.15, lw=0)
    else:
        bars(axes, x, values, look, beside)


def bars(axes: Axes, x: Sequence[float], values: Sequence[Measured], look: dict[str, Any], beside: float) -> None:
    """The intervals of a line as bars in its colour and dashes, so many points to the right of their places."""
    place = offset_copy(axes.transData, axes.figure, x=beside, units="points")
    low, high = [v.low for v in values], [v.high for v in values]
    axes.vlines(x, low, high, color=look["color"], ls=look.get("ls") or "-", lw=1, transform=place)
    axes.update_datalim([(at, end) for ends in (low, high) for at, end in zip(x, ends, strict=True)])


def apart(number: int, count: int) -> float:
    """How many points the bars of the line of that number, one of so many, stand to the right of their marks."""
    return min(_APART, _WIDTH / count) * (number - (count - 1) / 2)


def dots(
    axes: Axes,
    names: Sequence[str],
    series: Mapping[str, Sequence[Measured]],
    first: int = 0,
    *,
    notes: Mapping[str, Sequence[str]] = MappingProxyType({}),
) -> None:
    """A row per name, from the top down, and in it a dot with its interval for each series.

    What is not a number, or has an infinite interval, is drawn without what it lacks. A dot with a note, which stands
    beside it, is pale: it is not to be compared with the others.
    """
    step = 0.7 / max(len(series), 2)
    for k, (label, values) in enumerate(series.items()):
        look = style(first + k)
        places = np.arange(len(names)) + (k - (len(series) - 1) / 2) * step
        words = notes.get(label, [""] * len(names))
        for place, v, note in zip(places, values, words, strict=True):
            if np.isfinite([v.low, v.high]).all():
                axes.plot([v.low, v.high], [place, place], color=look["color"], lw=1.2, alpha=_PALE if note else 1.0)
            if note and np.isfinite(v.value):
                end = v.high if np.isfinite(v.high) else v.value
                axes.annotate(note, (end, place), (4, 0), textcoords="offset points", va="center", fontsize=7)
        points, noted = np.array([v.value for v in values]), np.array([bool(note) for note in words])
        mark: dict[str, Any] = {"marker": look["marker"], "ls": "", "color": look["color"], "ms": 5}
        axes.plot(np.where(noted, np.nan, points), places, fillstyle="none", label=label, **mark)
        if noted.any():
            axes.plot(np.where(noted, points, np.nan), places, fillstyle="none", alpha=_PALE, **mark)
    axes.set(yticks=range(len(names)), yticklabels=list(names), ylim=(len(names) - 0.4, -0.6))


def gains(axes: Axes, names: Sequence[str], values: Mapping[str, Measured], label: str) -> None:
    """Paired differences in the rows of `names`, beside a line at 0; a row without one stays empty."""
    nothing = Measured(np.nan, np.nan, np.nan)
    axes.axvline(0.0, color="0.4", lw=1, ls="--")
    dots(axes, names, {"": [values.get(name, nothing) for name in names]}, first=6)
    axes.set(xlabel=label)
    axes.tick_params(labelleft=False)
    axes.xaxis.set_major_locator(MaxNLocator(_TICKS))


def curve(
    axes: Axes,
    scores: NDArray[np.float64],
    grid: Sequence[float],
    label: str,
    look: dict[str, Any],
    at: Sequence[float],
) -> None:
    """The share of images whose (seeds, n) score is at least r, at the radii of a grid, its interval as a shade.

    Marks stand at the radii of `at`, those of the table.
    """
    bare = look | {"marker": ""}
    found = [accuracy(scores >= r) for r in grid]
    axes.plot(grid, [v.value for v in found], lw=1.4, **bare)
    axes.fill_between(grid, [v.low for v in found], [v.high for v in found], color=look["color"], alpha=0.12, lw=0)
    shares = [float((scores >= r).mean()) for r in at]
    axes.plot(at, shares, ms=5, fillstyle="none", clip_on=False, **(look | {"ls": ""}))
    axes.plot([], [], ms=5, lw=1.4, fillstyle="none", label=label, **look)


def radii_to(stop: float) -> list[float]:
    """The grid of a curve: from 0 to the last radius shown."""
    return np.linspace(0.0, stop, _GRID).tolist()


def log_axis(axes: Axes, which: Literal["x", "y"], ticks: Sequence[float] = ()) -> None:
    """Make an axis logarithmic, with plain numbers at the ticks and at no other place; without ticks at 1, 2, 5."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    axes.set(**{f"{which}scale": "log"})
    axis.set_major_locator(FixedLocator(list(ticks)) if ticks else LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:.3g}"))


def legend(figure: Figure, axes: Axes, columns: int = 3) -> None:
    """One legend under all panels, of the lines of one of them."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize=8, handlelength=3)


def title(figure: Figure, text: str) -> None:
    """What all panels are about."""
    figure.suptitle(text, fontsize=10)
