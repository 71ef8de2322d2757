"""python -m figures all: every figure and every table, from the committed records alone."""

from pathlib import Path
from typing import Annotated

import typer

from certify.errors import InputError
from figures.everything import INDEX, everything
from paper_repro.commands.recipes import RESULTS


def all_command(
    results: Annotated[Path, typer.Option(help="folders of records, <recipe>/<scale>/")] = RESULTS,
    out: Annotated[Path, typer.Option(help="folder for the pictures, the tables and an index")] = Path("runs/figures"),
) -> None:
    """Every figure and every table of the committed records; fails where a committed table says something else."""
    rebuilt = everything(results, out)
    for section, why in rebuilt.skipped.items():
        typer.echo(f"{section}: not rebuilt ({why})", err=True)
    count = sum(len(entry.files) for entries in rebuilt.sections.values() for entry in entries)
    typer.echo(f"{count} files in {out}; see {out / INDEX}", err=True)
    if rebuilt.differing:
        names = ", ".join(map(str, rebuilt.differing))
        raise InputError(f"need committed tables as their records give them; these differ: {names}")
