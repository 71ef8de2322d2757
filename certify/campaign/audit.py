"""What a published log gives away: its votes, its alpha, its rounding, and what is wrong in it."""

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import pairwise
from pathlib import Path

from tabulate import tabulate

from certify.campaign.attainable import Fit, Printed, candidates, ceiling, fit, raised, recover
from certify.campaign.logs import Line, parse, read_cells
from certify.certificate import ABSTAIN
from certify.errors import InputError

_NAMED = re.compile(r"(sigma|noise)[_=-]?(\d+(?:\.\d+)?)", re.IGNORECASE)
_SHOWN = 6


@dataclass(frozen=True, slots=True)
class Audit:
    """What a log gives away.

    Attributes:
        name: The file's name.
        rows: Lines below the header.
        sigma: The noise that the radii are in units of.
        origin: Where sigma is from.
        precision: How radii are printed.
        radii: How many radii are positive, finite and not on an abstention: those that are explained.
        fits: Every candidate, the likeliest first.
        recovered: The candidate that stands out, or None.
        raised: Printed radii above every attainable one that prints so; 0 where nothing was recovered.
        unclear: Printed radii with attainable ones on both sides, which may have been raised or not.
        excess: The largest amount by which a radius was surely raised.
        ceiling: The largest attainable radius: of the recovered candidate, or of all.
        indices: The indices, in words.
        findings: What is wrong in the file, one line each.
    """

    name: str
    rows: int
    sigma: float
    origin: str
    precision: str
    radii: int
    fits: tuple[Fit, ...]
    recovered: Fit | None
    raised: int
    unclear: int
    excess: float
    ceiling: float
    indices: str
    findings: tuple[str, ...]


def audit_log(
    path: str | Path, *, sigma: float | None = None, n: Sequence[int] = (), alpha: Sequence[float] = ()
) -> Audit:
    """Recover the settings behind a log of Gaussian smoothing, and list what is wrong in it.

    Args:
        path: A tab-separated log, as `read_log` takes; but a row that `read_log` refuses is a finding here.
        sigma: Standard deviation of the noise; where None, from the file's name, such as sigma_0.25 or noise_0.25.
        n: Numbers of votes to try beside powers of ten.
        alpha: Failure probabilities to try beside the usual ones.

    Raises:
        InputError: the file is missing, has another header or no row, sigma is not known or not positive, or a
            candidate is out of range.
    """
    path = Path(path)
    pairs = candidates(n, alpha)
    sigma, origin = _sigma(path, sigma)
    rows = read_cells(path)
    if not rows:
        raise InputError(f"{path}: need at least one row; got none")
    lines: list[Line] = []
    unreadable: list[int] = []
    for number, cells in rows:
        try:
            lines.append(parse(path, number, cells))
        except InputError:
            unreadable.append(number)
    good = [line for line in lines if 0 < line.radius < math.inf and line.prediction != ABSTAIN]
    printed = Printed.of([Decimal(line.printed) for line in good])
    fits = fit(printed, sigma, pairs)
    recovered = recover(fits, len(good))
    up, unclear, excess = (0, 0, 0.0) if recovered is None else raised(printed, sigma, recovered)
    most = max(ceiling(sigma, *p) for p in (pairs if recovered is None else [(recovered.n, recovered.alpha)]))
    indices = _Indices.of(lines)
    return Audit(
        name=path.name,
        rows=len(rows),
        sigma=sigma,
        origin=origin,
        precision=printed.precision,
        radii=len(good),
        fits=fits,
        recovered=recovered,
        raised=up,
        unclear=unclear,
        excess=excess,
        ceiling=most,
        indices=str(indices),
        findings=(*_damage(lines, unreadable), *indices.findings(), *_impossible(good, printed, most)),
    )


def _sigma(path: Path, sigma: float | None) -> tuple[float, str]:
    origin = "as given"
    if sigma is None:
        named = {kind.lower(): value for kind, value in _NAMED.findall(path.name)}
        if not named:
            raise InputError(f"need --sigma, or a file name with sigma_0.25 or noise_0.25 in it; got {path.name}")
        kind = "sigma" if "sigma" in named else "noise"
        sigma, origin = float(named[kind]), f"from {kind} {named[kind]} in the file's name"
    if not 0 < sigma < math.inf:
        raise InputError(f"need a finite sigma > 0; got {sigma!r}")
    return sigma, origin


def _rows(numbers: Sequence[int]) -> str:
    """How many rows, and the first few of their line numbers."""
    shown = ", ".join(str(number) for number in numbers[:_SHOWN])
    more = f" and {len(numbers) - _SHOWN} more" if len(numbers) > _SHOWN else ""
    s = "s" if len(numbers) > 1 else ""
    return f"{len(numbers)} row{s} (line{s} {shown}{more})"


