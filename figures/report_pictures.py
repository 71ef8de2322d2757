"""The report's pictures, each as one data: address, told apart by shape and dash as well as by colour."""

import base64
import io
from collections.abc import Callable, Sequence
from textwrap import fill
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from certify.accuracy import FloatArray
from certify.campaign.tables import Row
from figures.certified_accuracy import describe_curve, draw_curve
from figures.marks import style
from figures.page import STYLE
from figures.report_rows import Known

_STYLE: Any = {
    **STYLE,
    # Narrow, so that letters keep a readable size on a phone.
    "figure.figsize": (4.4, 3.0),
    "svg.hashsalt": "robust-radius",
}
_NEAR = 0.25
"""Share of the axis within which what is proved gets a panel of its own."""
_LETTERS, _LINE = 44, 0.16
"""Of a legend: letters on a line, and a line's height in inches."""
_ATTACKED = "*"
"""The mark of the attack's curve, which no certified curve has, however many there are."""
_FEW = 60
"""Examples up to which each has a mark of full size."""
_MANY = 1000
"""Examples beyond which marks are pixels: as shapes they would make the page large."""


def picture(draw: Callable[[Figure], None]) -> str:
    """An SVG as a data: address, which needs no other file; the same drawing gives the same bytes."""
    with mpl.rc_context(_STYLE):
        figure = Figure(layout="constrained")
        draw(figure)
        file = io.BytesIO()
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    return "data:image/svg+xml;base64," + base64.b64encode(file.getvalue()).decode()


def plain(text: str) -> str:
    """Text whose dollar signs matplotlib does not read as mathematics."""
    return text.replace("$", r"\$")


def draw_curves(
    figure: Figure, rows: Sequence[Row], attacked: tuple[FloatArray, FloatArray, FloatArray, str] | None, norm: str
) -> None:
    """Certified curves with their bands from below, and the share no attack broke from above.

    Where everything proved lies near zero, a second panel shows that part.

    Args:
        figure: Empty.
        rows: Read at the points of the curves.
        attacked: Radii, share unbroken, upper bound on the population's, and what the legend says; or None.
        norm: Of the radii.
    """
    proved = max((float(r.accuracy.radii[r.accuracy.observed > 0].max(initial=0.0)) for r in rows), default=0.0)
    whole = max([*(float(r.accuracy.radii[-1]) for r in rows), *(attacked[0] if attacked else ())])
    limits = [whole, proved * 1.05] if 0 < proved < _NEAR * whole else [whole]
    if len(limits) > 1:
        width, height = figure.get_size_inches()
        figure.set_size_inches(width, 1.7 * height)
    panels = figure.subplots(len(limits), squeeze=False)[:, 0]
    for axes, limit in zip(panels, limits, strict=True):
        for number, row in enumerate(rows):
            draw_curve(axes, row, plain(f"{row.name}: {describe_curve(row)}"), style(number))
        if attacked is not None:
            _draw_attacked(axes, *attacked)
        axes.set(ylabel="share of images", xlim=(0, limit), ylim=(0, 1.02))
        axes.set_xlabel(f"{norm} radius (input units){', near zero' if limit != whole else ''}")
    _legend(figure, panels[0])


def _legend(figure: Figure, axes: Axes) -> None:
    """Below the panels, in letters that a phone shows large enough: lines are broken, and the picture grows by them."""
    handles, labels = axes.get_legend_handles_labels()
    broken = [fill(label, _LETTERS) for label in labels]
    width, height = figure.get_size_inches()
    figure.set_size_inches(width, height + _LINE * sum(label.count("\n") + 1 for label in broken))
    figure.legend(handles, broken, loc="outside lower left", fontsize=9)


def _draw_attacked(axes: Axes, radii: FloatArray, share: FloatArray, upper: FloatArray, label: str) -> None:
    # A float spaces marks evenly on the page, however the points lie.
    axes.plot(radii, share, color="black", lw=1.1, marker=_ATTACKED, ms=5, markevery=0.08, label=plain(label))
    axes.fill_between(radii, share, upper, facecolor="none", edgecolor="0.6", hatch="////", lw=0)


