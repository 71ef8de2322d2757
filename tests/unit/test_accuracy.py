"""What a sample of certificates proves: exact values, slow twins, scipy and statsmodels."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar
from typer.testing import CliRunner

from certify import ABSTAIN, Certificate, Deterministic, Gaussian, InputError, PerExample, Smoothing, Stream
from certify.__main__ import app
from certify.accuracy import (
    accuracy_of_scores,
    average_certified_radius,
    average_of_scores,
    certified_accuracy,
    joint_lower_bound,
)
from certify.campaign import Store
from certify.campaign.tables import compare_sources, note_on_examples, render_comparison, rows_of
from certify.comparison import compare_paired, compare_scores

RNG = np.random.default_rng(0)


def certificate(
    radius: Sequence[float], prediction: int = 0, *, norm: str = "L2", alpha: float | None = 0.01
) -> Certificate:
    r = torch.tensor(radius, dtype=torch.float64)
    return Certificate(
        prediction=torch.where(r > 0, prediction, ABSTAIN),
        radius=r,
        norm=norm,  # pyright: ignore[reportArgumentType]
        subject="g",
        guarantee=Deterministic() if alpha is None else PerExample(alpha),
        method=Smoothing(Gaussian(0.5)),
        samples=torch.full((len(r),), 1000),
    )


def zeros(n: int) -> torch.Tensor:
    return torch.zeros(n, dtype=torch.int64)


def random_scores(m: int, seed: int, *, wrong: float = 0.3) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Skewed radii, some of them equal, with errors among them."""
    rng = np.random.default_rng(seed)
    radius = np.round(rng.gamma(2.0, 0.3, m), 2)
    return np.where(rng.random(m) < wrong, -np.inf, radius)


# --- joint bound --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("certified", "m", "alpha", "bound"),
    [(300, 500, 0.001, ".5940"), (6116, 10_000, 0.001, ".6105"), (300, 500, 0.01, ".5840")],
)
def test_golden_joint_bounds(certified: int, m: int, alpha: float, bound: str) -> None:
    value = joint_lower_bound(certified, m, alpha, 0.001)
    assert f"{value:.4f}".lstrip("0") == bound
    # Theorem 6 of Cohen et al., as printed: valid too, and never better.
    log = math.log(1 / 0.001)
    printed = certified / m - alpha - math.sqrt(2 * alpha * (1 - alpha) * log / m) - log / (3 * m)
    assert printed / (1 - alpha) < value < certified / m


@pytest.mark.parametrize("alpha", [0.001, 0.05, 0.4])
@pytest.mark.parametrize("rho", [0.0013, 0.06, 0.7])
@pytest.mark.parametrize("m", [1, 2, 17, 60])
def test_the_joint_bound_is_the_smallest_count_that_is_not_refuted(m: int, alpha: float, rho: float) -> None:
    """The slow twin: every g from 0, with scipy's binomial; no tail equals rho here."""
    for certified in range(m + 1):
        g = next(g for g in range(certified + 1) if stats.binom.sf(certified - g - 1, m - g, alpha) > rho)
        assert joint_lower_bound(certified, m, alpha, rho) == g / m


def test_the_joint_bound_where_certificates_cannot_fail() -> None:
    assert [joint_lower_bound(k, 9, 0.0, 0.05) for k in range(10)] == [k / 9 for k in range(10)]
    score = random_scores(50, 1)
    bounds = accuracy_of_scores(score, [0.0, 0.2, 0.7, 9.0], alpha=0.0)
    assert bounds.joint.tolist() == bounds.observed.tolist()


