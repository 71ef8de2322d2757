"""python -m figures certified_accuracy SOURCE ... --out DIR."""

from pathlib import Path
from typing import Annotated

import typer

from certify.campaign.cli import make_app, parse_radii, start
from figures.certificates_compared import certificates_compared
from figures.certified_accuracy import certified_accuracy

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


@app.command("certificates_compared")
def certificates_compared_command(out: Annotated[Path, typer.Option(help="folder for png, pdf, md, csv, tex")]) -> None:
    """The radius that each smoothing bound proves from the same votes."""
    typer.echo(f"{len(certificates_compared(out))} files in {out}", err=True)


if __name__ == "__main__":
    start(app)
