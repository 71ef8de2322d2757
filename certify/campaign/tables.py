"""Certified accuracy of stores and published logs, side by side, as numbers and as text."""

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from statistics import mean, stdev
from typing import Literal, get_args

import numpy as np
from tabulate import tabulate

from certify.accuracy import CertifiedAccuracy, accuracy_of_scores, average_of_scores, reported_radius
from certify.campaign.logs import floor_decimal, read_log
from certify.campaign.results import Published, Results
from certify.campaign.store import Store
from certify.comparison import PairedComparison, compare_scores
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
    acr_se: float
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
    items = [item for source in sources for item in read_source(source)]
    return [row_of(item, radii, rho=rho, log_alpha=log_alpha) for item in items]


def row_of(item: Results | Published, radii: Sequence[float], *, rho: float = 0.05, log_alpha: float = 0.001) -> Row:
    """The row of one run or log; see `rows_of`."""
    score = item.scores()
    if isinstance(item, Published):
        alpha, norm, votes = log_alpha, "as published", ""
    else:
        header = item.certificate.header()
        alpha, norm = header["alpha"] or 0.0, header["norm"]
        votes = f"{item.certificate.samples.double().mean():.0f}"
    accuracy = accuracy_of_scores(score, radii, alpha=alpha, rho=rho)
    average = average_of_scores(score, alpha=alpha, rho=rho)
    examples = frozenset(item.example.tolist())
    proved = not isinstance(item, Published)
    return Row(item.name, votes, accuracy, average.value, average.se, norm, proved, examples)


def note_on_examples(rows: Sequence[Row]) -> str | None:
    """What a reader of these rows must know where they are not about the same examples."""
    if len({row.examples for row in rows}) == 1:
        return None
    return "note: the index sets differ; rows with different examples are not comparable"


def render(rows: Sequence[Row], form: Format = "md", *, average: bool = False) -> str:
    """The table as Markdown, CSV or LaTeX.

    Three lines per row: what was observed, the population lower bound at each radius by itself, and at all together.
    Observed shares, ACR and its standard error over examples are rounded to nearest, bounds are rounded down.

    Args:
        rows: From `rows_of`.
        form: "md", "csv" or "tex".
        average: Add mean and standard deviation over the rows, which must be about the same examples.

    Raises:
        InputError: an unknown form; rows to average that differ in examples or radii, or are fewer than two.
    """
    columns = ["source", "norm", "m", "votes", "alpha", "quantity", "ACR", "ACR se"]
    header = [*columns, *(f"r={r:g}" for r in rows[0].accuracy.radii)]
    body: list[list[str]] = []
    for row in rows:
        a = row.accuracy
        alpha = f"{a.alpha:g}" if row.proved else f"{a.alpha:g} assumed"
        lead = [row.name, row.norm, str(a.m), row.votes, alpha]
        confidence = f"{100 * (1 - a.rho):g} %"
        body.append([*lead, "observed", f"{row.acr:.4f}", f"{row.acr_se:.4f}", *(f"{v:.3f}" for v in a.observed)])
        for label, values in ((f"each >=, {confidence}", a.lower), (f"all >=, {confidence}", a.band)):
            body.append([*lead, label, "", "", *(floor_decimal(v, 3) for v in values)])
    if average:
        body.extend(_averages(rows))
    return as_text(header, body, form)


def as_text(header: Sequence[str], body: Sequence[Sequence[str]], form: Format) -> str:
    """A table of ready cells as Markdown, CSV or LaTeX.

    Raises:
        InputError: an unknown form.
    """
    if form not in FORMATS:
        raise InputError(f"need a form among {', '.join(FORMATS)}; got {form!r}")
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
    acr, observed = [r.acr for r in rows], list(zip(*(r.accuracy.observed for r in rows), strict=True))
    lead = [f"{len(rows)} rows", rows[0].norm, str(m), "", ""]
    return [
        [*lead, name, f"{summary(acr):.4f}", "", *(f"{summary(column):.3f}" for column in observed)]
        for name, summary in (("mean", mean), ("sd", stdev))
    ]


@dataclass(frozen=True, slots=True, eq=False)
class Compared:
    """Two runs or logs on the same examples, and how they differ."""

    first: Results | Published
    second: Results | Published
    paired: PairedComparison


