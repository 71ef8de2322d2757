"""The nearest error against the distance that errors in noise predict: in a half-space the two are the same."""

import math
from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure

from analysis.boundary_distance import BoundaryDistances
from certify.campaign.tables import Format, as_text
from certify.errors import InputError
from figures.marks import style
from figures.page import write

HEADER = ["network", "n", "misclassified", "sigma above ceiling", "no error found", "used", "slope", "mu", "draws"]


def boundary_distance(results: Mapping[str, BoundaryDistances], out: Path) -> list[Path]:
    """Draw one point per example that the slope uses and the line of half-spaces, with slopes and counts beneath.

    Args:
        results: By the network's name.
        out: The folder.

    Returns: The files.

    Raises:
        InputError: there is no result.
    """
    if not results:
        raise InputError("need at least one result; got 0")
    body = [_row(name, result) for name, result in results.items()]

    def table(form: Format) -> str:
        return as_text(HEADER, body, form)

    return write("boundary_distance", out, lambda figure: _draw(figure, results), table)


def _row(name: str, result: BoundaryDistances) -> list[str]:
    counts = [
        len(result.sigma),
        int((result.sigma == 0).sum()),
        int(result.sigma.isinf().sum()),
        int(result.distance.isinf().sum()),
        int(result.used.sum()),
    ]
    slope = "" if math.isnan(result.slope) else f"{result.slope:.3f}"
    return [name, *map(str, counts), slope, f"{result.method.mu:g}", str(result.method.draws)]


def _draw(figure: Figure, results: Mapping[str, BoundaryDistances]) -> None:
    axes = figure.subplots()
    right = top = 0.0
    for k, (name, result) in enumerate(results.items()):
        predicted, distance = result.predicted[result.used], result.distance[result.used]
        slope = "no slope" if math.isnan(result.slope) else f"slope {result.slope:.3f}"
        label = f"{name}: {len(predicted)} of {len(result.sigma)} images, {slope}"
        look = style(k) | {"ls": ""}
        axes.plot(predicted.tolist(), distance.tolist(), ms=4, mew=0.8, fillstyle="none", label=label, **look)
        right, top = max([right, *predicted.tolist()]), max([top, *distance.tolist()])
    end = min(right, top) or 1.0
    axes.plot([0, end], [0, end], "k--", lw=1, label="half-space: distance = prediction")
    mu = next(iter(results.values())).method.mu
    axes.set(
        xlabel=f"-sigma PhiInv(mu), from the noise with error rate mu = {mu:g} (L2, input units)",
        ylabel="distance of the nearest error, by PGD\n(L2, input units)",
        xlim=(0, 1.05 * (right or 1.0)),
        ylim=(0, 1.05 * (top or 1.0)),
    )
    figure.legend(loc="outside lower left", fontsize=8)
