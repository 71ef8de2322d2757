"""Input surfaces: the loss around the same images for several networks, on shared axes, with the numbers beneath."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import LogLocator

from analysis.records import read_record
from certify.campaign.tables import Format, as_text
from certify.errors import InputError
from figures.page import write

_SHARED = ("command", "norm", "eps", "data", "data_sha256", "method", "seed")
_COLUMNS = {
    "clean": "loss at x",
    "highest": "largest loss",
    "highest_inside": "within eps",
    "bend": "mean size of 2nd difference",
    "cosine": "gradient cosine",
    "nonlinearity": "departure from linear",
}


def input_surface(sources: Sequence[Path], out: Path) -> list[Path]:
    """Draw the surfaces of several networks side by side.

    Args:
        sources: Records of `python -m analysis surface`, about the same images with the same settings.
        out: The folder.

    Returns: The files.

    Raises:
        InputError: no record, one of another command, or records that cannot share axes.
    """
    records = [read_record(source) for source in sources]
    if not records or any(p.get("command") != "surface" for _, p in records):
        raise InputError("need records of python -m analysis surface, at least one")
    for name in _SHARED:
        values = {str(provenance[name]) for _, provenance in records}
        if len(values) > 1:
            raise InputError(f"need surfaces that share their axes; they differ in {name}: {', '.join(sorted(values))}")
    header = ["network", *_COLUMNS.values(), "most clipped"]
    body = [
        [p["name"], *(f"{p['numbers'][name]:.4g}" for name in _COLUMNS), f"{100 * a['clipped'].max():.0f} %"]
        for a, p in records
    ]

    def table(form: Format) -> str:
        return as_text(header, body, form)

    return write("input_surface", out, lambda figure: _draw(figure, records), table)


def _draw(figure: Figure, records: list[tuple[dict[str, Any], dict[str, Any]]]) -> None:
    figure.set_size_inches(0.8 + 3.1 * len(records), 5.1)
    panels = figure.subplots(1, len(records), sharex=True, sharey=True, squeeze=False)[0]
    low = min(float(a["loss"].min()) for a, _ in records)
    high = max(float(a["loss"].max()) for a, _ in records)
    scale: Normalize = LogNorm(low, high) if low > 0 and high > 10 * low else Normalize(low, high)
    levels = np.geomspace(low, high, 13) if isinstance(scale, LogNorm) else np.linspace(low, high, 13)
    shown = None
    for panel, (arrays, provenance) in zip(panels, records, strict=True):
        axis, numbers = arrays["axis"], provenance["numbers"]
        # Cividis runs from dark to light alike in colour, in grey and to colour-blind readers.
        shown = panel.contourf(axis, axis, arrays["loss"].T, levels=levels, norm=scale, cmap="cividis")
        panel.contour(axis, axis, arrays["loss"].T, levels=levels, norm=scale, colors="k", linewidths=0.3)
        # White on dark, and its outline dark on light.
        outlined = [withStroke(linewidth=2.6, foreground="k")]
        panel.plot([1, 0, -1, 0, 1], [0, 1, 0, -1, 0], color="w", lw=1.2, ls="--", path_effects=outlined)
        panel.plot(0, 0, "w+", ms=8, path_effects=outlined)
        panel.set_aspect("equal")
        panel.grid(False)
        words = {**_COLUMNS, "highest_inside": "largest loss within eps"}
        lines = [f"{words[name]} {numbers[name]:.3g}" for name in _COLUMNS]
        lines.append(f"clipped {100 * arrays['clipped'].min():.0f} to {100 * arrays['clipped'].max():.0f} %")
        panel.set_title(provenance["name"], fontsize=10)
        panel.set_xlabel("a\n" + "\n".join(lines), fontsize=8)
    panels[0].set_ylabel("b", fontsize=8)
    decades = LogLocator() if isinstance(scale, LogNorm) else None
    figure.colorbar(shown, ax=list(panels), label="mean cross-entropy", ticks=decades, format="%.2g", shrink=0.8)
    shared = records[0][1]
    figure.suptitle(
        f"Loss at x + a eps s + b eps r, {shared['norm']} eps = {shared['eps']:g}: s the adversary's direction,\n"
        "r random signs; within the dashed diamond every point is within eps",
        fontsize=9,
    )
