"""Which radii n votes at alpha can certify at all, and which n and alpha explain those that somebody printed.

A radius is sigma * PhiInv(BetaInv(alpha; k, n - k + 1)) for some count k of n: only n values are possible. Towards the
largest ones they lie further apart than the printed digits, and there n and alpha show. This is about Gaussian noise
and a bound on the top class alone, as Cohen et al. (2019) certify.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal

import numpy as np
from scipy.special import betaincinv, ndtr, ndtri
from scipy.stats import binom

from certify.accuracy import FloatArray
from certify.binomial import check_alpha, fewest_votes
from certify.errors import InputError

VOTES = (100, 1_000, 10_000, 100_000, 1_000_000)
ALPHAS = (0.1, 0.05, 0.01, 0.005, 0.001, 0.0005, 0.0001, 0.00001)
_SLACK = 1e-9  # in units of sigma: what other software may compute otherwise
_DAMAGED = 1e-3  # the share of rows that may be off for reasons of their own
_DECADES = 2.0  # of evidence over every rival, before a candidate counts as recovered
_SHARE = 0.99  # of the radii, which a recovered candidate must explain


@dataclass(frozen=True, slots=True, eq=False)
class Printed:
    """The different radii of a log, and how they were printed.

    Attributes:
        value: (u,) each positive radius once.
        unit: (u,) one unit of its last digit.
        times: (u,) how often it occurs.
        precision: The format, in words.
        roundings: Which of "nearest" and "down" the format may be.
    """

    value: FloatArray
    unit: FloatArray
    times: FloatArray
    precision: str
    roundings: tuple[str, ...]

    @classmethod
    def of(cls, radii: Sequence[Decimal]) -> "Printed":
        """Count radii > 0, and tell a format of significant digits from one of decimals.

        With either, trailing zeros may be absent. The coarser of the two that can print all radii explains them with
        fewer possible numerals, and is taken.
        """
        if not radii:
            return cls(np.zeros(0), np.zeros(0), np.zeros(0), "no digits", ("nearest",))
        digits = max(len(r.as_tuple().digits) for r in radii)
        decimals = max(max(0, -int(r.as_tuple().exponent)) for r in radii)
        counted = Counter(radii)
        by_digits = [r.adjusted() - digits + 1 for r in counted]  # decimal exponents of the unit
        gain = sum(times * (e + decimals) for times, e in zip(counted.values(), by_digits, strict=True))
        exponents = by_digits if gain >= 0 else [-decimals] * len(counted)
        return cls(
            value=np.array([float(r) for r in counted]),
            unit=np.array([10.0**e for e in exponents]),
            times=np.array(list(counted.values()), np.float64),
            precision=f"{digits} significant digits" if gain >= 0 else f"{decimals} decimals",
            # Formats round to nearest. Only code written for it rounds down, and such code counts decimals.
            roundings=("nearest",) if gain > 0 else ("nearest", "down"),
        )


@dataclass(frozen=True, slots=True)
class Fit:
    """How well one candidate explains the printed radii.

    Attributes:
        n: Votes that bound the class probability.
        alpha: Failure probability per example.
        rounding: "nearest", "down", or "unclear" which.
        matched: Radii that some attainable one prints as.
        telling: Radii where attainable ones lie further apart than printed ones: elsewhere every candidate matches.
        matched_telling: Of those, the matched.
        evidence: Decimal logarithm of the likelihood, against radii on no lattice at all.
    """

    n: int
    alpha: float
    rounding: str
    matched: int
    telling: int
    matched_telling: int
    evidence: float


def candidates(n: Sequence[int] = (), alpha: Sequence[float] = ()) -> list[tuple[int, float]]:
    """Pairs of n and alpha to try: the usual ones and those given, where n votes can certify at all.

    Raises:
        InputError: a given value is out of range.
    """
    for a in alpha:
        check_alpha(a)
    alphas = sorted({*ALPHAS, *alpha})
    least = max(2, fewest_votes(alphas[-1]))
    for k in n:
        if k < least:
            raise InputError(f"need n >= {least}; got {k}")
    return [(k, a) for k in sorted({*VOTES, *n}) for a in alphas if k >= max(2, fewest_votes(a))]


def ceiling(sigma: float, n: int, alpha: float) -> float:
    """The largest attainable radius: all n votes agree."""
    return sigma * float(ndtri(alpha ** (1 / n)))


def fit(printed: Printed, sigma: float, pairs: Sequence[tuple[int, float]]) -> tuple[Fit, ...]:
    """Every candidate's fit, the likeliest first."""
    return tuple(sorted(_fits(printed, sigma, pairs), key=lambda f: -f.evidence))