def test_a_tail_equal_to_rho_counts_as_above() -> None:
    """One example that fails half the time: P(Bin(1, 1/2) >= 1) is 1/2, and not above 1/2 but for rounding."""
    assert joint_lower_bound(1, 1, 0.5, 0.5) == 0.0
    assert joint_lower_bound(1, 1, 0.5, 0.5001) == 1.0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((0, 0, 0.1, 0.1), r"^need an integer number of examples >= 1; got 0$"),
        ((1, 2.5, 0.1, 0.1), r"^need an integer number of examples >= 1; got 2\.5$"),
        ((6, 5, 0.1, 0.1), r"^need an integer certified with 0 <= certified <= examples = 5; got 6$"),
        ((-1, 5, 0.1, 0.1), r"certified <= examples = 5; got -1$"),
        ((1.5, 5, 0.1, 0.1), r"certified <= examples = 5; got 1\.5$"),
        ((1, 5, 1.0, 0.1), r"^need 0 <= alpha < 1; got 1\.0$"),
        ((1, 5, -0.1, 0.1), r"^need 0 <= alpha < 1; got -0\.1$"),
        ((1, 5, math.nan, 0.1), r"^need 0 <= alpha < 1; got nan$"),
        ((1, 5, 0.1, 0.0), r"^need 0 < rho < 1; got 0\.0$"),
        ((1, 5, 0.1, 1.0), r"^need 0 < rho < 1; got 1\.0$"),
    ],
)
def test_joint_bounds_out_of_range(values: tuple[Any, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        joint_lower_bound(*values)


def test_every_bound_lies_below_what_was_observed_and_the_joint_one_highest() -> None:
    """A test set says more about itself than about its population."""
    bounds = accuracy_of_scores(random_scores(400, 2), np.linspace(0, 2, 30).tolist(), alpha=0.01, rho=0.05)
    assert (bounds.joint <= bounds.observed).all()
    assert (bounds.lower <= bounds.joint).all()
    assert (bounds.band <= bounds.lower).all()
    assert (np.diff(bounds.joint) <= 0).all()


def test_a_certificate_and_its_scores_say_the_same() -> None:
    c = certificate([0.5, 0.25, 0.0, 1.0])
    y = torch.tensor([0, 1, 0, 0])
    bounds = certified_accuracy(c, y, [0.0, 0.5, 0.75])
    again = accuracy_of_scores(np.array([0.5, -np.inf, -np.inf, 1.0]), [0.0, 0.5, 0.75], alpha=0.01)
    assert bounds.observed.tolist() == [0.5, 0.5, 0.25]
    for name in ("radii", "observed", "lower", "band", "joint"):
        assert getattr(bounds, name).tolist() == getattr(again, name).tolist()
    assert (bounds.m, bounds.alpha, bounds.rho) == (4, 0.01, 0.05)
    assert certified_accuracy(certificate([0.5], alpha=None), zeros(1), [0.5]).alpha == 0.0
    with pytest.raises(InputError, match=r"^need one label per example, \(4,\); got \(3,\)$"):
        certified_accuracy(c, zeros(3), [0.5])


def test_accuracy_of_nothing() -> None:
    with pytest.raises(InputError, match=r"^need at least one example; got 0$"):
        accuracy_of_scores(np.zeros(0), [0.5], alpha=0.01)
    with pytest.raises(InputError, match=r"^need finite radii >= 0; got \[\[0\.5\]\]$"):
        accuracy_of_scores(np.zeros(1), [[0.5]], alpha=0.01)  # pyright: ignore[reportArgumentType]


# --- average radius -----------------------------------------------------------------------------------------------


def test_the_average_radius_by_hand() -> None:
    """Radii 1, 2, 0, 0 (one wrong, one abstention): mean 3/4, and deviations of 1/4, 5/4, -3/4, -3/4 about it."""
    average = average_certified_radius(certificate([1.0, 2.0, 0.0, 3.0]), torch.tensor([0, 0, 0, 1]), rho=0.05)
    assert average.value == 0.75
    assert average.se == pytest.approx(math.sqrt((1 + 25 + 9 + 9) / 16 / 3 / 4), rel=1e-12)
    low, high = stats.norm.interval(0.95, 0.75, average.se)
    assert low < 0
    assert average.estimate == (0.0, pytest.approx(high, rel=1e-12))
    assert average.lower == 0.0, "four examples prove nothing"
    assert (average.m, average.alpha, average.rho) == (4, 0.01, 0.05)
    assert average_certified_radius(certificate([1.0], alpha=None), zeros(1)).alpha == 0.0


@pytest.mark.parametrize("alpha", [0.0, 0.01, 0.2])
def test_the_proved_mean_is_the_area_under_the_band(alpha: float) -> None:
    score = random_scores(300, 3)
    average = average_of_scores(score, alpha=alpha, rho=0.05)
    # Radii are hundredths, so the band is constant between them; its value at r holds on (r - 0.01, r].
    grid = np.arange(1, 500) / 100
    band = accuracy_of_scores(np.round(score * 100) / 100, grid.tolist(), alpha=alpha, rho=0.05).band
    assert average.lower == pytest.approx(float(band.sum() * 0.01), rel=1e-9)
    assert 0 < average.lower < average.estimate[0] < average.value < average.estimate[1]


def test_the_proved_mean_of_equal_radii() -> None:
    """Every example at radius 2: the band is one rectangle."""
    m, rho, alpha = 1000, 0.1, 0.01
    average = average_of_scores(np.full(m, 2.0), alpha=alpha, rho=rho)
    width = math.sqrt(math.log(1 / rho) / 2 / m)
    assert average.lower == pytest.approx(2 * (1 - width - alpha) / (1 - alpha), rel=1e-9)
    assert (average.value, average.se, average.estimate) == (2.0, 0.0, (2.0, 2.0))


def test_a_single_example_has_no_standard_error() -> None:
    average = average_of_scores(np.array([0.5]), alpha=0.01)
    assert (average.value, average.se, average.estimate) == (0.5, math.inf, (0.0, math.inf))
    assert average.lower == 0.0


def test_the_bootstrap_is_scipys_and_repeats() -> None:
    score = random_scores(200, 4)
    average = average_of_scores(score, alpha=0.0, rho=0.1, rng=Stream(0))
    radius = np.maximum(score, 0)
    twin = stats.bootstrap(
        (radius,), np.mean, confidence_level=0.9, method="percentile", n_resamples=20_000, rng=np.random.default_rng(0)
    ).confidence_interval
    # 5,000 resamples leave an end of the interval uncertain by some 3 % of its half width; four times that is allowed.
    tolerance = 0.12 * (twin.high - twin.low) / 2
    assert average.estimate == (pytest.approx(twin.low, abs=tolerance), pytest.approx(twin.high, abs=tolerance))
    assert average == average_of_scores(score, alpha=0.0, rho=0.1, rng=Stream(0))
    normal = average_of_scores(score, alpha=0.0, rho=0.1)
    assert average.estimate != normal.estimate
    assert average.estimate != average_of_scores(score, alpha=0.0, rho=0.1, rng=Stream(1)).estimate
    assert (average.value, average.se, average.lower) == (normal.value, normal.se, normal.lower)


def test_the_bootstrap_of_more_examples_than_fit_at_once() -> None:
    """Chunks of one resample at least; 5,000 in all, so the ends are quantiles of as many means."""
    score = random_scores(3000, 5)
    average = average_of_scores(score, alpha=0.0, rng=Stream(0))
    normal = average_of_scores(score, alpha=0.0)
    assert average.estimate == pytest.approx(normal.estimate, abs=0.12 * 2 * normal.se)


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_an_infinite_radius_has_no_average(bad: float) -> None:
    with pytest.raises(InputError, match=r"^need finite radii for an average; got an infinite one, or nan$"):
        average_of_scores(np.array([0.5, bad]), alpha=0.01)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rho": 0.0}, r"^need 0 < rho < 1; got 0\.0$"),
        ({"rho": 1.0}, r"^need 0 < rho < 1; got 1\.0$"),
        ({"alpha": 1.0}, r"^need 0 <= alpha < 1; got 1\.0$"),
        ({"score": np.zeros(0)}, r"^need at least one example; got 0$"),
    ],
)
def test_averages_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        average_of_scores(**{"score": np.array([0.5]), "alpha": 0.01, **options})


