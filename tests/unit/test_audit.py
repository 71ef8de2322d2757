"""Audits: settings recovered from logs that were made with known ones, and every defect found that was put in."""

import math
from collections.abc import Callable, Sequence
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from certify import ABSTAIN, Certificate, Gaussian, InputError, PerExample, Smoothing, lower_confidence_bound
from certify.__main__ import app
from certify.campaign import Results, export_log, read_log
from certify.campaign.attainable import Printed, _neighbours, candidates, ceiling
from certify.campaign.audit import audit_log, describe

HEADER = "idx\tlabel\tpredict\tradius\tcorrect\ttime"
SIGMA = 0.25


def write(path: Path, rows: Sequence[str]) -> Path:
    path.write_text("\n".join([HEADER, *rows]) + "\n", encoding="utf-8")
    return path


def certified(n: int, alpha: float, m: int = 400, *, sigma: float = SIGMA, seed: int = 0) -> list[float]:
    """Radii > 0 as the certifier gives them, of examples that are mostly easy."""
    rng = np.random.default_rng(seed)
    votes = rng.binomial(n, 1 - rng.beta(0.5, 20.0, m))
    radii = [Gaussian(sigma).radius(lower_confidence_bound(int(k), n, alpha)) for k in votes]
    return [r for r in radii if r > 0]


def three_significant(radius: float) -> str:
    return f"{radius:.3}"


def three_decimals(radius: float) -> str:
    return f"{radius:.3f}"


def three_decimals_down(radius: float) -> str:
    return f"{math.floor(radius * 1000) / 1000:.3f}"


def make_log(path: Path, radii: Sequence[float], show: Callable[[float], str] = three_significant) -> Path:
    return write(path, [f"{i}\t1\t1\t{show(r)}\t1\t1.0" for i, r in enumerate(radii)])


# --- the lattice --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [10, 100, 1000])
@pytest.mark.parametrize("alpha", [0.001, 0.05])
def test_neighbours_are_those_of_the_whole_lattice(n: int, alpha: float) -> None:
    """The slow twin: every count, through the certifier's own bound and radius."""
    every = sorted({Gaussian(SIGMA).radius(lower_confidence_bound(k, n, alpha)) for k in range(n + 1)} - {0.0})
    assert every[-1] == pytest.approx(ceiling(SIGMA, n, alpha), rel=1e-9)
    asked = np.array([*np.random.default_rng(0).uniform(0, 1.1 * every[-1], 200), *every, every[-1] + 1e-3, 1e-9, 50])
    below, above, spacing = _neighbours(asked, SIGMA, n, alpha)
    for radius, low, high, gap in zip(asked, below, above, spacing, strict=True):
        under = [e for e in every if e <= radius + 1e-9 * SIGMA]
        over = [e for e in every if e >= radius - 1e-9 * SIGMA]
        assert low == pytest.approx(under[-1] if under else -np.inf, rel=1e-9)
        assert high == pytest.approx(over[0] if over else np.inf, rel=1e-9)
        if under and over and len(under) > 1 and len(over) > 1:
            assert under[-1] - under[-2] < 1.01 * gap * 2
            assert gap < 1.01 * (over[1] - under[-2])
    if len(every) > 1:
        assert spacing[-1] == pytest.approx(every[-1] - every[-2], rel=1e-6)


@pytest.mark.parametrize(
    ("texts", "precision", "units", "roundings"),
    [
        # Cohen et al.: `{:.3}`, zeros dropped; a small radius shows more decimals, a large one fewer
        (["0.953", "1.09", "0.9", "0.0123", "1.2e-05"], "3 significant digits", [1e-3, 1e-2, 1e-3, 1e-4, 1e-7], 1),
        (["0.953", "1.090", "0.012", "3.811"], "3 decimals", [1e-3] * 4, 2),
        (["0.953", "0.123", "0.9"], "3 significant digits", [1e-3] * 3, 2),  # or 3 decimals: nothing tells
        (["0.953", "0.012", "0.005"], "3 decimals", [1e-3] * 3, 2),
        (["0.5", "0.50"], "2 significant digits", [1e-2], 2),
        (["12", "3"], "0 decimals", [1.0] * 2, 2),
        (["1e3"], "1 significant digits", [1e3], 1),
    ],
)
def test_formats_are_told_apart(texts: list[str], precision: str, units: list[float], roundings: int) -> None:
    printed = Printed.of([Decimal(t) for t in texts])
    assert printed.precision == precision
    assert printed.unit == pytest.approx(units)
    assert len(printed.roundings) == roundings
    assert int(printed.times.sum()) == len(texts)