def compare_sources(
    sources: Sequence[str | Path], radii: Sequence[float], *, pick: Sequence[int] | None = None, rho: float = 0.05
) -> Compared:
    """Compare two runs or logs, example by example.

    Args:
        sources: Stores and logs.
        radii: Radii >= 0.
        pick: Which two, counted from 1 in the order of the table, where the sources hold more.
        rho: Failure probability of each interval.

    Raises:
        InputError: the sources do not hold exactly two and none were picked; the two are about different examples,
            labels or norms; a source or a value is wrong.
    """
    items = [item for source in sources for item in read_source(source)]
    if pick is not None:
        if len(pick) != 2 or not all(1 <= p <= len(items) for p in pick):
            raise InputError(f"need two numbers between 1 and {len(items)} to pick; got {list(pick)}")
        items = [items[p - 1] for p in pick]
    if len(items) != 2:
        names = ", ".join(f"{i} {item.name}" for i, item in enumerate(items, start=1))
        raise InputError(f"need two runs or logs to compare; got {len(items)} ({names}): pick two of them")
    first, second = items
    norms = [item.certificate.norm for item in items if isinstance(item, Results)]
    if len(set(norms)) > 1:
        raise InputError(f"need runs in one norm to compare; got {norms[0]} and {norms[1]}")
    paired = compare_scores(first.scores(), second.scores(), first.example, second.example, radii, rho=rho)
    labels = [item.label[np.argsort(item.example)] for item in items]
    if (labels[0] != labels[1]).any():
        differing = int((labels[0] != labels[1]).sum())
        raise InputError(f"need the same labels on both sides; {differing} examples have another: other data, perhaps")
    return Compared(first, second, paired)


def render_comparison(compared: Compared) -> str:
    """The comparison as Markdown: averages, then one line per radius.

    Differences are rounded to nearest, intervals outward, p-values to two digits.
    """
    c = compared.paired
    sides = (compared.first, compared.second)
    scores = [item.scores() for item in sides]
    averages = [float(np.mean(reported_radius(score))) for score in scores]
    body = [["ACR", *(f"{a:.4f}" for a in averages), f"{c.average:+.4f}", f"{c.se:.4f}", _interval(*c.estimate, "~")]]
    for i, r in enumerate(c.radii):
        only = int(c.only_first[i]), int(c.only_second[i])
        shares = [f"{np.mean(score >= r):.4f}" for score in scores]
        interval = _interval(float(c.lower[i]), float(c.upper[i]))
        tail = [interval, str(sum(only)), f"{only[0]} : {only[1]}", f"{c.p_value[i]:.2g}"]
        body.append([f"r={r:g}", *shares, f"{c.difference[i]:+.4f}", f"{_se(*only, c.m):.4f}", *tail])
    confidence = f"{100 * (1 - c.rho):g} % interval"
    header = ["quantity", "first", "second", "difference", "se", confidence, "discordant", "only 1st : 2nd", "p"]
    names = [f"* {place}: {_provenance(item)}" for place, item in zip(("first", "second"), sides, strict=True)]
    text = tabulate(body, header, tablefmt="github", disable_numparse=True)
    explanation = (
        f"{c.m} examples, paired; se over examples. ~ marks a normal interval, the others hold at any sample size; "
        "p is the exact two-sided McNemar test. Each line holds by itself."
    )
    return "\n".join([*names, "", text, "", explanation]) + "\n"


def _provenance(item: Results | Published) -> str:
    if isinstance(item, Published):
        return f"{item.name} (as published: norm, votes and alpha are not in a log)"
    header = item.certificate.header()
    alpha = header["alpha"] or 0.0
    return f"{item.name} ({header['norm']}, {item.certificate.samples.double().mean():.0f} votes, alpha {alpha:g})"


def _se(only_first: int, only_second: int, m: int) -> float:
    """Standard error of the mean of m differences, of which so many are +1 and -1."""
    if m == 1:
        return math.inf
    total = only_first + only_second - (only_first - only_second) ** 2 / m
    return math.sqrt(total / (m - 1) / m)


def _interval(low: float, high: float, mark: str = "") -> str:
    """An interval rounded outward; an infinite end is shown as such."""
    if math.isinf(low) or math.isinf(high):
        return f"{mark}[{low}, {high}]"
    return f"{mark}[{floor_decimal(low, 4)}, {-Decimal(floor_decimal(-high, 4))}]"