# --- paired comparison --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("m", [1, 2, 30, 400])
def test_the_test_is_mcnemars_with_the_binomial_distribution(m: int) -> None:
    first, second = random_scores(m, 6), random_scores(m, 7, wrong=0.5)
    grid = [0.0, 0.1, 0.5, 1.0, 1.5, 9.0]
    compared = compare_scores(first, second, np.arange(m), np.arange(m), grid, rho=0.05)
    for i, r in enumerate(grid):
        a, b = first >= r, second >= r
        table = [[int((a & b).sum()), int((a & ~b).sum())], [int((~a & b).sum()), int((~a & ~b).sum())]]
        k, j = table[0][1], table[1][0]
        assert (compared.only_first[i], compared.only_second[i]) == (k, j)
        assert compared.difference[i] == pytest.approx(a.mean() - b.mean(), abs=1e-15)
        if k + j == 0:
            assert compared.p_value[i] == 1.0
        else:
            assert compared.p_value[i] == pytest.approx(stats.binomtest(k, k + j, 0.5).pvalue, rel=1e-12)
            assert compared.p_value[i] == pytest.approx(mcnemar(table, exact=True).pvalue, rel=1e-12)
        part = 0.05 / 4

        def lower(x: int, part: float = part) -> float:
            return float(stats.beta.ppf(part, x, m - x + 1)) if x else 0.0

        def upper(x: int, part: float = part) -> float:
            return float(stats.beta.isf(part, x + 1, m - x)) if x < m else 1.0

        assert compared.lower[i] == pytest.approx(lower(k) - upper(j), abs=1e-9)
        assert compared.upper[i] == pytest.approx(upper(k) - lower(j), abs=1e-9)
        assert compared.lower[i] <= compared.difference[i] <= compared.upper[i]