@pytest.mark.parametrize(("n", "alpha"), [(100, 0.01), (1000, 0.001), (10_000, 0.05), (100_000, 0.0001)])
@pytest.mark.parametrize(
    ("show", "rounding"),
    [(three_significant, "nearest"), (three_decimals, "nearest"), (three_decimals_down, "down")],
)
def test_settings_are_recovered(
    tmp_path: Path, n: int, alpha: float, show: Callable[[float], str], rounding: str
) -> None:
    # With a larger sigma than 1/4 the lattice is coarser than three decimals, for 100,000 votes too.
    radii = certified(n, alpha, sigma=1.0)
    audit = audit_log(make_log(tmp_path / "log.tsv", radii, show), sigma=1.0)
    found = audit.recovered
    assert found is not None
    assert (found.n, found.alpha, found.rounding) == (n, alpha, rounding)
    assert found.matched == audit.radii == len([r for r in radii if float(show(r)) > 0])
    assert found.matched_telling == found.telling > 0
    assert audit.ceiling == pytest.approx(Gaussian(1.0).radius(lower_confidence_bound(n, n, alpha)), rel=1e-9)
    assert audit.findings == ()
    larger = [float(show(r)) - r for r in radii if float(show(r)) > r]
    if rounding == "down":
        assert larger == []
        assert (audit.raised, audit.unclear, audit.excess) == (0, 0, 0.0)
    else:
        assert audit.raised <= len(larger) <= audit.raised + audit.unclear
        assert 0 < audit.excess <= max(larger) + 1e-9
        if n == 100:
            assert (audit.raised, audit.unclear) == (len(larger), 0), "a coarse lattice hides nothing"
            assert audit.excess == pytest.approx(max(larger), rel=1e-6)


def test_settings_that_nobody_uses_are_recovered_where_they_are_given(tmp_path: Path) -> None:
    log = make_log(tmp_path / "sigma_0.25.tsv", certified(777, 0.02))
    assert audit_log(log).recovered is None
    assert audit_log(log, n=[777]).recovered is None
    assert audit_log(log, alpha=[0.02]).recovered is None
    found = audit_log(log, n=[50, 777], alpha=[0.3, 0.02]).recovered
    assert found is not None
    assert (found.n, found.alpha) == (777, 0.02)


def test_one_damaged_row_does_not_hide_the_settings(tmp_path: Path) -> None:
    radii = certified(1000, 0.001)
    radii[5] = 0.4321
    audit = audit_log(make_log(tmp_path / "sigma_0.25", radii))
    assert audit.recovered is not None
    assert (audit.recovered.n, audit.recovered.alpha) == (1000, 0.001)
    assert audit.recovered.matched == len(radii) - 1


def test_an_export_of_ours_is_found_to_be_rounded_down(tmp_path: Path) -> None:
    """From votes to certificates to a file, and back to the settings; none of it through the lattice's own code."""
    method = Smoothing(Gaussian(0.5), n=1000, alpha=0.005)
    votes = np.random.default_rng(0).binomial(1000, 0.97, 300)
    radius = torch.tensor([method.radius([int(k), 1000 - int(k)], 0) for k in votes], dtype=torch.float64)
    certificate = Certificate(
        prediction=torch.where(radius > 0, 0, ABSTAIN),
        radius=radius,
        norm="L2",
        subject="g",
        guarantee=PerExample(0.005),
        method=method,
        samples=torch.full((300,), 1100),
    )
    results = Results({"model": "a:b"}, certificate, np.arange(0, 6000, 20), np.zeros(300, np.int64), np.ones(300))
    export_log(results, tmp_path / "ours_sigma_0.5.tsv")
    audit = audit_log(tmp_path / "ours_sigma_0.5.tsv")
    assert audit.recovered is not None
    assert (audit.recovered.n, audit.recovered.alpha, audit.recovered.rounding) == (1000, 0.005, "down")
    assert audit.findings == ()
    assert "n = 1000, alpha = 0.005" in describe(audit)
    assert "rounded down" in describe(audit)


def test_a_rounding_that_makes_no_difference_is_unclear(tmp_path: Path) -> None:
    audit = audit_log(make_log(tmp_path / "sigma_0.25", certified(1000, 0.001), repr))
    assert audit.recovered is not None
    assert (audit.recovered.n, audit.recovered.alpha, audit.recovered.rounding) == (1000, 0.001, "unclear")
    assert (audit.raised, audit.unclear, audit.excess) == (0, 0, 0.0)
    assert "either way of rounding explains the digits" in describe(audit)


