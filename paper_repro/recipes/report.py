"""The page that a results folder ends with: every table, every verdict, every deviation, from records alone."""

from dataclasses import fields
from typing import Any

from certify.campaign.tables import as_text
from paper_repro.recipes.recipe import SCALES, TAGS, Recipe, Verdict
from paper_repro.recipes.records import NotRecorded, Records

HEADER = ["kind", "claim", "source", "expected", "ends as", "because"]


def judge(recipe: Recipe, records: Records, scale: str) -> list[Verdict]:
    """A verdict on every claim, in their order.

    Raises:
        InputError: a record is damaged.
    """
    return [claim.judge(records, scale) for claim in recipe.claims]


def verdicts(recipe: Recipe, records: Records, scale: str) -> str:
    """The claims and how they end, as Markdown."""
    body = [
        [c.kind, c.text, c.cited, str(c.expected), v.state, v.because]
        for c, v in zip(recipe.claims, judge(recipe, records, scale), strict=True)
    ]
    return as_text(HEADER, body, "md")


def _configuration(config: Any) -> str:
    """Every field as it prints: an attack, a method or a certifier with all its hyperparameters."""
    return "\n".join(f"* {field.name}: `{getattr(config, field.name)!r}`" for field in fields(config))


def report(recipe: Recipe, records: Records, scale: str) -> str:
    """All that the records say, as Markdown.

    Raises:
        InputError: a record is damaged.
    """
    parts = [f"# {recipe.name}, {scale} ({SCALES[scale]})", recipe.paper]
    for name, table in recipe.tables.items():
        try:
            parts += [f"## {name}", as_text(*table(records), "md").rstrip()]
        except NotRecorded as missing:
            parts += [f"## {name}", f"Not run: {missing}."]
    parts += [
        "Means: +- standard deviation over seeds [holds every seed's 95 % interval over images, exact for shares, "
        "normal for radii and other numbers].",
        "## Claims",
        verdicts(recipe, records, scale).rstrip(),
        "An order is reproduced where its whole interval lies above the margin. An interval says what it is over: "
        "images and seeds (it holds every seed's paired 95 % interval over images), or the seeds alone (from the "
        "least to the largest).",
        "\n".join(f"* [{tag}] {meaning}." for tag, meaning in TAGS.items()),
        "## Deviations from the paper",
        "\n".join(f"* {deviation}" for deviation in recipe.deviations),
        "## Configuration",
        _configuration(recipe.configuration(scale)),
        "Budgets and distances are in units of the input, whose pixels lie in [0, 1]. PGD without a step size takes "
        "2.5 eps / steps, SmoothAdv 2 eps / steps.",
    ]
    return "\n\n".join(parts) + "\n"
