"""Accuracy in Gaussian noise, one line per network: masked gradients do not help in noise, robustness does."""

from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure

from analysis.evaluation import round_down, round_up
from analysis.noise_curve import NoiseCurve
from certify.campaign.tables import Format, as_text
from certify.errors import InputError
from figures.marks import style
from figures.page import write


def accuracy_in_noise(curves: Mapping[str, NoiseCurve], out: Path) -> list[Path]:
    """Draw mean accuracy with its standard deviation over draws, and the exact interval for the population.

    Args:
        curves: By the network's name.
        out: The folder.

    Returns: The files.

    Raises:
        InputError: there is no curve.
    """
    if not curves:
        raise InputError("need at least one curve; got 0")
    header = ["network", "sigma", "mean", "sd", "lower", "upper", "draws", "n"]
    body = [row for name, curve in curves.items() for row in _rows(name, curve)]

    def table(form: Format) -> str:
        return as_text(header, body, form)

    return write("accuracy_in_noise", out, lambda figure: _draw(figure, curves), table)


def _rows(name: str, curve: NoiseCurve) -> list[list[str]]:
    levels = zip(curve.method.sigmas, curve.mean.tolist(), curve.sd.tolist(), curve.interval, strict=True)
    return [
        [name, f"{sigma:g}", f"{mean:.4f}", f"{sd:.4f}", round_down(low), round_up(high), *_counts(curve)]
        for sigma, mean, sd, (low, high) in levels
    ]


def _counts(curve: NoiseCurve) -> list[str]:
    return [str(curve.method.draws), str(curve.n)]


def _draw(figure: Figure, curves: Mapping[str, NoiseCurve]) -> None:
    axes = figure.subplots()
    for k, (name, curve) in enumerate(curves.items()):
        sigmas, look = curve.method.sigmas, style(k)
        bars = axes.errorbar(
            sigmas, curve.mean.tolist(), curve.sd.tolist(), lw=1.4, capsize=3, ms=5, fillstyle="none", **look
        )
        bars.set_label(f"{name}: n = {curve.n}, {curve.method.draws} draws")
        low, high = zip(*curve.interval, strict=True)
        axes.fill_between(sigmas, low, high, color=look["color"], alpha=0.15, lw=0)
    rho = next(iter(curves.values())).method.rho
    axes.set(
        xlabel="standard deviation of the noise (input units)",
        ylabel="accuracy",
        title="Accuracy in Gaussian noise. Line: mean, bars: one s.d. over draws.\n"
        f"Shade: exact {100 * (1 - rho):g} % interval for the population.",
    )
    axes.title.set_fontsize(10)
    figure.legend(loc="outside lower left", fontsize=8, handlelength=4)
