"""Every certifier that `python -m certify run` offers, from the command line into a store and a table."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from certify import Gaussian
from certify.__main__ import app
from certify.campaign.store import Store
from paper_repro.data import digits
from paper_repro.training import NoiseAugmentation, Training, fit
from tests.networks import digits_linear


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("linear")
    method, training = NoiseAugmentation(Gaussian(0.25)), Training(epochs=3)
    return fit(digits_linear(), digits("train"), method, training, seed=0, out=out)


def run(weights: Path, store: Path, *options: str) -> None:
    source = ["--model", "tests.networks:digits_linear", "--weights", str(weights)]
    where = ["--data", "paper_repro.data:digits", "--indices", "0:8", "--scale", "0.25", "--store", str(store)]
    result = CliRunner().invoke(app, ["run", *source, *where, *options], catch_exceptions=False)
    assert result.exit_code == 0


@pytest.mark.parametrize(
    ("options", "method", "norm"),
    [
        (["--n", "300"], "Smoothing(", "L2"),
        (["--n", "300", "--runner-up", "0.1"], "runner_up=0.1", "L2"),
        (["--n", "300", "--method", "randomized"], "randomized=True", "L2"),
        (["--n", "2000", "--method", "adaptive", "--radii", "0,0.25,0.5"], "radii=(0.0, 0.25, 0.5)", "L2"),
        (["--n", "1000", "--method", "tolerance", "--tolerance", "0.2"], "tolerance=0.2", "L2"),
        (["--n", "300", "--method", "renyi", "--runner-up", "0.1"], "RenyiSmoothing(sigma=0.25", "L2"),
        (["--n", "300", "--noise", "laplace"], "Laplace(scale=0.25)", "L1"),
        (["--n", "300", "--noise", "uniform"], "Uniform(scale=0.25)", "L1"),
    ],
)
def test_run_stores_what_was_asked(weights: Path, tmp_path: Path, options: list[str], method: str, norm: str) -> None:
    run(weights, tmp_path / "s.sqlite", *options)
    with Store(tmp_path / "s.sqlite") as store:
        (results,) = store.results()
    assert method in results.settings["method"]
    assert results.certificate.norm == norm
    assert len(results.example) == 8
    assert (results.certificate.w is not None) == ("randomized" in options)
    table = CliRunner().invoke(app, ["table", str(tmp_path / "s.sqlite"), "--radii", "0,0.25"], catch_exceptions=False)
    assert table.exit_code == 0
    assert norm in table.output


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        (
            ["--method", "adaptive", "--runner-up", "0.1"],
            "--runner-up is for the methods fixed and renyi; got adaptive",
        ),
        (["--method", "renyi", "--noise", "laplace"], "the method renyi is for gaussian noise"),
        (["--method", "adaptive", "--radii", "1,0"], "in increasing order"),
        (["--noise", "rounded_gaussian", "--n", "300"], "need inputs on the lattice"),
        (["--method", "split"], "need 2 \\* scale \\* levels a whole number of steps"),
    ],
)
def test_run_refuses(weights: Path, tmp_path: Path, options: list[str], rule: str) -> None:
    with pytest.raises(Exception, match=rule):
        run(weights, tmp_path / "s.sqlite", *options)