@pytest.mark.parametrize(
    "radii",
    [
        [r / 1.1 for r in certified(1000, 0.001)],  # another sigma than was said
        np.random.default_rng(0).uniform(0.01, 0.6, 300).tolist(),  # no lattice
        [0.1] * 2,  # too few
        [],
    ],
    ids=["sigma", "smooth", "few", "none"],
)
def test_nothing_is_recovered_where_nothing_stands_out(tmp_path: Path, radii: list[float]) -> None:
    path = (
        make_log(tmp_path / "sigma_0.25", radii) if radii else write(tmp_path / "sigma_0.25", ["0\t1\t-1\t0.0\t0\t1"])
    )
    audit = audit_log(path)
    assert audit.recovered is None
    assert (audit.raised, audit.unclear, audit.excess) == (0, 0, 0.0)
    assert audit.radii == len(radii)
    assert "verdict: n and alpha are not recovered, for no candidate stands out" in describe(audit)


def test_evidence_grows_with_the_radii_that_tell(tmp_path: Path) -> None:
    radii = certified(1000, 0.001)
    once = audit_log(make_log(tmp_path / "sigma_0.25", radii)).fits[0]
    twice = audit_log(make_log(tmp_path / "sigma_0.25", radii * 2)).fits[0]
    assert (once.n, once.alpha) == (twice.n, twice.alpha) == (1000, 0.001)
    assert twice.evidence == pytest.approx(2 * once.evidence)
    assert twice.matched == 2 * once.matched
    evidence = [f.evidence for f in audit_log(tmp_path / "sigma_0.25").fits]
    assert evidence == sorted(evidence, reverse=True)


# --- sigma and candidates -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "sigma", "origin"),
    [
        ("cifar10_resnet110_noise_0.12__sigma_0.50.tsv", 0.5, "from sigma 0.50 in the file's name"),
        ("mnist_lenet_stab_noise_1.0_1944.tsv", 1.0, "from noise 1.0 in the file's name"),
        ("Sigma-0.25", 0.25, "from sigma 0.25 in the file's name"),
        ("sigma1.tsv", 1.0, "from sigma 1 in the file's name"),
    ],
)
def test_sigma_from_the_name(tmp_path: Path, name: str, sigma: float, origin: str) -> None:
    audit = audit_log(make_log(tmp_path / name, [0.1]))
    assert (audit.sigma, audit.origin) == (sigma, origin)
    given_one = audit_log(tmp_path / name, sigma=0.7)
    assert (given_one.sigma, given_one.origin) == (0.7, "as given")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("log.tsv", {}, r"^need --sigma, or a file name with sigma_0\.25 or noise_0\.25 in it; got log\.tsv$"),
        ("sigma_.tsv", {}, r"^need --sigma, or a file name"),
        ("sigma_0.tsv", {}, r"^need a finite sigma > 0; got 0\.0$"),
        ("log.tsv", {"sigma": -1.0}, r"^need a finite sigma > 0; got -1\.0$"),
        ("log.tsv", {"sigma": math.inf}, r"^need a finite sigma > 0; got inf$"),
        ("log.tsv", {"sigma": math.nan}, r"^need a finite sigma > 0; got nan$"),
        ("log.tsv", {"sigma": 1.0, "n": [3]}, r"^need n >= 4; got 3$"),
        ("log.tsv", {"sigma": 1.0, "n": [1], "alpha": [0.9]}, r"^need n >= 2; got 1$"),
        ("log.tsv", {"sigma": 1.0, "alpha": [0.0]}, r"^need 0 < alpha < 1; got 0\.0$"),
    ],
)
def test_settings_out_of_range(tmp_path: Path, name: str, options: dict[str, float], message: str) -> None:
    make_log(tmp_path / name, [0.1])
    with pytest.raises(InputError, match=message):
        audit_log(tmp_path / name, **options)  # pyright: ignore[reportArgumentType]


def test_candidates_can_certify_at_all() -> None:
    pairs = candidates(n=[5, 10])
    assert (10, 0.001) in pairs
    assert (5, 0.05) in pairs
    assert (5, 0.01) not in pairs
    for n, alpha in pairs:
        assert ceiling(1.0, n, alpha) > 0


