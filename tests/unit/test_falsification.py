"""Honest certificates survive attacks inside their radius; a planted broken certifier does not."""

from dataclasses import replace

import pytest
import torch

from analysis.attacks import PGD, SmoothAdv
from analysis.falsification import falsify_deterministic, falsify_smoothing
from certify import Certificate, Contradiction, Deterministic, Gaussian, InputError, Smoothing, Stream
from tests.classifiers import affine

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
