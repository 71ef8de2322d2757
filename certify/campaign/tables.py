"""Certified accuracy of stores and published logs, side by side, as numbers and as text."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Literal, get_args

from tabulate import tabulate

from certify.accuracy import CertifiedAccuracy, accuracy_of_scores, average_of_scores
from certify.campaign.logs import floor_decimal, read_log
from certify.campaign.store import Published, Results, Store
from certify.errors import InputError

Format = Literal["md", "csv", "tex"]
FORMATS: tuple[str, ...] = get_args(Format)
_SQLITE = b"SQLite format 3\x00"


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """One run or log in a table.

    `proved` is False for a published log, whose alpha is taken on trust; `votes` is the mean per example, as text.
    """

    name: str
    votes: str
    accuracy: CertifiedAccuracy
    acr: float
    norm: str
    proved: bool
    examples: frozenset[int]


def read_source(path: str | Path) -> list[Results | Published]:
    """The runs and logs of a store, or one published log; told apart by the file's first bytes.

    Raises:
        InputError: the file is missing, damaged, neither of the two, or a store without rows.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"need a store or a log; no file at {path}")
    with path.open("rb") as file:
        is_store = file.read(len(_SQLITE)) == _SQLITE
    if not is_store:
        return [read_log(path)]
    with Store(path) as store:
        results = [*store.results(), *store.published()]
    if not results:
        raise InputError(f"the store {path} holds no certificate yet")
    return results


def rows_of(
    sources: Sequence[str | Path], radii: Sequence[float], *, rho: float = 0.05, log_alpha: float = 0.001
) -> list[Row]:
    """One row per run or log.

    Args:
        sources: Stores and logs.
        radii: Radii >= 0.
        rho: Failure probability of the population bounds.
        log_alpha: The alpha assumed for published logs, which do not state theirs.

    Raises:
        InputError: a source or a value is wrong.
    """
    rows: list[Row] = []
    for source in sources:
        for item in read_source(source):
            score = item.scores()
            if isinstance(item, Published):
                alpha, norm, votes = log_alpha, "as published", ""
            else:
                header = item.certificate.header()
                alpha, norm = header["alpha"] or 0.0, header["norm"]
                votes = f"{item.certificate.samples.double().mean():.0f}"
            accuracy = accuracy_of_scores(score, radii, alpha=alpha, rho=rho)
            examples = frozenset(item.example.tolist())
            proved = not isinstance(item, Published)
            rows.append(Row(item.name, votes, accuracy, average_of_scores(score), norm, proved, examples))
    return rows


def render(rows: Sequence[Row], form: Format = "md", *, average: bool = False) -> str:
    """The table as Markdown, CSV or LaTeX.

    Three lines per row: what was observed, the population lower bound at each radius by itself, and at all together.
    Observed shares and ACR are rounded to nearest, bounds are rounded down.

    Args:
        rows: From `rows_of`.
        form: "md", "csv" or "tex".
        average: Add mean and standard deviation over the rows, which must be about the same examples.

    Raises:
        InputError: an unknown form; rows to average that differ in examples or radii, or are fewer than two.
    """
    if form not in FORMATS:
        raise InputError(f"need a form among {', '.join(FORMATS)}; got {form!r}")
    header = ["source", "norm", "m", "votes", "alpha", "quantity", "ACR", *(f"r={r:g}" for r in rows[0].accuracy.radii)]
    body: list[list[str]] = []
    for row in rows:
        a = row.accuracy
        alpha = f"{a.alpha:g}" if row.proved else f"{a.alpha:g} assumed"
        lead = [row.name, row.norm, str(a.m), row.votes, alpha]
        confidence = f"{100 * (1 - a.rho):g} %"
        body.append([*lead, "observed", f"{row.acr:.4f}", *(f"{v:.3f}" for v in a.observed)])
        for label, values in ((f"each >=, {confidence}", a.lower), (f"all >=, {confidence}", a.band)):
            body.append([*lead, label, "", *(floor_decimal(v, 3) for v in values)])
    if average:
        body.extend(_averages(rows))
    if form == "csv":
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([header, *body])
        return text.getvalue()
    style = "github" if form == "md" else "latex_booktabs"
    return tabulate(body, header, tablefmt=style, disable_numparse=True) + "\n"


def _averages(rows: Sequence[Row]) -> list[list[str]]:
    if len(rows) < 2:
        raise InputError(f"need at least two rows to average; got {len(rows)}")
    if len({row.examples for row in rows}) > 1:
        raise InputError("need the same examples in every row that is averaged; the index sets differ")
    if len({tuple(row.accuracy.radii) for row in rows}) > 1:
        raise InputError("need the same radii in every row that is averaged")
    m = rows[0].accuracy.m
    columns = [[r.acr for r in rows], *zip(*(r.accuracy.observed for r in rows), strict=True)]
    digits = [4] + [3] * (len(columns) - 1)
    lead = [f"{len(rows)} rows", rows[0].norm, str(m), "", ""]
    return [
        [*lead, "mean", *(f"{mean(c):.{d}f}" for c, d in zip(columns, digits, strict=True))],
        [*lead, "sd", *(f"{stdev(c):.{d}f}" for c, d in zip(columns, digits, strict=True))],
    ]
