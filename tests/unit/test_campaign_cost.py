"""The cost of a thousand images, by hand from rows whose seconds and votes are known."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from certify import IBP, Gaussian, InputError, Smoothing, Stream, Threat
from certify.__main__ import app
from certify.campaign.cost import Cost, cost_of, render_costs
from certify.campaign.results import Results
from certify.campaign.store import Store
from paper_repro.data import digits
from tests.networks import digits_linear


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Three images by 120 votes each in 6 seconds together, and one more in 4; then two verified in 1 second."""
    model, data, path = digits_linear().eval(), digits(), tmp_path / "s.sqlite"
    method = Smoothing(Gaussian(0.25), n0=20, n=100)
    with Store(path, create=True) as file:
        votes = file.open_run({"model": "m:net", "method": repr(method)}, {})
        votes.append(method(model, data.x[:3], rng=Stream(0)), [0, 1, 2], data.y[:3].tolist(), seconds=6.0)
        votes.append(method(model, data.x[3:4], rng=Stream(1)), [3], data.y[3:4].tolist(), seconds=4.0)
        verified = file.open_run({"model": "m:net", "method": "ibp"}, {}, add=True)
        verified.append(IBP(Threat("Linf", 0.1))(model, data.x[:2]), [0, 1], data.y[:2].tolist(), seconds=1.0)
    return path


def results(store: Path) -> list[Results]:
    with Store(store) as file:
        return file.results()


def test_a_thousand_images_by_hand(store: Path) -> None:
    """10 seconds for 4 images are 2500 for a thousand; an hour of a worker is 3600."""
    votes, verified = results(store)
    name = "net g(Gaussian(sigma=0.25))"
    assert cost_of(votes, price=1.44) == Cost(name, 4, 120_000.0, 2500.0, 2500.0, pytest.approx(1.0))
    assert cost_of(votes, price=0.0, workers=5) == Cost(name, 4, 120_000.0, 2500.0, 500.0, 0.0)
    slower = cost_of(votes, price=1.44, workers=5, times=40)
    assert slower == Cost(name, 4, 120_000.0, 100_000.0, 20_000.0, pytest.approx(40.0))
    assert cost_of(verified, price=3.6) == Cost("net f", 2, 0.0, 500.0, 500.0, pytest.approx(0.5))


def test_the_table_says_what_was_measured_and_what_it_comes_to(store: Path) -> None:
    lines = render_costs([cost_of(r, price=1.44, workers=2) for r in results(store)]).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[0][:3] == ["per 1000 images", "measured on", "passes"]
    assert cells[2] == ["net g(Gaussian(sigma=0.25))", "4", "120000", "2500", "1250", "48", "1"]
    assert cells[3] == ["net f", "2", "0", "500", "250", "", "0.2"]
    told = CliRunner().invoke(app, ["cost", str(store), "--price", "1.44", "--workers", "2"], catch_exceptions=False)
    assert told.output.splitlines() == lines


@pytest.mark.parametrize(
    ("price", "workers", "times"), [(-0.1, 1, 1.0), (float("nan"), 1, 1.0), (1.0, 0, 1.0), (1.0, 1, 0.0)]
)
def test_what_is_no_cost_is_refused(store: Path, price: float, workers: int, times: float) -> None:
    with pytest.raises(InputError, match=rf"^need price >= 0, workers >= 1 and times > 0; got {price}, {workers}, "):
        cost_of(results(store)[0], price=price, workers=workers, times=times)
