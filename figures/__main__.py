"""python -m figures NAME ... --out DIR: one command per figure. `--help` lists them."""

from pathlib import Path
from typing import Annotated

import typer

from analysis.boundary_distance import BoundaryDistances
from analysis.noise_curve import NoiseCurve
from certify.campaign.cli import make_app, parse_radii, start
from figures.accuracy_in_noise import accuracy_in_noise
from figures.boundary_distance import boundary_distance
from figures.certificates_compared import certificates_compared
from figures.certified_accuracy import certified_accuracy
from figures.compare import compare
from figures.everything_command import all_command
from figures.input_surface import input_surface
from figures.linear_threshold import linear_threshold
from figures.report_command import report_command
from figures.scattering import scattering
from figures.spectral_density import spectral_density
from figures.weight_surface import weight_surface

app = make_app(__doc__)


@app.command("certified_accuracy")
def certified_accuracy_command(
    sources: Annotated[list[Path], typer.Argument(help="stores and published logs")],
    out: Annotated[Path, typer.Option(help="folder for png, pdf, md, csv, tex")],
    radii: Annotated[str, typer.Option(help="where the table reads the curve")] = "0,0.25,0.5,0.75,1.0,1.25,1.5",
    rho: Annotated[float, typer.Option(help="failure probability of the band")] = 0.05,
) -> None:
    """Certified accuracy against radius."""
    files = certified_accuracy(sources, out, parse_radii(radii), rho=rho)
    typer.echo(next(f for f in files if f.suffix == ".md").read_text(encoding="utf-8"), nl=False)


@app.command("compare")
def compare_command(
    stores: Annotated[list[Path], typer.Argument(help="stores of certificates and of attacks")],
    dimension: Annotated[int, typer.Option(help="numbers in one input, such as 784")],
    out: Annotated[Path, typer.Option(help="folder for png, pdf, md, csv, tex")],
    rho: Annotated[float, typer.Option(help="failure probability of each interval over images")] = 0.05,
) -> None:
    """The same images under every certifier and attack, in Linf and in L2."""
    files = compare(stores, out, dimension=dimension, rho=rho)
    typer.echo(next(f for f in files if f.suffix == ".md").read_text(encoding="utf-8"), nl=False)


@app.command("accuracy_in_noise")
def accuracy_in_noise_command(
    records: Annotated[list[Path], typer.Argument(help="npz records of noise curves, one per network")],
    out: Annotated[Path, typer.Option(help="folder for png, pdf, md, csv, tex")],
) -> None:
    """Accuracy in Gaussian noise of growing sigma."""
    curves = {record.stem: NoiseCurve.load(record) for record in records}
    typer.echo(f"{len(accuracy_in_noise(curves, out))} files in {out}", err=True)


@app.command("boundary_distance")
def boundary_distance_command(
    records: Annotated[list[Path], typer.Argument(help="npz records of boundary distances, one per network")],
    out: Annotated[Path, typer.Option(help="folder for png, pdf, md, csv, tex")],
) -> None:
    """The nearest error against the distance that errors in noise predict."""
    distances = {record.stem: BoundaryDistances.load(record) for record in records}
    typer.echo(f"{len(boundary_distance(distances, out))} files in {out}", err=True)


@app.command("input_surface")
def input_surface_command(
    sources: Annotated[list[Path], typer.Argument(help="records of python -m analysis surface")],
    out: Annotated[Path, typer.Option(help="folder for png, pdf, md, csv, tex")],
) -> None:
    """The loss around the same inputs for several networks, on shared axes."""
    typer.echo(f"{len(input_surface(sources, out))} files in {out}", err=True)


@app.command("weight_surface")
def weight_surface_command(
    sources: Annotated[list[Path], typer.Argument(help="records of python -m analysis landscape")],
    out: Annotated[Path, typer.Option(help="folder for png, pdf, md, csv, tex")],
) -> None:
    """The loss around networks' weights, along lines or over planes."""
    typer.echo(f"{len(weight_surface(sources, out))} files in {out}", err=True)


@app.command("linear_threshold")
def linear_threshold_command(
    source: Annotated[Path, typer.Argument(help="record of python -m analysis linear --out")],
    out: Annotated[Path, typer.Option(help="folder for png, pdf, md, csv, tex")],
) -> None:
    """Linear classifiers trained on both sides of the predicted threshold."""
    typer.echo(f"{len(linear_threshold(source, out))} files in {out}", err=True)


@app.command("scattering")
def scattering_command(
    record: Annotated[Path, typer.Argument(help="record of python -m analysis scattering")],
    out: Annotated[Path, typer.Option(help="folder for png, pdf, md, csv, tex")],
) -> None:
    """Gradient scattering: the jump, its certified bound, and the scattering index."""
    files = scattering(record, out)
    typer.echo(next(f for f in files if f.suffix == ".md").read_text(encoding="utf-8"), nl=False)


@app.command("spectral_density")
def spectral_density_command(
    density: Annotated[Path, typer.Option(help="npz of python -m analysis density")],
    hessian: Annotated[Path, typer.Option(help="npz of python -m analysis hessian")],
    out: Annotated[Path, typer.Option(help="folder for png, pdf, md, csv, tex")],
) -> None:
    """Spectral density of a Hessian, with its extreme eigenvalues."""
    typer.echo(f"{len(spectral_density(density, hessian, out))} files in {out}", err=True)


@app.command("certificates_compared")
def certificates_compared_command(out: Annotated[Path, typer.Option(help="folder for png, pdf, md, csv, tex")]) -> None:
    """The radius that each smoothing bound proves from the same votes."""
    typer.echo(f"{len(certificates_compared(out))} files in {out}", err=True)


app.command("all")(all_command)
app.command("report")(report_command)


if __name__ == "__main__":
    start(app)
