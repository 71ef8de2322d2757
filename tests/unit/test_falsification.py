"""Honest certificates survive attacks inside their radius; a planted broken certifier does not."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from typer.testing import CliRunner

from analysis.__main__ import app
from analysis.attacks import PGD, SmoothAdv
from analysis.falsification import falsify_deterministic, falsify_smoothing
from certify import (
    Certificate,
    Contradiction,
    Deterministic,
    Gaussian,
    InputError,
    RoundedGaussian,
    Smoothing,
    SplitNoise,
    Stream,
)
from certify.campaign import run
from certify.lattice import LATTICE
from paper_repro.data import Data, digits
from paper_repro.training import NoiseAugmentation, Training, fit
from tests.classifiers import affine
from tests.networks import digits_linear, digits_mlp

NOISE = Gaussian(0.5)
MODEL = affine(2, (6,), seed=1)
X = torch.rand(12, 6, generator=torch.Generator().manual_seed(0))
ATTACK = SmoothAdv(NOISE, samples=16, steps=10, restarts=1, votes=500)


def certified() -> Certificate:
    return Smoothing(NOISE, n=2000, alpha=0.001)(MODEL, X, rng=Stream(0))


def test_honest_certificates_survive() -> None:
    result = falsify_smoothing(certified(), MODEL, X, ATTACK, rng=Stream(1))
    assert result.attacked >= 10
    assert result.hits == ()
    assert result.p_value == 1.0
    assert "0 of" in str(result)


def test_doubled_radii_are_caught() -> None:
    honest = certified()
    broken = replace(honest, radius=honest.radius * 2)
    result = falsify_smoothing(broken, MODEL, X, ATTACK, rng=Stream(1))
    assert len(result.hits) >= 5
    assert result.p_value < 1e-9
    assert result.expected < 0.02


def deterministic(factor: float) -> Certificate:
    """The affine classifier's own distance, stretched: exact for two classes."""
    return Certificate(
        prediction=MODEL(X).argmax(1),
        radius=MODEL.distance(X) * factor,
        norm="L2",
        subject="f",
        guarantee=Deterministic(),
        method="distance",
        samples=torch.zeros(12, dtype=torch.int64),
    )


def test_a_single_deterministic_hit_is_a_contradiction() -> None:
    attacks = [PGD(20, random_start=False)]
    assert falsify_deterministic(deterministic(0.99), MODEL, X, attacks, rng=Stream(0)).attacked == 12
    with pytest.raises(Contradiction, match=r"f: example 0 is certified to .* in L2, and PGD\("):
        falsify_deterministic(deterministic(1.05), MODEL, X, attacks, rng=Stream(0))


def test_each_kind_of_certificate_has_its_own_test() -> None:
    with pytest.raises(InputError, match="need a certificate of a smoothed classifier"):
        falsify_smoothing(deterministic(0.5), MODEL, X, ATTACK, rng=Stream(0))
    with pytest.raises(InputError, match="need a deterministic certificate"):
        falsify_deterministic(certified(), MODEL, X, [], rng=Stream(0))
    with pytest.raises(InputError, match="one input per certificate, 12; got 3"):
        falsify_smoothing(certified(), MODEL, X[:3], ATTACK, rng=Stream(0))


ABOUT_F = "need a certificate about f, the network itself; got "
ABOUT_BALLS = "need a certificate of the region 'ball' or 'box'; got 'lattice', of "


def test_what_is_proved_of_another_classifier_is_not_attacked_through_the_network() -> None:
    """Split noise is deterministic, and about its own g: errors of f near by are no contradiction."""
    x = (X * 255).round() / 255
    method = SplitNoise(0.5)
    certificate = method(MODEL, x)
    far = replace(certificate, radius=MODEL.distance(x) * 6)  # in L1, beyond the nearest error of f
    for radii in (certificate, far):
        with pytest.raises(InputError, match=re.escape(f"{ABOUT_F}g({method!r}): the attacks query f")):
            falsify_deterministic(radii, MODEL, x, [PGD(20)], rng=Stream(0))


