"""python -m analysis attack | falsify, end to end on digits."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from analysis.__main__ import app
from certify import Gaussian, Smoothing
from certify.campaign import run
from paper_repro.data import digits
from paper_repro.training import NoiseAugmentation, Training, fit
from tests.networks import digits_linear

MODEL = ["--model", "tests.networks:digits_linear", "--data", "paper_repro.data:digits"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = digits_linear()
    out = tmp_path_factory.mktemp("linear")
    return fit(model, digits("train"), NoiseAugmentation(Gaussian(0.25)), Training(epochs=3), seed=0, out=out)


@pytest.fixture(scope="module")
def store(weights: Path) -> Path:
    from certify.campaign.weights import load_weights

    path = weights.parent / "store.sqlite"
    method = Smoothing(Gaussian(0.25), n0=50, n=500)
    run(path, method, load_weights(digits_linear(), weights), digits(), names=("m", "d"), indices="0:12")
    return path


@pytest.mark.parametrize(("norm", "eps"), [("Linf", "0.05"), ("L2", "0.3"), ("L1", "0.5")])
def test_attack_prints_everything(weights: Path, norm: str, eps: str) -> None:
    arguments = ["attack", *MODEL, "--weights", str(weights), "--norm", norm, "--eps", eps, "--indices", "0:30"]
    result = CliRunner().invoke(app, [*arguments, "--steps", "10"], catch_exceptions=False)
    assert result.exit_code == 0
    assert f"n = 30, {norm} eps = {eps}, box (0.0, 1.0), seed 0" in result.output
    assert "forward" in result.output


def test_falsify_leaves_honest_certificates_alone(weights: Path, store: Path) -> None:
    arguments = ["falsify", str(store), *MODEL, "--weights", str(weights), "--scale", "0.25"]
    effort = ["--steps", "5", "--restarts", "1", "--samples", "8"]
    result = CliRunner().invoke(app, [*arguments, *effort], catch_exceptions=False)
    assert result.exit_code == 0
    assert "0 of " in result.output


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        (["--scale", "0.5"], "the run is about"),
        (["--scale", "0.25", "--run", "2"], "need a run between 1 and 1; got 2"),
    ],
)
def test_falsify_refuses_what_does_not_fit(weights: Path, store: Path, change: list[str], rule: str) -> None:
    arguments = ["falsify", str(store), *MODEL, "--weights", str(weights), *change]
    with pytest.raises(Exception, match=rule):
        CliRunner().invoke(app, arguments, catch_exceptions=False)