def test_the_average_difference_is_scipys_paired_one() -> None:
    first, second = random_scores(500, 8), random_scores(500, 9)
    compared = compare_scores(first, second, np.arange(500), np.arange(500), [0.5], rho=0.1)
    difference = np.maximum(first, 0) - np.maximum(second, 0)
    assert compared.average == pytest.approx(difference.mean(), rel=1e-12)
    assert compared.se == pytest.approx(stats.sem(difference), rel=1e-12)
    assert compared.estimate == pytest.approx(stats.norm.interval(0.9, compared.average, compared.se), rel=1e-9)
    assert (compared.m, compared.rho, compared.radii.tolist()) == (500, 0.1, [0.5])


def test_rows_are_matched_by_id_and_not_by_position() -> None:
    first, second = random_scores(60, 10), random_scores(60, 11)
    ids = 20 * np.arange(60)
    shuffle = RNG.permutation(60)
    straight = compare_scores(first, second, ids, ids, [0.0, 0.5])
    shuffled = compare_scores(first, second[shuffle], ids, ids[shuffle], [0.0, 0.5])
    careless = compare_scores(first, second[shuffle], ids, ids, [0.0, 0.5])
    assert shuffled.average == pytest.approx(straight.average, abs=1e-15)
    assert shuffled.se == straight.se
    assert shuffled.only_first.tolist() == straight.only_first.tolist()
    assert shuffled.p_value.tolist() == straight.p_value.tolist()
    assert careless.se != straight.se


def test_certificates_are_compared_as_their_scores() -> None:
    y = torch.tensor([0, 0, 1, 0])
    first, second = certificate([0.5, 1.0, 2.0, 0.0]), certificate([0.75, 0.0, 3.0, 0.25], alpha=None)
    compared = compare_paired(first, second, y, [0.0, 0.5, 1.0])
    assert compared.average == pytest.approx((0.5 - 0.75 + 1.0 - 0.25) / 4)
    assert compared.only_first.tolist() == [1, 1, 1]
    assert compared.only_second.tolist() == [1, 0, 0]
    assert compared.difference.tolist() == [0.0, 0.25, 0.25]
    swapped = compare_paired(second, first, y, [0.0, 0.5, 1.0])
    assert swapped.average == -compared.average
    assert swapped.lower.tolist() == (-compared.upper).tolist()
    assert swapped.p_value.tolist() == compared.p_value.tolist()


def test_what_is_not_comparable_is_refused() -> None:
    c = certificate([0.5, 0.25])
    with pytest.raises(InputError, match=r"^need certificates in one norm; got L2 and L1$"):
        compare_paired(c, certificate([0.5, 0.25], norm="L1"), zeros(2), [0.5])
    with pytest.raises(InputError, match=r"^need certificates for the same examples; got 2 and 1$"):
        compare_paired(c, certificate([0.5]), zeros(2), [0.5])
    with pytest.raises(InputError, match=r"^need one label per example, \(2,\); got \(3,\)$"):
        compare_paired(c, c, zeros(3), [0.5])


@pytest.mark.parametrize(
    ("first", "second", "options", "message"),
    [
        (
            [0, 1, 2],
            [1, 2, 3],
            {},
            r"same examples on both sides; 1 of 3 are only in the first, 1 of 3 only in the second$",
        ),
        ([0, 1, 2], [0, 1], {}, r"1 of 3 are only in the first, 0 of 2 only in the second$"),
        ([0, 1, 1], [0, 1, 2], {}, r"^need each example once; 1 occurs 2 times$"),
        ([0, 1], [5, 5], {}, r"^need each example once; 5 occurs 2 times$"),
        ([], [], {}, r"^need at least one example; got 0$"),
        ([0], [0], {"rho": 0.0}, r"^need 0 < rho < 1; got 0\.0$"),
        ([0], [0], {"radii": [-1.0]}, r"^need finite radii >= 0; got \[-1\.0\]$"),
    ],
)
def test_examples_that_differ_are_refused(
    first: list[int], second: list[int], options: dict[str, Any], message: str
) -> None:
    ids = [np.array(i, np.int64) for i in (first, second)]
    settings: dict[str, Any] = {"radii": [0.5], **options}
    with pytest.raises(InputError, match=message):
        compare_scores(np.full(len(first), 0.5), np.full(len(second), 0.5), *ids, **settings)