def _fits(printed: Printed, sigma: float, pairs: Sequence[tuple[int, float]]) -> Iterator[Fit]:
    slack = _SLACK * sigma
    unit, times = np.maximum(printed.unit, slack), printed.times
    for n, alpha in pairs:
        below, above, spacing = _neighbours(printed.value, sigma, n, alpha)
        up, down = printed.value - below, above - printed.value
        telling = spacing > unit
        for rounding in printed.roundings:
            match = down < unit if rounding == "down" else np.minimum(up, down) <= unit / 2 + slack
            # Radii spread smoothly print as the numerals that the lattice meets: each spacing / unit times as often.
            likelihood = match * (1 - _DAMAGED) * np.maximum(1.0, spacing / unit) + _DAMAGED
            yield Fit(
                n=n,
                alpha=alpha,
                rounding=rounding,
                matched=int(times @ match),
                telling=int(times @ telling),
                matched_telling=int(times @ (match & telling)),
                evidence=float(times @ np.log10(likelihood)),
            )


def _neighbours(radius: FloatArray, sigma: float, n: int, alpha: float) -> tuple[FloatArray, FloatArray, FloatArray]:
    """For each radius: the largest attainable one <= it, the smallest one >= it, and how far apart they lie there.

    Where there is none, -inf and inf.
    """
    slack = _SLACK * sigma
    with np.errstate(over="ignore"):
        p = np.minimum(ndtr(radius / sigma), 1 - 2.0**-53)
    # The smallest count whose bound reaches p is the smallest k with P(Bin(n, p) >= k) <= alpha.
    k = np.clip(binom.isf(alpha, n, p) + 1, 1, n)
    counts = np.clip(k + np.arange(-2, 2)[:, None], 1, n)  # one more each way than k - 1 and k, for rounding in k
    attainable = sigma * ndtri(betaincinv(counts, n - counts + 1, alpha))
    spacing = (attainable[3] - attainable[1]) / (counts[3] - counts[1])
    below = np.where((attainable <= radius + slack) & (attainable > 0), attainable, -np.inf).max(0)
    above = np.where((attainable >= radius - slack) & (attainable > 0), attainable, np.inf).min(0)
    return below, above, spacing


def recover(fits: Sequence[Fit], radii: int) -> Fit | None:
    """The candidate that stands out from all others and from no lattice at all, or None."""
    best = fits[0]
    rivals = [f.evidence for f in fits if (f.n, f.alpha) != (best.n, best.alpha)]
    if best.evidence - max(0.0, *rivals) < _DECADES or best.matched < _SHARE * radii:
        return None
    same = [f for f in fits if (f.n, f.alpha) == (best.n, best.alpha) and best.evidence - f.evidence < _DECADES]
    return best if len(same) == 1 else replace(best, rounding="unclear")


def raised(printed: Printed, sigma: float, found: Fit) -> tuple[int, int, float]:
    """Radii printed above every attainable one that prints so, radii that may be, and the largest sure excess."""
    if found.rounding != "nearest":
        return 0, 0, 0.0
    slack, half = _SLACK * sigma, printed.unit / 2
    below, above, _ = _neighbours(printed.value, sigma, found.n, found.alpha)
    excess = printed.value - below
    from_below = (excess > slack) & (excess <= half + slack)
    from_above = above - printed.value <= half + slack
    surely = from_below & ~from_above
    largest = float(np.max(excess[surely], initial=0.0))
    return int(printed.times @ surely), int(printed.times @ (from_below & from_above)), largest
