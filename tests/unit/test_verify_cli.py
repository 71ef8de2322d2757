"""python -m certify verify: deterministic campaigns beside smoothed ones."""

import warnings
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from certify import IBP, InputError, Threat
from certify.__main__ import app, make_verifier
from certify.campaign.store import Store
from certify.campaign.weights import load_weights
from certify.certificate import Deterministic
from certify.lirpa import CROWN
from paper_repro.data import digits
from paper_repro.training import Erm, Training, fit
from tests.networks import digits_mlp

runner = CliRunner()


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A digits network trained for a moment."""
    return fit(digits_mlp(), digits("train"), Erm(), Training(3), seed=0, out=tmp_path_factory.mktemp("net"))


def verify(weights: Path, store: Path, *more: str) -> str:
    words = ["verify", "--model", "tests.networks:digits_mlp", "--weights", str(weights), "--data"]
    words += ["paper_repro.data:digits", "--store", str(store), "--indices", "0:60", *more]
    result = runner.invoke(app, words)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
def test_rows_are_the_methods_own(weights: Path, tmp_path: Path, norm: str) -> None:
    store = tmp_path / "a.sqlite"
    verify(weights, store, "--eps", "0.02", "--norm", norm, "--batch", "25")
    with Store(store) as file:
        (results,) = file.results()
    direct = IBP(Threat(norm, 0.02))(load_weights(digits_mlp(), weights), digits("test").x[:60])  # type: ignore[arg-type]
    assert torch.equal(results.certificate.radius, direct.radius)
    assert torch.equal(results.certificate.prediction, direct.prediction)
    assert results.certificate.guarantee == Deterministic()
    assert (results.certificate.norm, results.certificate.region) == (direct.norm, direct.region)
    assert results.name == "digits_mlp f"


def test_a_killed_run_goes_on_and_a_second_one_lies_beside(weights: Path, tmp_path: Path) -> None:
    store = tmp_path / "a.sqlite"
    verify(weights, store, "--eps", "0.02", "--indices", "0:25", "--batch", "25")
    first = verify(weights, store, "--eps", "0.02", "--batch", "25")
    assert "of 60 verified" in first
    verify(weights, store, "--eps", "0.1", "--largest", "--steps", "5", "--add")
    with Store(store) as file:
        fixed, largest = file.results()
    # What is verified at a radius has at least half a step less as its largest one.
    step = 0.1 / 2**5
    assert (largest.certificate.radius[fixed.certificate.radius > 0] >= 0.02 - step).all()
    assert "Bisection(method=IBP(" in largest.settings["method"]


def test_names_and_methods() -> None:
    threat = Threat("Linf", 0.1)
    assert make_verifier("ibp", threat) == IBP(threat)
    assert make_verifier("crown", threat) == CROWN(threat)
    assert make_verifier("crown-ibp", threat) == CROWN(threat, intermediate="ibp")
    assert make_verifier("fast-lin", threat) == CROWN(threat, slopes="fast_lin")
    assert make_verifier("alpha-crown", threat) == CROWN(threat, slopes="optimized")


def test_linear_bounds_verify_what_intervals_do(weights: Path, tmp_path: Path) -> None:
    pytest.importorskip("certify.lirpa")
    verify(weights, tmp_path / "ibp.sqlite", "--eps", "0.05")
    verify(weights, tmp_path / "crown.sqlite", "--eps", "0.05", "--method", "crown")
    radii = []
    for name in ("ibp", "crown"):
        with Store(tmp_path / f"{name}.sqlite") as file:
            radii.append(file.results()[0].certificate.radius)
    assert (radii[1] >= radii[0]).all()
    assert radii[1].sum() > radii[0].sum()


def test_an_onnx_network_has_the_bounds_of_its_module(weights: Path, tmp_path: Path) -> None:
    if not (find_spec("onnx") and find_spec("onnx2torch")):
        pytest.skip("onnx2torch is not installed")
    model, file = load_weights(digits_mlp(), weights).eval(), tmp_path / "net.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch deprecates this exporter, and has no other without a warning
        torch.onnx.export(
            model, (digits("test").x[:1],), str(file), dynamo=False, dynamic_axes={"x": [0]}, input_names=["x"]
        )
    verify(weights, tmp_path / "module.sqlite", "--eps", "0.02")
    words = ["verify", "--onnx", str(file), "--data", "paper_repro.data:digits", "--indices", "0:60", "--eps", "0.02"]
    result = runner.invoke(app, [*words, "--store", str(tmp_path / "onnx.sqlite")], catch_exceptions=False)
    assert result.exit_code == 0
    found = []
    for name in ("module", "onnx"):
        with Store(tmp_path / f"{name}.sqlite") as held:
            found.append(held.results()[0].certificate)
    assert torch.equal(found[0].radius, found[1].radius)
    assert torch.equal(found[0].prediction, found[1].prediction)


def test_a_network_is_named_in_one_way(tmp_path: Path) -> None:
    words = ["verify", "--data", "paper_repro.data:digits", "--eps", "0.02", "--store", str(tmp_path / "a.sqlite")]
    with pytest.raises(InputError, match="need --model and --weights, or --onnx alone"):
        runner.invoke(app, words, catch_exceptions=False)