def test_ids_and_scores_come_in_pairs() -> None:
    with pytest.raises(InputError, match=r"^need one id per score; got shapes \(2,\) and \(3,\)$"):
        compare_scores(np.zeros(2), np.zeros(2), np.arange(3), np.arange(2), [0.5])
    with pytest.raises(InputError, match=r"^need finite radii for an average"):
        compare_scores(np.array([np.inf]), np.array([1.0]), np.arange(1), np.arange(1), [0.5])


def test_no_radii_compare_averages_alone() -> None:
    compared = compare_scores(np.array([1.0, 2.0]), np.array([0.5, 0.5]), np.arange(2), np.arange(2), [])
    assert compared.average == 1.0
    assert compared.lower.shape == compared.p_value.shape == (0,)


# --- stores and logs ----------------------------------------------------------------------------------------------

HEADER = "idx\tlabel\tpredict\tradius\tcorrect\ttime"


def make_log(path: Path, radii: Sequence[float], *, step: int = 1, label: int = 0) -> Path:
    rows = [f"{step * i}\t{label}\t{label if r else -1}\t{r}\t{int(r > 0)}\t1.0" for i, r in enumerate(radii)]
    path.write_text("\n".join([HEADER, *rows]) + "\n", encoding="utf-8")
    return path


def make_store(path: Path, *runs: Certificate) -> Path:
    with Store(path, create=True) as store:
        for seed, c in enumerate(runs):
            run = store.open_run({"model": "a:net", "seed": seed}, {}, add=True)
            run.append(c, range(len(c)), [0] * len(c), seconds=1.0)
    return path


RADII_A, RADII_B = [0.5, 1.0, 1.5, 0.0, 0.75], [0.25, 1.0, 0.0, 0.0, 1.0]


def test_a_store_and_a_log_are_compared_by_command(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s.sqlite", certificate(RADII_A))
    log = make_log(tmp_path / "paper.tsv", RADII_B)
    command = ["compare", str(store), str(log), "--radii", "0,0.5,2", "--rho", "0.1"]
    result = CliRunner().invoke(app, command, catch_exceptions=False)
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0] == "* first: net g (L2, 1000 votes, alpha 0.01)"
    assert lines[1] == "* second: paper (as published: norm, votes and alpha are not in a log)"
    cells = [[c.strip() for c in line.strip("|").split("|")] for line in lines[3:4] + lines[5:9]]
    head = ["quantity", "first", "second", "difference", "se", "90 % interval", "discordant", "only 1st : 2nd", "p"]
    assert cells[0] == head
    # Differences .25, 0, 1.5, 0, -.25: mean .3, deviations -.05, -.3, 1.2, -.3, -.55.
    se = math.sqrt((0.0025 + 0.09 + 1.44 + 0.09 + 0.3025) / 4 / 5)
    assert cells[1][:5] == ["ACR", "0.7500", "0.4500", "+0.3000", f"{se:.4f}"]
    assert cells[1][5].startswith("~[")
    assert cells[1][6:] == ["", "", ""]
    # At 0, the third example; its se is that of 1, 0, 0, 0, 0. At 0.5 the first as well. At 2 none.
    assert cells[2][:5] == ["r=0", "0.8000", "0.6000", "+0.2000", f"{math.sqrt(0.8 / 4 / 5):.4f}"]
    assert cells[2][6:] == ["1", "1 : 0", "1"]
    assert cells[3][:5] == ["r=0.5", "0.8000", "0.4000", "+0.4000", f"{math.sqrt(1.2 / 4 / 5):.4f}"]
    assert cells[3][6:] == ["2", "2 : 0", "0.5"]
    assert cells[4][:5] == ["r=2", "0.0000", "0.0000", "+0.0000", "0.0000"]
    assert cells[4][6:] == ["0", "0 : 0", "1"]
    assert "5 examples, paired" in lines[-1]


