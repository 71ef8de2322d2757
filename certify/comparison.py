"""Whether one certifier is better than another, example by example on the same examples."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from certify.accuracy import FloatArray, check_radii, mean_estimate, reported_radius, scores
from certify.binomial import binomial_test, check_alpha, lower_confidence_bound, upper_confidence_bound
from certify.certificate import Certificate
from certify.errors import InputError

IntArray = np.ndarray[tuple[int, ...], np.dtype[np.int64]]


@dataclass(frozen=True, slots=True, eq=False)
class PairedComparison:
    """First minus second, on the same m examples.

    What is compared is what each certifier *reports*, so both are taken at their own alpha, n and rounding.

    Attributes:
        average: Mean over examples of the difference in certified radius (0 where wrong): the difference in ACR.
        se: Standard error of `average` over examples, from the paired differences; inf for a single example.
        estimate: Normal interval for the population's difference in ACR, about 1 - rho. Not proved.
        radii: (k,) the radii asked for.
        difference: (k,) difference in the share certified correct; a statistic.
        lower: (k,) lower end of the exact interval for the population's difference.
        upper: (k,) its upper end.
        only_first: (k,) examples that only the first certifies correct.
        only_second: (k,) examples that only the second does.
        p_value: (k,) two-sided exact McNemar test of equal shares, each radius by itself.
        m: Number of examples.
        rho: Failure probability of each interval.
    """

    average: float
    se: float
    estimate: tuple[float, float]
    radii: FloatArray
    difference: FloatArray
    lower: FloatArray
    upper: FloatArray
    only_first: IntArray
    only_second: IntArray
    p_value: FloatArray
    m: int
    rho: float


def compare_paired(
    first: Certificate, second: Certificate, y: Tensor, radii: Sequence[float], *, rho: float = 0.05
) -> PairedComparison:
    """Compare two certifiers on the same examples, in the same order.

    An example both find easy, or both find hard, tells nothing about their difference; so the paired error is several
    times smaller than that of two separate averages.

    Proves: At each radius by itself, with probability at least 1 - rho over the examples and the certifiers' draws, the
    difference of the probabilities that an example is reported certified correct lies in [`lower`, `upper`]; and if
    the two probabilities are equal, `p_value` is at most u with probability at most u, for every u. Provided that
    the examples are independent draws from the population. Nothing here is proved about certificates.

    Args:
        first: For m examples.
        second: For the same m examples.
        y: (m,) their labels.
        radii: Radii >= 0 in the certificates' norm and units.
        rho: Failure probability of each interval; 0 < rho < 1.

    Raises:
        InputError: the norms or lengths differ, a radius or `rho` is out of range, or a certified radius is infinite.

    Source: McNemar (1947), with the binomial distribution instead of chi-squared. The interval is the union bound over
        two Clopper-Pearson intervals, one for each kind of discordant example.
    """
    if first.norm != second.norm:
        raise InputError(f"need certificates in one norm; got {first.norm} and {second.norm}")
    if len(first) != len(second):
        raise InputError(f"need certificates for the same examples; got {len(first)} and {len(second)}")
    ids = np.arange(len(first))
    return compare_scores(scores(first, y), scores(second, y), ids, ids, radii, rho=rho)


def compare_scores(
    first: FloatArray,
    second: FloatArray,
    examples_first: IntArray,
    examples_second: IntArray,
    radii: Sequence[float],
    *,
    rho: float = 0.05,
) -> PairedComparison:
    """`compare_paired` from the scores of any rows, such as published logs, matched by the examples' ids.

    Args:
        first: (m,) radius where correct, -inf elsewhere.
        second: (m,) likewise.
        examples_first: (m,) ids, in any order, each once.
        examples_second: (m,) ids, the same set.
        radii: Radii >= 0.
        rho: Failure probability of each interval; 0 < rho < 1.

    Raises:
        InputError: the examples differ, an id occurs twice, or as in `compare_paired`.
    """
    check_alpha(rho, "rho")
    grid = check_radii(radii)
    order_first, order_second = _order(first, examples_first), _order(second, examples_second)
    ids_first, ids_second = examples_first[order_first], examples_second[order_second]
    if not np.array_equal(ids_first, ids_second):
        alone = len(np.setdiff1d(ids_first, ids_second)), len(np.setdiff1d(ids_second, ids_first))
        raise InputError(
            f"need the same examples on both sides; {alone[0]} of {len(ids_first)} are only in the first, "
            f"{alone[1]} of {len(ids_second)} only in the second"
        )
    a, b = first[order_first], second[order_second]
    average, se, estimate = mean_estimate(reported_radius(a) - reported_radius(b), rho)
    in_first, in_second = a[None, :] >= grid[:, None], b[None, :] >= grid[:, None]
    only_first, only_second = (in_first & ~in_second).sum(1), (in_second & ~in_first).sum(1)
    m = len(a)
    ends = np.array([_difference(int(k), int(j), m, rho) for k, j in zip(only_first, only_second, strict=True)])
    return PairedComparison(
        average=average,
        se=se,
        estimate=estimate,
        radii=grid,
        difference=(only_first - only_second) / m,
        lower=ends.reshape(-1, 2)[:, 0],
        upper=ends.reshape(-1, 2)[:, 1],
        only_first=only_first,
        only_second=only_second,
        p_value=np.array([_mcnemar(int(k), int(j)) for k, j in zip(only_first, only_second, strict=True)]),
        m=m,
        rho=rho,
    )


def _order(score: FloatArray, examples: IntArray) -> IntArray:
    """The order by id."""
    if score.shape != examples.shape or score.ndim != 1:
        raise InputError(f"need one id per score; got shapes {score.shape} and {examples.shape}")
    if len(score) == 0:
        raise InputError("need at least one example; got 0")
    ids, times = np.unique(examples, return_counts=True)
    if times.max() > 1:
        raise InputError(f"need each example once; {ids[times.argmax()]} occurs {times.max()} times")
    return np.argsort(examples)


def _difference(only_first: int, only_second: int, m: int, rho: float) -> tuple[float, float]:
    """An interval for the difference of two cell probabilities of one multinomial; four bounds share rho."""
    part = rho / 4
    return (
        lower_confidence_bound(only_first, m, part) - upper_confidence_bound(only_second, m, part),
        upper_confidence_bound(only_first, m, part) - lower_confidence_bound(only_second, m, part),
    )


def _mcnemar(only_first: int, only_second: int) -> float:
    """Two-sided p-value: of the discordant examples, each kind is as likely as the other."""
    discordant = only_first + only_second
    if discordant == 0:
        return 1.0
    return min(1.0, 2 * binomial_test(max(only_first, only_second), discordant, 0.5, tail="upper"))
