"""Certificates compared: the radius that each bound proves from the same votes.

The founding paper's first figure, with every curve named: its caption spoke of colours that its plot did not show.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from certify.binomial import lower_confidence_bound, upper_confidence_bound
from certify.campaign.logs import floor_decimal
from certify.campaign.tables import Format, as_text
from certify.noise import Gaussian, Laplace
from certify.renyi import (
    hockey_stick_radius,
    li_laplace_radius,
    pixeldp_laplace_radius,
    pixeldp_radius,
    renyi_radius,
)
from figures.page import write

VOTES, ALPHA, CLASSES, RUNNER_UP = 100_000, 0.001, 10, 0.1
Bound = Callable[[float, float | None], float]

BOUNDS: dict[str, dict[str, Bound]] = {
    "L2, Gaussian noise": {
        "Cohen et al. 2019 (tight)": lambda a, b: Gaussian(1.0).radius(a, b),
        "Li et al. 2019 (STN, Renyi)": lambda a, b: renyi_radius(a, b, 1.0),
        "hockey-stick": lambda a, b: hockey_stick_radius(a, b, 1.0),
        "PixelDP": lambda a, b: pixeldp_radius(a, b, 1.0),
    },
    "L1, Laplace noise": {
        "exact (Teng et al. 2019; two-class ours)": lambda a, b: Laplace(1.0).radius(a, b),
        "Li et al. 2019": lambda a, b: li_laplace_radius(a, b, 1.0),
        "PixelDP, L1": lambda a, b: pixeldp_laplace_radius(a, b, 1.0),
    },
}
KINDS = ("binary", "two-class")
_STYLES = ("-", "--", "-.", ":")
_SHARES = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 0.999, 1.0)


def probabilities(share: float, kind: str) -> tuple[float, float | None]:
    """Confidence bounds from VOTES votes, `share` of them for the top class and the rest spread evenly."""
    top = round(share * VOTES)
    if kind == "binary":
        return lower_confidence_bound(top, VOTES, ALPHA), None
    rival = -(-(VOTES - top) // (CLASSES - 1))
    p_b = upper_confidence_bound(rival, VOTES, ALPHA * RUNNER_UP)
    return lower_confidence_bound(top, VOTES, ALPHA * (1 - RUNNER_UP)), p_b


def certificates_compared(out: Path) -> list[Path]:
    """Draw radius against the share of votes for every bound, binary and two-class, with one table beneath.

    Args:
        out: The folder.

    Returns: The files.
    """
    header = ["share of votes", *(f"{name}, {kind}" for bounds in BOUNDS.values() for name in bounds for kind in KINDS)]
    body = [
        [f"{share:g}"]
        + [
            floor_decimal(bound(*probabilities(share, kind)), 3)
            for bounds in BOUNDS.values()
            for bound in bounds.values()
            for kind in KINDS
        ]
        for share in _SHARES
    ]

    def table(form: Format) -> str:
        return as_text(header, body, form)

    return write("certificates_compared", out, lambda figure: _draw(figure, body), table)


def _draw(figure: Figure, body: list[list[str]]) -> None:
    figure.set_size_inches(9, 10)
    grid = figure.add_gridspec(3, 2, height_ratios=[1, 1, 0.8])
    shares = np.concatenate([np.linspace(0.25, 0.99, 75), np.linspace(0.991, 1.0, 19)])
    for row, (title, bounds) in enumerate(BOUNDS.items()):
        for column, kind in enumerate(KINDS):
            axes = figure.add_subplot(grid[row, column])
            for (name, bound), style in zip(bounds.items(), _STYLES, strict=False):
                radii = [bound(*probabilities(s, kind)) for s in shares]
                axes.plot(shares, radii, style, lw=1.5, label=name)
            axes.set(
                title=f"{title}, {kind}",
                xlabel="share of votes for the top class",
                ylabel="certified radius / scale",
                xlim=(0.25, 1.0),
                ylim=(0, None),
            )
            axes.legend(fontsize=8, loc="upper left")
    axes = figure.add_subplot(grid[2, :])
    axes.axis("off")
    names = [f"{name}\n{kind}" for bounds in BOUNDS.values() for name in bounds for kind in KINDS]
    columns = ["share", *(n.replace(" (", "\n(").replace(" et al.", "").replace("; ", ";\n") for n in names)]
    drawn = axes.table(cellText=body, colLabels=columns, loc="center", cellLoc="right")
    drawn.auto_set_font_size(False)
    drawn.set_fontsize(5)
    for (line, _), cell in drawn.get_celld().items():
        cell.set_linewidth(0.3)
        cell.set_height(0.26 if line == 0 else 0.065)
    figure.suptitle(
        f"Radius proved from the same {VOTES:,} votes, alpha = {ALPHA:g}; votes not for the top class spread evenly\n"
        f"over {CLASSES - 1} others; two-class bounds spend {RUNNER_UP:g} of alpha on the runner-up",
        fontsize=10,
    )