def test_printed_intervals_are_rounded_outward(tmp_path: Path) -> None:
    compared = compare_sources([make_log(tmp_path / "a", RADII_A), make_log(tmp_path / "b", RADII_B)], [0.5])
    line = next(line for line in render_comparison(compared).splitlines() if line.startswith("| r=0.5"))
    low, high = (float(v) for v in line.split("[")[1].split("]")[0].split(","))
    lower, upper = float(compared.paired.lower[0]), float(compared.paired.upper[0])
    assert lower - 1e-4 < low <= lower < upper <= high < upper + 1e-4


def test_one_example_has_no_error_to_show(tmp_path: Path) -> None:
    text = render_comparison(compare_sources([make_log(tmp_path / "a", [1]), make_log(tmp_path / "b", [0.5])], [0.5]))
    assert "| +0.5000      | inf  | ~[-inf, inf]" in text
    assert "| +0.0000      | inf  | [-" in text


def test_two_are_picked_where_there_are_more(tmp_path: Path) -> None:
    c, d, e = certificate(RADII_A), certificate(RADII_B), certificate([0.1] * 5)
    store = make_store(tmp_path / "s", c, d, e)
    assert compare_sources([store], [0.5], pick=[1, 2]).paired.average == pytest.approx(0.3)
    assert compare_sources([store], [0.5], pick=[2, 1]).paired.average == pytest.approx(-0.3)
    assert compare_sources([store], [0.5], pick=[3, 3]).paired.average == 0.0
    names = r"\(1 net g, 2 net g, 3 net g\)"
    with pytest.raises(InputError, match=rf"^need two runs or logs to compare; got 3 {names}: pick two of them$"):
        compare_sources([store], [0.5])
    for pick in ([1], [1, 2, 3], [0, 1], [1, 4]):
        with pytest.raises(InputError, match=r"^need two numbers between 1 and 3 to pick; got \["):
            compare_sources([store], [0.5], pick=pick)
    command = ["compare", str(store), "--pick"]
    result = CliRunner().invoke(app, [*command, "1,3"], catch_exceptions=False)
    assert "| ACR        | 0.7500  | 0.1000   | +0.6500" in result.stdout
    wrong = CliRunner().invoke(app, [*command, "one"])
    assert isinstance(wrong.exception, InputError)
    assert str(wrong.exception) == "need two numbers to pick, such as 1,3; got 'one'"


def test_sources_that_are_not_about_the_same_are_refused(tmp_path: Path) -> None:
    log = make_log(tmp_path / "a", RADII_A)
    with pytest.raises(InputError, match=r"^need the same examples on both sides; 4 of 5"):
        compare_sources([log, make_log(tmp_path / "b", RADII_B, step=20)], [0.5])
    with pytest.raises(InputError, match=r"^need the same labels on both sides; 5 examples have another: other data"):
        compare_sources([log, make_log(tmp_path / "c", RADII_B, label=3)], [0.5])
    with pytest.raises(InputError, match=r"^need runs in one norm to compare; got L2 and Linf$"):
        compare_sources([make_store(tmp_path / "s", certificate([0.5]), certificate([0.5], norm="Linf"))], [0.5])
    with pytest.raises(InputError, match=r"got 1 \(1 a\): pick two"):
        compare_sources([log], [0.5])


def test_a_table_of_different_examples_says_so(tmp_path: Path) -> None:
    a, b = make_log(tmp_path / "a", RADII_A), make_log(tmp_path / "b", RADII_B)
    c = make_log(tmp_path / "c", RADII_B, step=20)
    note = "note: the index sets differ; rows with different examples are not comparable"
    assert note_on_examples(rows_of([a, b], [0.5])) is None
    assert note_on_examples(rows_of([a, c], [0.5])) == note
    for sources, told in (([a, b], ""), ([a, b, c], note + "\n")):
        result = CliRunner().invoke(app, ["table", *map(str, sources)], catch_exceptions=False)
        assert result.stderr == told
        assert "note" not in result.stdout


def test_a_table_shows_the_standard_error_of_the_average(tmp_path: Path) -> None:
    (row,) = rows_of([make_log(tmp_path / "a", RADII_A)], [0.5])
    assert row.acr == pytest.approx(np.mean(RADII_A))
    assert row.acr_se == pytest.approx(stats.sem(RADII_A))
    result = CliRunner().invoke(app, ["table", str(tmp_path / "a"), "--format", "csv"], catch_exceptions=False)
    head, observed, *_ = (line.split(",") for line in result.stdout.splitlines())
    assert head[6:8] == ["ACR", "ACR se"]
    assert observed[6:8] == [f"{row.acr:.4f}", f"{row.acr_se:.4f}"]