def test_lattice_certificates_are_not_attacked_off_the_lattice() -> None:
    x = (X * 255).round() / 255
    noise = RoundedGaussian(0.5, dimension=6)
    certificate = Smoothing(noise, n=200, alpha=0.01)(MODEL, x, rng=Stream(0))
    assert certificate.region == LATTICE
    with pytest.raises(InputError, match=re.escape(f"{ABOUT_BALLS}g({noise!r}): the attacks move off the lattice")):
        falsify_smoothing(certificate, MODEL, x, replace(ATTACK, noise=noise), rng=Stream(0))
    with pytest.raises(InputError, match=re.escape(f"{ABOUT_BALLS}f: the attacks move off the lattice")):
        falsify_deterministic(replace(deterministic(1.0), region=LATTICE), MODEL, x, [PGD(20)], rng=Stream(0))


def rounded_digits(split: Literal["train", "test"] = "test") -> Data:
    """Digits in 8 bits."""
    data = digits(split)
    return replace(data, x=(data.x * 255).round() / 255)


@pytest.mark.parametrize(
    ("method", "options", "rule"),
    [
        (SplitNoise(0.5), [], ABOUT_F + "g(SplitNoise("),
        (
            Smoothing(RoundedGaussian(0.25, 64), n0=20, n=200),
            ["--noise", "rounded_gaussian", "--scale", "0.25"],
            ABOUT_BALLS + "g(RoundedGaussian(",
        ),
    ],
)
def test_the_command_refuses_stores_it_cannot_refute(
    tmp_path: Path, method: SplitNoise | Smoothing, options: list[str], rule: str
) -> None:
    model = digits_linear().eval()
    weights, store = tmp_path / "weights.safetensors", tmp_path / "store.sqlite"
    save_file(model.state_dict(), weights)
    run(store, method, model, rounded_digits(), names=("m", "d"), indices="0:2")
    what = ["--model", "tests.networks:digits_linear", "--data", "tests.unit.test_falsification:rounded_digits"]
    with pytest.raises(InputError, match=re.escape(rule)):
        CliRunner().invoke(
            app, ["falsify", str(store), *what, "--weights", str(weights), *options], catch_exceptions=False
        )


def test_progress_is_told_of_every_example_attacked() -> None:
    seen: list[None] = []
    honest = certified()
    falsify_smoothing(honest, MODEL, X, ATTACK, rng=Stream(1), watch=lambda: seen.append(None))
    assert len(seen) == int((honest.radius > 0).sum())
    falsify_deterministic(deterministic(0.5), MODEL, X, [PGD(1)], rng=Stream(0), watch=lambda: seen.append(None))
    assert len(seen) == int((honest.radius > 0).sum()) + 12


# --- the power of the test, on a trained network --------------------------------------------------------------------

QUARTER = Gaussian(0.25)


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> nn.Module:
    """An MLP of 16 hidden units, trained in noise: about 94 % of the digits right."""
    model = digits_mlp()
    effort = Training(epochs=20, batch_size=64)
    fit(model, digits("train"), NoiseAugmentation(QUARTER), effort, seed=0, out=tmp_path_factory.mktemp("mlp"))
    return model.eval()


def images(count: int) -> Tensor:
    """The first so many digits, the test images before the others; a certificate may be about either."""
    return torch.cat([digits("test").x, digits("train").x])[:count]


@pytest.mark.parametrize(("factor", "least"), [(1.0, 0), (1.25, 8), (2.0, 20)])
def test_a_planted_broken_certifier_is_caught_on_few_images(network: nn.Module, factor: float, least: int) -> None:
    """Radii a quarter too large suffice; the honest ones survive on the very same images."""
    x = images(40)
    honest = Smoothing(QUARTER, n0=100, n=10_000)(network, x, rng=Stream(0))
    stretched = replace(honest, radius=honest.radius * factor)
    attack = SmoothAdv(QUARTER, samples=16, steps=10, restarts=1, votes=500)
    result = falsify_smoothing(stretched, network, x, attack, rng=Stream(1))
    assert result.attacked > 30
    assert len(result.hits) >= least
    assert (result.p_value < 1e-6) == (factor > 1)
    if factor == 1:
        assert result.hits == ()


@pytest.mark.long
def test_a_thousand_honest_certificates_survive_a_long_attack(network: nn.Module) -> None:
    """100 steps from 10 starts on each. With alpha = 0.001 one may be wrong by right: the test is of their number."""
    x = images(1100)
    honest = Smoothing(QUARTER, n0=100, n=10_000)(network, x, rng=Stream(0))
    attack = SmoothAdv(QUARTER, samples=8, steps=100, restarts=10, votes=500)
    result = falsify_smoothing(honest, network, x, attack, rng=Stream(1))
    assert result.attacked >= 1000
    assert result.p_value > 1e-9, str(result)
    print(result)