def test_files_that_are_no_log_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^cannot read the log .*sigma_1\.tsv: .*No such file"):
        audit_log(tmp_path / "sigma_1.tsv")
    with pytest.raises(InputError, match=r"sigma_2\.tsv: need at least one row; got none$"):
        audit_log(write(tmp_path / "sigma_2.tsv", []))
    (tmp_path / "sigma_3.tsv").write_text("idx\tlabel\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"sigma_3\.tsv: need the header \['idx', .*; got \['idx', 'label'\]$"):
        audit_log(tmp_path / "sigma_3.tsv")


# --- findings -----------------------------------------------------------------------------------------------------


def row(index: int, text: str = "1\t1\t0.25\t1") -> str:
    return f"{index}\t{text}\t1.0"


GOOD = [row(i) for i in range(5)]


@pytest.mark.parametrize(
    ("rows", "findings"),
    [
        (GOOD, []),
        ([row(20 * i) for i in range(5)], []),
        (list(reversed(GOOD)), []),
        ([*GOOD, row(5, "1\t-1\t0.0\t0")], []),
        ([*GOOD, "5\t1\t1\tx\t1\t1.0"], ["cannot be read: 1 row (line 7)"]),
        (["", *GOOD, "", row(5), "1 2"], ["cannot be read: 3 rows (lines 2, 8, 10)"]),
        ([*GOOD, row(5, "1\t1\t0.25\t7")], ["`correct` is neither 0 nor 1: 1 row (line 7)"]),
        ([*GOOD, row(5, "1\t1\t0.25\t0")], ["`correct` contradicts label and prediction: 1 row (line 7)"]),
        ([*GOOD, row(5, "1\t2\t0.25\t1")], ["`correct` contradicts label and prediction: 1 row (line 7)"]),
        ([*GOOD, row(5, "1\t1\t-0.25\t1")], ["the radius is negative or not finite: 1 row (line 7)"]),
        (
            [row(0, "1\t1\tnan\t1"), *GOOD[1:], row(5, "1\t1\tinf\t1")],
            ["the radius is negative or not finite: 2 rows (lines 2, 7)"],
        ),
        ([*GOOD, row(5, "1\t-1\t0.25\t0")], ["a positive radius on an abstention: 1 row (line 7)"]),
        ([*GOOD, GOOD[2]], ["an index that occurs more than once: 2 rows (lines 4, 7)"]),
        ([row(i) for i in (0, 1, 2, 5, 6, 9)], ["indices missing in steps of 1: 4, the first 3"]),
        ([row(i) for i in (0, 20, 40, 80)], ["indices missing in steps of 20: 1, the first 60"]),
        ([row(i) for i in (0, 20, 40, 47, 60, 80)], ["indices not in steps of 20: 1, the first 47"]),
        (
            [row(i, f"1\t{c}\t0.25\t{k}") for i, (c, k) in enumerate([(1, 1), (1, 2), (3, 2), (1, 3), (1, 4)])],
            ["`correct` is neither 0 nor 1: 4 rows (lines 3, 4, 5, 6)", "`correct` looks like a running count"],
        ),
        (
            [row(i, f"1\t1\t{10 + i}\t1") for i in range(9)],
            ["beyond the largest attainable radius, 5.18: 9 rows (lines 2, 3, 4, 5, 6, 7 and 3 more)"],
        ),
    ],
)
def test_every_defect_is_found(tmp_path: Path, rows: list[str], findings: list[str]) -> None:
    audit = audit_log(write(tmp_path / "log.tsv", rows), sigma=1.0)
    shown = [f if "attainable" not in f else f.replace(f"{audit.ceiling:.6g}", "5.18") for f in audit.findings]
    assert shown == findings
    assert audit.rows == len(rows)
    text = describe(audit)
    assert text.endswith("no findings\n" if not findings else f"finding: {audit.findings[-1]}\n")


def test_radii_beyond_the_ceiling_of_what_was_recovered(tmp_path: Path) -> None:
    n, alpha = 1000, 0.001
    most = Gaussian(SIGMA).radius(lower_confidence_bound(n, n, alpha))
    radii = [*certified(n, alpha), most + 0.0004, most + 0.002]
    audit = audit_log(make_log(tmp_path / "sigma_0.25", radii))
    assert audit.recovered is not None
    assert audit.findings == (f"beyond the largest attainable radius, {most:.6g}: 1 row (line {len(radii) + 1})",), (
        "the printed digits may be half a unit above it, and no more"
    )


def test_the_indices_in_words(tmp_path: Path) -> None:
    audit = audit_log(write(tmp_path / "l", [row(i) for i in (9980, 0, 20, 40)]), sigma=1.0)
    assert audit.indices == "4 different indices, 0 to 9980 in steps of 20"
    assert audit_log(write(tmp_path / "l", [row(7)]), sigma=1.0).indices == "1 different indices, 7 to 7 in steps of 1"
    assert audit_log(write(tmp_path / "l", ["x"]), sigma=1.0).indices == "no index"


def test_rows_with_defects_do_not_disturb_the_lattice(tmp_path: Path) -> None:
    radii = certified(1000, 0.001)
    rows = [f"{i}\t1\t1\t{three_significant(r)}\t{i}\t1.0" for i, r in enumerate(radii)]
    bad = ["", f"{len(radii)}\t1\t-1\t0.777\t0\t1.0", f"{len(radii) + 1}\t1\t1\t-0.777\t1\t1.0"]
    audit = audit_log(write(tmp_path / "sigma_0.25", rows + bad))
    assert audit.recovered is not None
    assert (audit.recovered.n, audit.recovered.alpha, audit.recovered.matched) == (1000, 0.001, len(radii))
    assert audit.radii == len(radii)


CELL = st.one_of(
    st.integers(-2, 3).map(str),
    st.floats().map(str),
    st.sampled_from(["", "1_0", "0:00:01", "٣", "1e999", "1e-320", "1.0000000000000000001e-310", "9" * 400]),
    st.decimals(0, 4, places=3).map(str),
)
ROW = st.lists(CELL, min_size=5, max_size=7).map("\t".join)
NEARLY = st.tuples(st.integers(0, 9), st.integers(0, 1), st.integers(-1, 1), CELL, st.integers(0, 2)).map(
    lambda cells: "\t".join(map(str, cells)) + "\t1.0"
)
REFUSED = ("cannot be read", "`correct`", "the radius is", "a positive radius", "an index that")


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz") / "log.tsv"


@settings(max_examples=150, deadline=None)
@given(rows=st.lists(st.one_of(ROW, NEARLY), min_size=1, max_size=5), sigma=st.sampled_from([0.25, 1e-300, 1e300]))
def test_an_audit_finds_something_exactly_where_the_reader_refuses(
    scratch: Path, rows: list[str], sigma: float
) -> None:
    write(scratch, rows)
    audit = audit_log(scratch, sigma=sigma)
    assert describe(audit)
    try:
        read_log(scratch)
        refused = False
    except InputError:
        refused = True
    assert refused == any(finding.startswith(REFUSED) for finding in audit.findings)


def first_line(text: str) -> list[str]:
    """The likeliest candidate's cells in a printed audit."""
    table = [line for line in text.splitlines() if line.startswith("|")]
    return [cell.strip() for cell in table[2].strip("|").split("|")]


# --- the command --------------------------------------------------------------------------------------------------


def test_the_command_prints_every_audit(tmp_path: Path) -> None:
    first = make_log(tmp_path / "a_sigma_0.25.tsv", certified(777, 0.02))
    second = make_log(tmp_path / "b_sigma_0.25.tsv", certified(1000, 0.001))
    command = ["audit", str(first), str(second), "--n", "777", "--n", "500", "--alpha", "0.02"]
    result = CliRunner().invoke(app, command, catch_exceptions=False)
    assert result.exit_code == 0
    options = {"n": [777, 500], "alpha": [0.02]}
    expected = [describe(audit_log(log, **options)) for log in (first, second)]  # pyright: ignore[reportArgumentType]
    assert result.stdout == "\n".join(expected)
    assert "verdict: n = 777, alpha = 0.02; largest attainable radius" in expected[0]
    assert "verdict: n = 1000, alpha = 0.001; largest attainable radius" in expected[1]
    assert first_line(expected[0])[:4] == ["777", "0.02", "nearest", "100.0 %"]
    wrong = CliRunner().invoke(app, ["audit", str(first), "--sigma", "-1"])
    assert isinstance(wrong.exception, InputError)


def test_a_share_is_rounded_down(tmp_path: Path) -> None:
    """One radius of 2000 off the lattice is not 100.0 %."""
    radii = [Gaussian(SIGMA).radius(lower_confidence_bound(990, 1000, 0.001))] * 1999 + [0.4321]
    text = describe(audit_log(make_log(tmp_path / "sigma_0.25", radii)))
    assert first_line(text)[:4] == ["1000", "0.001", "nearest", "99.9 %"]
