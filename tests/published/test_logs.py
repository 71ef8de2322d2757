"""Published certification logs: our table prints the papers' numbers, and reproduces the reference averages."""

import csv
import io
from pathlib import Path

import pytest
from typer.testing import CliRunner

from certify.__main__ import app

RADII = [0, 0.25, 0.5, 0.75, 1, 1.25, 1.5]


def table(sources: list[Path], *options: str) -> list[dict[str, str]]:
    """`python -m certify table` as CSV, one dictionary per line."""
    result = CliRunner().invoke(app, ["table", *map(str, sources), "--format", "csv", *options], catch_exceptions=False)
    assert result.exit_code == 0
    return list(csv.DictReader(io.StringIO(result.stdout)))


@pytest.mark.parametrize(
    ("pair", "accuracy", "average"),
    [
        ("noise_0.25__sigma_0.25", [".748", ".600", ".428", ".266", ".000", ".000", ".000"], ".429"),
        ("noise_0.50__sigma_0.50", [".652", ".546", ".414", ".320", ".234", ".152", ".094"], ".538"),
        ("noise_1.00__sigma_1.00", [".472", ".392", ".340", ".278", ".216", ".174", ".140"], ".542"),
    ],
)
def test_cifar10_of_cohen_rosenfeld_and_kolter(shared: Path, pair: str, accuracy: list[str], average: str) -> None:
    log = shared / "certification-logs" / "cohen2019" / f"cifar10_resnet110_{pair}.tsv"
    observed, each, together = table([log])
    assert [observed[f"r={r:g}"] for r in RADII] == [f"0{a}" for a in accuracy]
    # Known to three digits and printed with four: equal up to half a unit of both.
    assert abs(float(observed["ACR"]) - float(average)) <= 0.0005 + 0.00005
    assert (observed["source"], observed["m"], observed["alpha"]) == (log.stem, "500", "0.001 assumed")
    assert (observed["norm"], observed["votes"]) == ("as published", "")
    # 500 images say little about all others: a single bound lies 3 to 4 points lower, the simultaneous ones further.
    for r in RADII:
        seen, alone, all_radii = (float(row[f"r={r:g}"]) for row in (observed, each, together))
        if seen > 0:
            assert 0.02 < seen - alone < 0.05
            assert alone > all_radii > seen - 0.06
        else:
            assert alone == all_radii == 0


MEANS = {
    # (method, sigma as the files print it): mean and standard deviation of the average certified radius
    ("gaussian", "0.25"): ("0.9108", "0.0003"),
    ("gaussian", "0.50"): ("1.5581", "0.0016"),
    ("gaussian", "1.00"): ("1.6184", "0.0021"),
    ("stab", "0.25"): ("0.9152", "0.0007"),
    ("stab", "0.5"): ("1.5719", "0.0028"),
    ("stab", "1.0"): ("1.6341", "0.0018"),
}
CERTIFIED = {
    # at r = 0, .25, .5, ...; two of the published rows
    ("gaussian", "0.50"): ["0.992", "0.983", "0.969", "0.943", "0.898", "0.820", "0.678"],
    ("stab", "0.5"): ["0.993", "0.985", "0.973", "0.949", "0.907", "0.831", "0.692"],
}


@pytest.mark.parametrize(("method", "sigma"), MEANS)
def test_mnist_of_jeong_and_shin_over_five_seeds(shared: Path, method: str, sigma: str) -> None:
    folder = shared / "certification-logs" / "jeong2020"
    logs = sorted(folder.glob(f"mnist_lenet_{method}_noise_{sigma}_*.tsv"))
    rows = table(logs, "--mean")
    assert len(logs) == 5
    assert [row["quantity"] for row in rows[-2:]] == ["mean", "sd"]
    mean, deviation = rows[-2:]
    assert (mean["ACR"], deviation["ACR"]) == MEANS[method, sigma]
    assert (mean["source"], mean["m"]) == ("5 rows", "10000")
    if (method, sigma) in CERTIFIED:
        assert [mean[f"r={r:g}"] for r in RADII] == CERTIFIED[method, sigma]
    observed = [row for row in rows if row["quantity"] == "observed"]
    assert [row["source"] for row in observed] == [log.stem for log in logs]


def test_every_published_log_is_read(shared: Path) -> None:
    """All of them, the mismatched noise pairs among them, in one table."""
    logs = sorted((shared / "certification-logs" / "cohen2019").glob("*.tsv"))
    observed = [row for row in table(logs, "--radii", "0") if row["quantity"] == "observed"]
    assert [row["source"] for row in observed] == [log.stem for log in logs]
    assert len(observed) == 7
    assert {row["m"] for row in observed} == {"500"}
