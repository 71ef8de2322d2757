"""Published certification logs: the alpha they were made with, which for some is not the one their paper states."""

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import sem
from typer.testing import CliRunner

from certify.__main__ import app
from certify.campaign import read_log
from certify.campaign.audit import audit_log, describe
from certify.comparison import compare_scores

COHEN = "cifar10_resnet110_noise_{}.tsv"


@pytest.mark.parametrize(
    ("pair", "alpha"),
    [
        # Their paper states 0.001 for all.
        ("0.12__sigma_0.12", 0.001),
        ("0.25__sigma_0.25", 0.01),
        ("0.50__sigma_0.50", 0.01),
        ("1.00__sigma_0.50", 0.001),
        ("1.00__sigma_1.00", 0.01),
    ],
)
def test_cohen_rosenfeld_and_kolter_used_two_alphas(shared: Path, pair: str, alpha: float) -> None:
    audit = audit_log(shared / "certification-logs" / "cohen2019" / COHEN.format(pair))
    found = audit.recovered
    assert found is not None
    assert (found.n, found.alpha, found.rounding) == (100_000, alpha, "nearest")
    assert found.matched == audit.radii > 300
    assert found.matched_telling == found.telling > 0
    assert audit.precision == "3 significant digits"
    assert audit.raised > 0
    assert audit.findings == ()
    assert (audit.rows, audit.indices) == (500, "500 different indices, 0 to 9980 in steps of 20")
    # Among the same 100,000 votes, no other alpha explains every radius.
    assert all(f.matched < audit.radii for f in audit.fits if f.n == 100_000 and f.alpha != alpha)


@pytest.mark.parametrize("pair", ["0.12__sigma_0.50", "0.25__sigma_0.50"])
def test_too_small_radii_tell_nothing(shared: Path, pair: str) -> None:
    """Networks in noise they were not trained for: almost no radius reaches where the lattice is coarse."""
    audit = audit_log(shared / "certification-logs" / "cohen2019" / COHEN.format(pair))
    assert audit.recovered is None
    assert "n and alpha are not recovered" in describe(audit)
    assert all(f.matched == audit.radii for f in audit.fits if (f.n, f.alpha) == (100_000, 0.001))


@pytest.mark.parametrize("method", ["gaussian", "stab"])
def test_jeong_and_shin_used_one(shared: Path, method: str) -> None:
    logs = sorted((shared / "certification-logs" / "jeong2020").glob(f"mnist_lenet_{method}_*.tsv"))
    assert len(logs) == 15
    for log in logs:
        audit = audit_log(log)
        assert audit.recovered is not None, log
        assert (audit.recovered.n, audit.recovered.alpha) == (100_000, 0.001)
        assert audit.recovered.matched == audit.radii > 9700
        assert audit.findings == ()
        assert audit.indices == "10000 different indices, 0 to 9999 in steps of 1"
        # Three digits rounded to nearest: most radii at sigma 1/4 are .952864 and printed .953.
        assert audit.raised > (8000 if "0.25" in log.name else 30)
        assert audit.excess <= 0.0005 if "0.25" in log.name else audit.excess <= 0.005


def test_the_wrong_sigma_recovers_nothing(shared: Path) -> None:
    log = shared / "certification-logs" / "cohen2019" / COHEN.format("0.25__sigma_0.25")
    assert audit_log(log, sigma=0.25).recovered is not None
    halved = audit_log(log, sigma=0.125)
    assert halved.recovered is None
    assert [finding.split(",")[0] for finding in halved.findings] == ["beyond the largest attainable radius"]
    assert audit_log(log, sigma=0.5).recovered is None


def test_the_command_on_a_published_log(shared: Path) -> None:
    log = shared / "certification-logs" / "cohen2019" / COHEN.format("0.25__sigma_0.25")
    result = CliRunner().invoke(app, ["audit", str(log)], catch_exceptions=False)
    assert result.exit_code == 0
    assert "verdict: n = 100000, alpha = 0.01; largest attainable radius 0.977628" in result.stdout
    assert result.stdout.endswith("no findings\n")


@pytest.mark.parametrize("sigma", ["0.25", "0.5", "1.0"])
def test_stability_training_beats_noise_alone_in_pairs(shared: Path, sigma: str) -> None:
    """Five seeds each: paired, every difference stands out; unpaired, its error would be several times larger."""
    folder = shared / "certification-logs" / "jeong2020"
    stability = sorted(folder.glob(f"mnist_lenet_stab_noise_{sigma}_*.tsv"))
    noise = sorted(folder.glob(f"mnist_lenet_gaussian_noise_{sigma.ljust(4, '0')}_*.tsv"))
    assert len(stability) == len(noise) == 5
    for first, second in zip(map(read_log, stability), map(read_log, noise), strict=True):
        compared = compare_scores(first.scores(), second.scores(), first.example, second.example, [0.0], rho=0.05)
        unpaired = np.hypot(*(sem(np.maximum(log.scores(), 0.0)) for log in (first, second)))
        assert 0 < compared.se < unpaired / 2
        assert compared.estimate[0] > 0
        assert compared.m == 10_000


def test_logs_of_different_examples_are_not_compared(shared: Path) -> None:
    folder = shared / "certification-logs"
    sources = [folder / "cohen2019" / COHEN.format("0.25__sigma_0.25"), *sorted(folder.glob("jeong2020/*stab*"))[:1]]
    result = CliRunner().invoke(app, ["compare", *map(str, sources)])
    assert result.exit_code == 1
    assert "need the same examples on both sides; 0 of 500 are only in the first, 9500 of 10000" in str(
        result.exception
    )
