"""Weight surfaces: the loss around a network's weights, along a line or over a plane, clean and under attack."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure

from analysis.records import read_record
from certify.campaign.tables import Format, as_text
from certify.errors import InputError
from figures.page import write

Record = tuple[dict[str, Any], dict[str, Any]]
_STYLES = {"clean": "-", "re-attacked": "--", "frozen": ":"}
_MARKS = ("o", "s", "^", "D", "v")
_COLUMN_COUNT = 3


def weight_surface(sources: Sequence[Path], out: Path) -> list[Path]:
    """Draw landscapes on shared axes: lines in one panel, planes side by side.

    Args:
        sources: Records of `python -m analysis landscape`, all of lines or all of planes.
        out: The folder.

    Returns: The files.

    Raises:
        InputError: no record, one of another command, or lines mixed with planes.
    """
    records = [read_record(source) for source in sources]
    if not records or any(p.get("command") != "landscape" for _, p in records):
        raise InputError("need records of python -m analysis landscape, at least one")
    dimensions = {a["loss"].ndim for a, _ in records}
    if len(dimensions) > 1:
        raise InputError("need all lines or all planes in one figure; got both")
    header = ["network", "loss", "directions", "at the centre", "lowest", "highest", "explained"]
    body = [
        [
            p["name"],
            _kind(p),
            p["directions"],
            f"{_center(a):.4g}",
            f"{a['loss'].min():.4g}",
            f"{a['loss'].max():.4g}",
            f"{100 * a['explained'].sum():.1f} %" if "explained" in a else "",
        ]
        for a, p in records
    ]

    def table(form: Format) -> str:
        return as_text(header, body, form)

    draw = _draw_lines if dimensions == {1} else _draw_planes
    return write("weight_surface", out, lambda figure: draw(figure, records), table)


def _kind(provenance: dict[str, Any]) -> str:
    if not provenance["eps"]:
        return "clean"
    how = "frozen" if "frozen=True" in provenance["method"] else "re-attacked"
    return f"{how}, {provenance['norm']} eps = {provenance['eps']:g}"


def _center(arrays: dict[str, Any]) -> float:
    """The loss at the grid point nearest to the centre."""
    nearest = tuple(int(np.abs(arrays[f"axis{k}"]).argmin()) for k in range(arrays["loss"].ndim))
    return float(arrays["loss"][nearest])


def _draw_lines(figure: Figure, records: list[Record]) -> None:
    if many := len(records) > 4:
        figure.set_size_inches(10, 5)
    axes = figure.subplots()
    names = list(dict.fromkeys(p["name"] for _, p in records))
    for arrays, provenance in records:
        # Colour and mark tell networks apart, the dashes how they are attacked.
        number, kind = names.index(provenance["name"]), _kind(provenance)
        axes.plot(
            arrays["axis0"],
            arrays["loss"],
            _STYLES[kind.split(",")[0]],
            color=f"C{number % 7}",
            marker=_MARKS[number % len(_MARKS)],
            ms=3.5,
            lw=1.6,
            label=f"{provenance['name']}: {kind}",
        )
    axes.set(xlabel="distance, in units of the filters' own norms", ylabel="mean cross-entropy", yscale="log")
    axes.axvline(0.0, color="0.4", lw=0.8)
    figure.legend(loc="outside lower center", fontsize=8, ncols=3 if many else 1)


def _draw_planes(figure: Figure, records: list[Record]) -> None:
    columns = min(len(records), _COLUMN_COUNT)
    rows = -(-len(records) // columns)
    figure.set_size_inches(0.8 + 3.2 * columns, 0.6 + 3.4 * rows)
    # Random directions share their unit; a trajectory's plane has its own.
    shared = all("trajectory" not in a for a, _ in records)
    panels = figure.subplots(rows, columns, sharex=shared, sharey=shared, squeeze=False).ravel()
    low = min(float(a["loss"].min()) for a, _ in records)
    high = max(float(a["loss"].max()) for a, _ in records)
    scale: Normalize = LogNorm(low, high) if low > 0 and high > 10 * low else Normalize(low, high)
    levels = np.geomspace(low, high, 15) if isinstance(scale, LogNorm) else np.linspace(low, high, 15)
    for panel in panels[len(records) :]:
        panel.axis("off")
    shown = [_draw_plane(panel, record, levels, scale) for panel, record in zip(panels, records, strict=False)]
    figure.colorbar(shown[0], ax=list(panels), label="mean cross-entropy", format="%.2g", shrink=0.8)


def _draw_plane(panel: Axes, record: Record, levels: np.ndarray, scale: Normalize) -> Any:
    arrays, provenance = record
    first, second, loss = arrays["axis0"], arrays["axis1"], arrays["loss"].T
    shown = panel.contourf(first, second, loss, levels=levels, norm=scale, cmap="cividis")
    panel.contour(first, second, loss, levels=levels, norm=scale, colors="k", linewidths=0.3)
    under = f"at the centre {_center(arrays):.3g}, lowest {loss.min():.3g}, highest {loss.max():.3g}"
    if "trajectory" in arrays:
        path = arrays["trajectory"]
        panel.plot(path[:, 0], path[:, 1], "w.-", lw=1, ms=4)
        share = 100 * arrays["explained"]
        under = f"plane holds {share.sum():.1f} % of the path ({share[0]:.1f} + {share[1]:.1f})\n{under}"
    panel.plot(0, 0, "w+", ms=8)
    panel.grid(False)
    panel.set_title(f"{provenance['name']}\n{_kind(provenance)}", fontsize=9)
    panel.set_xlabel(under, fontsize=7)
    return shown
