"""python -m analysis: its commands, end to end on digits."""

import csv
import io
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from analysis.__main__ import app
from analysis.attacks import APGD, FMN, PGD, Square, TargetedAPGD
from analysis.commands.attack import ladder
from analysis.commands.options import parse_counts, parse_numbers
from certify import Gaussian, InputError, Smoothing
from certify.campaign import run
from paper_repro.data import Data, digits
from paper_repro.models import linear, save_checkpoint
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


def three_classes() -> nn.Sequential:
    return sure(3)


def five_classes() -> nn.Sequential:
    return sure(5)


def sure(classes: int) -> nn.Sequential:
    """It finds a zero in every image, so surely that all attacks meet it."""
    model = linear(side=8, classes=classes)
    with torch.no_grad():
        model[2].bias[0] += 10.0
    return model


def zeros(split: str = "test") -> Data:
    every = digits(split)
    few = every.y == 0
    return Data(every.x[few], every.y[few], every.id[few])


@pytest.mark.parametrize(("network", "targets"), [(three_classes, None), (five_classes, 4)])
def test_attack_takes_as_many_targets_as_there_are(
    network: Callable[[], nn.Module], targets: int, tmp_path: Path
) -> None:
    weights = save_checkpoint(network(), tmp_path, {})
    arguments = ["attack", "--model", f"{__name__}:{network.__name__}", "--data", f"{__name__}:zeros"]
    arguments += ["--weights", str(weights), "--eps", "0.01", "--indices", ":4", "--steps", "5"]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    assert ("TargetedAPGD" in result.output) is (targets is not None)
    assert targets is None or f"TargetedAPGD(targets={targets}, steps=5" in result.output


@pytest.mark.parametrize(("classes", "targets"), [(2, 0), (3, 0), (4, 3), (9, 8), (10, 9), (12, 9)])
def test_the_ladder_depends_on_the_number_of_classes(classes: int, targets: int) -> None:
    model, x = linear(side=8, classes=classes).eval(), digits("test").x[:3]
    targeted = [TargetedAPGD(targets, 7)] if targets else []
    assert ladder(model, x, "L2", 7, 2) == [APGD(7, 2), *targeted, Square()]
    model[0].train()
    with pytest.raises(InputError, match=r"^need a model in evaluation mode"):
        ladder(model, x, "Linf", 7, 2)


def test_the_ladder_depends_on_the_norm_and_on_the_inputs() -> None:
    x = digits("test").x[:3]
    flat = nn.Linear(64, 10).eval()
    assert ladder(flat, x.flatten(1), "Linf", 7, 2) == [APGD(7, 2), TargetedAPGD(9, 7)]
    assert ladder(flat, x, "L1", 7, 2) == [PGD(7, restarts=2), FMN(7)]


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


@pytest.mark.parametrize(
    ("command", "first_column"),
    [
        (["curve-eps", "--eps", "0.05,8/255", "--steps", "3"], None),
        (["curve-eps", "--eps", "8/255,0.05", "--steps", "3"], "robust accuracy"),
        (["curve-restarts", "--eps", "0.05", "--steps", "2", "--restarts", "3"], "restarts"),
        (["curve-steps", "--eps", "0.05", "--steps", "1,2"], "steps"),
        (["grid", "--eps", "0.05", "--steps", "2", "--fractions", "0.5,1"], "steps"),
        (["distances", "--norm", "Linf", "--steps", "5"], "quantity"),
    ],
)
def test_curves_print_their_tables(weights: Path, command: list[str], first_column: str | None) -> None:
    arguments = [*command, *MODEL, "--weights", str(weights), "--indices", "0:30", "--format", "csv", "--seed", "3"]
    if first_column is None:
        with pytest.raises(InputError, match="need increasing eps > 0"):
            CliRunner().invoke(app, arguments, catch_exceptions=False)
        return
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    header, first = list(csv.reader(io.StringIO(result.stdout)))[:2]
    assert header[0] == first_column
    row = dict(zip(header, first, strict=True))
    assert (row["n"], row["seed"]) == ("30", "3")


def test_options_that_are_no_numbers() -> None:
    assert parse_numbers("0.5,8/255") == [0.5, 8 / 255]
    for text in ("a", "1/0", "0.1;0.2"):
        with pytest.raises(InputError, match=r"need comma-separated numbers, such as 0\.01,0\.03,8/255; got"):
            parse_numbers(text)
    with pytest.raises(InputError, match=r"need comma-separated whole numbers, such as 1,10,100; got '1\.5'"):
        parse_counts("1.5")