def _damage(lines: Sequence[Line], unreadable: Sequence[int]) -> Iterator[str]:
    """What `read_log` would refuse a row for."""
    if unreadable:
        yield f"cannot be read: {_rows(unreadable)}"
    kinds: dict[str, list[int]] = {}
    for line in lines:
        if line.correct not in (0, 1):
            kinds.setdefault("`correct` is neither 0 nor 1", []).append(line.number)
        elif line.correct != (line.prediction == line.label):
            kinds.setdefault("`correct` contradicts label and prediction", []).append(line.number)
        if not 0 <= line.radius < math.inf:
            kinds.setdefault("the radius is negative or not finite", []).append(line.number)
        elif line.radius > 0 and line.prediction == ABSTAIN:
            kinds.setdefault("a positive radius on an abstention", []).append(line.number)
    yield from (f"{kind}: {_rows(numbers)}" for kind, numbers in kinds.items())
    counts = [line.correct for line in lines]
    if max(counts, default=0) > 1 and all(0 <= b - a <= 1 for a, b in pairwise([0, *counts])):
        yield "`correct` looks like a running count"


@dataclass(frozen=True, slots=True)
class _Indices:
    """The different indices of a log, sorted; the step between them that is most frequent; and the lines of doubles."""

    values: list[int]
    step: int
    twice: list[int]

    @classmethod
    def of(cls, lines: Sequence[Line]) -> "_Indices":
        times = Counter(line.example for line in lines)
        values = sorted(times)
        steps = Counter(b - a for a, b in pairwise(values))
        twice = [line.number for line in lines if times[line.example] > 1]
        return cls(values, steps.most_common(1)[0][0] if steps else 1, twice)

    def __str__(self) -> str:
        if not self.values:
            return "no index"
        return f"{len(self.values)} different indices, {self.values[0]} to {self.values[-1]} in steps of {self.step}"

    def findings(self) -> Iterator[str]:
        """Doubles, gaps, and indices beside the steps."""
        if self.twice:
            yield f"an index that occurs more than once: {_rows(self.twice)}"
        kept = [i for i in self.values if (i - self.values[0]) % self.step == 0]
        if len(kept) < len(self.values):
            beside = next(i for i in self.values if (i - self.values[0]) % self.step)
            yield f"indices not in steps of {self.step}: {len(self.values) - len(kept)}, the first {beside}"
        gaps = [(a, b) for a, b in pairwise(kept) if b - a > self.step]
        if gaps:
            missing = sum((b - a) // self.step - 1 for a, b in gaps)
            yield f"indices missing in steps of {self.step}: {missing}, the first {gaps[0][0] + self.step}"


def _impossible(good: Sequence[Line], printed: Printed, most: float) -> Iterator[str]:
    unit = dict(zip(printed.value.tolist(), printed.unit.tolist(), strict=True))
    beyond = [line.number for line in good if line.radius > most * (1 + 1e-9) + unit[line.radius] / 2]
    if beyond:
        yield f"beyond the largest attainable radius, {most:.6g}: {_rows(beyond)}"


def describe(audit: Audit) -> str:
    """The audit as text, with a table of the likeliest candidates."""
    head = [
        f"{audit.name}: {audit.rows} rows; {audit.indices}",
        f"sigma {audit.sigma:g}, {audit.origin}; {audit.radii} radii > 0, printed to {audit.precision}",
    ]
    header = ["n", "alpha", "rounding", "matched", "telling", "matched of these", "evidence"]
    body = [
        [
            str(f.n),
            f"{f.alpha:g}",
            f.rounding,
            _percent(f.matched, audit.radii),
            str(f.telling),
            _percent(f.matched_telling, f.telling),
            f"{f.evidence:.1f}",
        ]
        for f in audit.fits[:_SHOWN]
    ]
    table = [
        "",
        tabulate(body, header, tablefmt="github", disable_numparse=True),
        "",
        "telling: radii where attainable values lie further apart than printed ones",
        "evidence: decimal logarithm of the likelihood, against radii on no lattice",
    ]
    findings = [f"finding: {finding}" for finding in audit.findings] or ["no findings"]
    return "\n".join([*head, *(table if audit.radii else []), f"verdict: {_verdict(audit)}", *findings]) + "\n"


def _percent(part: int, whole: int) -> str:
    """A share rounded down, so that only all is 100 %."""
    return f"{math.floor(1000 * part / whole) / 10:.1f} %" if whole else "-"


def _verdict(audit: Audit) -> str:
    found = audit.recovered
    if found is None:
        return (
            "n and alpha are not recovered, for no candidate stands out: other settings or another noise, a wrong "
            "sigma, or radii too small for the printed digits to tell"
        )
    rounding = {
        "down": "rounded down",
        "unclear": "either way of rounding explains the digits",
        "nearest": f"rounded to nearest, so that {audit.raised} of {audit.radii} are printed larger than certified, by "
        f"up to {audit.excess:.2g}, and {audit.unclear} more may be",
    }[found.rounding]
    return f"n = {found.n}, alpha = {found.alpha:g}; largest attainable radius {audit.ceiling:.6g}; {rounding}"
