"""python -m paper_repro list | run | check."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from certify import InputError
from certify.campaign.cli import parse_device
from certify.campaign.tables import as_text
from paper_repro.recipes import RECIPES
from paper_repro.recipes.execute import MANIFEST, check_same, execute
from paper_repro.recipes.recipe import SCALES, Recipe
from paper_repro.recipes.records import Records
from paper_repro.recipes.report import judge, verdicts

RESULTS = Path(__file__).resolve().parents[1] / "results"
WORK = Path("runs")

ScaleOption = Annotated[str, typer.Option(help="; ".join(f"{name}: {what}" for name, what in SCALES.items()))]
OutOption = Annotated[
    Path | None, typer.Option(help="folder of the records; paper_repro/results/RECIPE/SCALE if left out")
]


def find(name: str) -> Recipe:
    """The recipe of that name.

    Raises:
        InputError: there is none.
    """
    if name not in RECIPES:
        raise InputError(f"need a recipe among {', '.join(RECIPES)}; got {name!r}")
    return RECIPES[name]


def list_recipes() -> None:
    """Every recipe, its stages and claims, and the scales whose results lie in the repository."""
    body = [
        [
            recipe.name,
            recipe.paper,
            ", ".join(recipe.stages),
            str(len(recipe.claims)),
            ", ".join(s for s in recipe.scales if (RESULTS / recipe.name / s / MANIFEST).is_file()) or "none yet",
        ]
        for recipe in RECIPES.values()
    ]
    typer.echo(as_text(["recipe", "paper", "stages", "claims", "results"], body, "md"), nl=False)


def run(
    recipe: Annotated[str, typer.Argument(help="a name that `list` shows")],
    scale: ScaleOption = "smoke",
    out: OutOption = None,
    work: Annotated[Path | None, typer.Option(help="checkpoints and stores; runs/RECIPE/SCALE if left out")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
) -> None:
    """Run a recipe; the same command goes on with a killed run, and computes nothing where all is recorded."""
    chosen = find(recipe)
    execute(
        chosen,
        scale,
        work=work or WORK / recipe / scale,
        results=out or RESULTS / recipe / scale,
        device=parse_device(device),
        command=shlex.join(["python", "-m", "paper_repro", *sys.argv[1:]]),
        tell=lambda stage: typer.echo(f"{recipe}, {scale}: {stage}", err=True),
    )
    _check(chosen, scale, out)


def check(
    recipes: Annotated[list[str] | None, typer.Argument(help="names that `list` shows; all if left out")] = None,
    scale: Annotated[str | None, typer.Option(help="those with records in the repository if left out")] = None,
    out: OutOption = None,
) -> None:
    """How every claim ends, worked out anew from the records in the repository, or in a folder."""
    chosen = [find(name) for name in recipes or RECIPES]
    if out is not None and len(chosen) > 1:
        raise InputError(f"need one recipe with a folder of records; got {len(chosen)}")
    for recipe in chosen:
        for one in [scale] if scale is not None else _recorded(recipe):
            _check(recipe, one, out)


def _recorded(recipe: Recipe) -> list[str]:
    """The scales with records in the repository; without any, the first one larger than smoke."""
    found = [scale for scale in recipe.scales if (RESULTS / recipe.name / scale / MANIFEST).is_file()]
    return found or [next(scale for scale in SCALES if scale in recipe.scales and scale != "smoke")]


def _check(recipe: Recipe, scale: str, out: Path | None) -> None:
    folder = out or RESULTS / recipe.name / scale
    records = Records(folder)
    check_same(recipe, scale, records)
    states = [verdict.state for verdict in judge(recipe, records, scale)]
    counts = ", ".join(f"{states.count(state)} {state}" for state in ("reproduced", "deviates", "not run"))
    typer.echo(f"{recipe.name}, {scale}, {folder}: {counts}\n")
    typer.echo(verdicts(recipe, records, scale))
