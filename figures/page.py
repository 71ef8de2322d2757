"""A figure's files: the picture twice, its table three times, all under one name."""

from collections.abc import Callable
from pathlib import Path
from typing import get_args

import matplotlib as mpl
from matplotlib.figure import Figure

from certify.campaign.tables import Format

STYLE = {
    "figure.figsize": (7.0, 4.4),
    "figure.dpi": 150,
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "pdf.fonttype": 42,
    "axes.prop_cycle": mpl.cycler(color=["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]),
}
"""Colours are Okabe and Ito's, told apart by colour-blind readers."""


def write(name: str, out: Path, draw: Callable[[Figure], None], table: Callable[[Format], str]) -> list[Path]:
    """Write `name`.png, .pdf, .md, .csv and .tex into a folder.

    Args:
        name: The files' common name.
        out: The folder, made where missing.
        draw: Draws on an empty figure.
        table: Gives the table in a form, "md", "csv" or "tex".

    Returns: The files.
    """
    out.mkdir(parents=True, exist_ok=True)
    pictures = [out / f"{name}.{suffix}" for suffix in ("png", "pdf")]
    with mpl.rc_context(STYLE):
        figure = Figure(layout="constrained")
        draw(figure)
        for file in pictures:
            # No date in the file: the same data gives the same bytes.
            figure.savefig(file, metadata={"CreationDate": None} if file.suffix == ".pdf" else None)
            figure.set_layout_engine("none")  # the second file keeps the places of the first
    return [*pictures, *write_table(name, out, table)]


def write_table(name: str, out: Path, table: Callable[[Format], str]) -> list[Path]:
    """Write `name`.md, .csv and .tex into a folder, made where missing.

    Returns: The files.
    """
    out.mkdir(parents=True, exist_ok=True)
    tables = []
    for form in get_args(Format):
        tables.append(out / f"{name}.{form}")
        tables[-1].write_text(table(form), encoding="utf-8")
    return tables
