"""Spectral density of a Hessian on a logarithmic scale, with its extreme eigenvalues as sticks."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from analysis.density import Density, StochasticLanczos
from certify.campaign.tables import Format, as_text
from certify.errors import InputError
from figures.page import write

SUBJECT = ("model_sha256", "data_sha256", "loss", "parameters")
"""What two files must agree in to be drawn together."""

_POINTS = 4000


@dataclass(frozen=True, slots=True)
class Stored:
    """The arrays of an npz file, and what they are about."""

    arrays: dict[str, np.ndarray]
    provenance: dict[str, Any]


def read(path: Path, needed: tuple[str, ...]) -> Stored:
    """Read a file that `python -m analysis hessian` or `density` wrote; nothing in it is executed.

    Raises:
        InputError: there is no such file, or it does not hold the arrays.
    """
    if not path.is_file():
        raise InputError(f"need an npz file; no file at {path}")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {k: file[k] for k in (*needed, "provenance")}
        return Stored(arrays, json.loads(str(arrays.pop("provenance"))))
    except Exception as error:  # whatever numpy's reader raises on a file that is not what it should be
        raise InputError(f"{path} does not hold {', '.join(needed)} of a Hessian ({error})") from error


def spectral_density(density: Path, hessian: Path, out: Path) -> list[Path]:
    """Draw a density with its error over draws, and the eigenvalues with their residuals; the table lists these.

    Args:
        density: npz of `python -m analysis density`.
        hessian: npz of `python -m analysis hessian`, about the same model, data, loss and parameters.
        out: The folder.

    Returns: The files.

    Raises:
        InputError: a file is missing, holds something else, or is about something else.
    """
    curve = read(density, ("nodes", "weights"))
    pairs = read(hessian, ("eigenvalues", "residuals", "converged"))
    for key in SUBJECT:
        if curve.provenance.get(key) != pairs.provenance.get(key):
            raise InputError(
                f"need one subject; {density} and {hessian} differ in {key}: "
                f"{curve.provenance.get(key)!r}, {pairs.provenance.get(key)!r}"
            )
    body = [
        [str(i + 1), f"{value:.6g}", f"{residual:.1e}", "yes" if done else "no"]
        for i, (value, residual, done) in enumerate(
            zip(*(pairs.arrays[k] for k in ("eigenvalues", "residuals", "converged")), strict=True)
        )
    ]

    def table(form: Format) -> str:
        return as_text(["number", "eigenvalue", "residual", "converged"], body, form)

    return write("spectral_density", out, lambda figure: _draw(figure, curve, pairs), table)


def _draw(figure: Figure, curve: Stored, pairs: Stored) -> None:
    nodes, weights = (torch.from_numpy(curve.arrays[k]) for k in ("nodes", "weights"))
    found = Density(nodes, weights, 0, StochasticLanczos(), 0)
    grid = found.grid(_POINTS)
    mean, error = (t.numpy() for t in found.density(grid))
    floor = mean.max() * 1e-8
    axes = figure.subplots()
    axes.semilogy(grid, np.maximum(mean, floor), lw=1.2, label=f"density, mean of {len(nodes)} draws")
    axes.fill_between(
        grid,
        np.maximum(mean - 2 * error, floor),
        np.maximum(mean + 2 * error, floor),
        alpha=0.2,
        lw=0,
        label="two standard errors over draws",
    )
    values, done = pairs.arrays["eigenvalues"], pairs.arrays["converged"]
    worst = float(pairs.arrays["residuals"].max())
    label = f"{len(values)} extreme eigenvalues, {int(done.sum())} converged, residuals <= {worst:.1e}"
    axes.vlines(values, floor, floor * 30, color="C1", lw=1.2, label=label)
    axes.set(
        xlabel="eigenvalue of the Hessian of the mean loss",
        ylabel="share of eigenvalues per unit",
        ylim=(floor, mean.max() * 4),
        title=f"{curve.provenance['operator']}\n{curve.provenance['method']}",
    )
    axes.title.set_fontsize(9)
    figure.legend(loc="outside lower left", fontsize=8)