def draw_brackets(figure: Figure, all_known: Known, norm: str) -> None:
    """One upright line per example from what is proved to what was found, in order of what was found."""
    order = np.lexsort((all_known.lower, all_known.budget, all_known.upper))
    lower, upper, budget = (values[order] for values in (all_known.lower, all_known.upper, all_known.budget))
    met = all_known.attacked[order]
    x = np.arange(1, len(order) + 1)
    hit = np.isfinite(upper)
    open_ended = met & ~hit
    top = max([*lower, *upper[hit], *budget[open_ended], 1e-9]) * 1.04
    size, many = 5.0 if len(order) <= _FEW else 2.5, len(order) > _MANY
    axes = figure.subplots()
    width = 0.8 if size == 5.0 else 0.4
    axes.vlines(x[met], lower[met], np.where(hit, upper, top)[met], color="0.6", lw=width, rasterized=many)
    shown = hit & (upper > 0)
    _marks(axes, x[shown], upper[shown], "v", "C1", size, "nearest error found: r* is at most this")
    proved = lower > 0
    _marks(axes, x[proved], lower[proved], "^", "C0", size, "proved: r* is at least this")
    silent = ~proved & ~met
    _marks(axes, x[silent], lower[silent], "+", "0.35", size, "nothing proved, and not attacked")
    wrong = upper == 0
    _marks(axes, x[wrong], upper[wrong], "x", "black", size, "misclassified as it is: r* = 0")
    # At the example's own budget: an attack with another one, on other examples, says nothing of it.
    _marks(axes, x[open_ended], budget[open_ended], "d", "0.35", size, _searched(budget[open_ended]), hollow=True)
    by = "the nearest error found" if met.any() else "what is proved"
    axes.set(xlabel=f"example, by {by}", ylabel=f"{norm} distance (input units)", ylim=(0, None))
    axes.set_xlim(0, len(order) + 1)
    for line in axes.lines:
        line.set_rasterized(many)
    if axes.lines:
        _legend(figure, axes)


def _searched(budgets: FloatArray) -> str:
    """How far no error was found, in words."""
    least, most = (f"{end:g}" for end in (budgets.min(initial=np.inf), budgets.max(initial=0.0)))
    return f"no error found up to {most if least == most else f'this mark, at {least} to {most}'}"


def _marks(axes: Axes, x: Any, y: Any, mark: str, color: str, size: float, label: str, *, hollow: bool = False) -> None:
    if len(x):
        inside = "none" if hollow else "full"
        axes.plot(x, y, mark, color=color, ms=size, fillstyle=inside, lw=0, label=label, clip_on=False)


def draw_curvature(figure: Figure, spectrum: dict[str, Any], trace: dict[str, Any]) -> None:
    """The leading eigenvalues with their residuals, and the trace with its interval."""
    left, right = figure.subplots(1, 2, width_ratios=(3, 1))
    values, residuals = np.array(spectrum["eigenvalues"]), np.array(spectrum["residuals"])
    done, number = np.array(spectrum["converged"]), np.arange(1, len(values) + 1)
    left.axhline(0, color="0.4", lw=0.8)
    for chosen, inside, label in ((done, "full", "converged"), (~done, "none", "not converged")):
        if chosen.any():
            style: Any = {"fmt": "o", "color": "C0", "ms": 5, "capsize": 3, "fillstyle": inside}
            left.errorbar(number[chosen], values[chosen], residuals[chosen], label=f"{label}; bar: residual", **style)
    left.set(xlabel="rank by magnitude", ylabel="eigenvalue")
    left.xaxis.set_major_locator(MaxNLocator(integer=True))
    low, high = trace["interval"]
    error = [[trace["value"] - low], [high - trace["value"]]]
    right.errorbar([0], [trace["value"]], error, fmt="s", color="C1", ms=5, capsize=3)
    right.set(xticks=[], xlabel="trace,\nwith its interval")
    _legend(figure, left)


def draw_lipschitz(figure: Figure, balls: Sequence[dict[str, Any]], product: float | None) -> None:
    """Per ball and image the largest slope met and the proved bound, in order of the former."""
    panels = figure.subplots(1, len(balls), sharey=True, squeeze=False)[0]
    for axes, ball in zip(panels, balls, strict=True):
        order = np.argsort(ball["sampled"], stable=True)
        low, x = np.array(ball["sampled"])[order], np.arange(1, len(order) + 1)
        if "certified" in ball:
            high = np.array(ball["certified"])[order]
            axes.vlines(x, low, high, color="0.6", lw=0.8)
            _marks(axes, x, high, "v", "C1", 5.0, "proved: at most this")
        _marks(axes, x, low, "^", "C0", 5.0, "largest slope met: at least this")
        if product is not None:
            axes.axhline(product, color="0.3", lw=1, ls="--", label="product of the layers' norms, valid everywhere")
        axes.set(xlabel="image, by slope met", title=f"within {ball['eps']:g}")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    panels[0].set_ylabel("local Lipschitz constant")
    slopes = [slope for ball in balls for slope in (*ball["sampled"], *ball.get("certified", ()))]
    # A linear network has one slope everywhere: a logarithmic axis of that alone has no place for its labels.
    panels[0].set_yscale("log" if 0 < 2 * min(slopes) < max(slopes) else "linear")
    _legend(figure, panels[0])
