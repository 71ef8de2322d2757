"""The certificate of stability training and its contemporaries: golden values, order, limits."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from certify import ABSTAIN, Gaussian, InputError, Smoothing, Stream
from certify.noise import Laplace
from certify.renyi import (
    RenyiSmoothing,
    hockey_stick_radius,
    li_laplace_radius,
    pixeldp_laplace_radius,
    pixeldp_radius,
    renyi_radius,
)
from tests.classifiers import affine, threshold_with_probability

GOLDEN = {
    (0.6, 0.4): "0.20221629",
    (0.9, 0.1): "1.03192956",
    (0.99, 0.01): "1.90800905",
    (0.999, 0.001): "2.57573963",
    (0.6, 0.1): "0.68873106",
    (0.5, 0.2): "0.37441353",
    (0.4, 0.3): "0.12006187",
    (0.9, 0.01): "1.62214638",
}
PIXELDP = {0.6: ".059", 0.7: ".135", 0.9: ".390", 0.99: ".555", 0.999: ".569"}

pairs = st.tuples(st.floats(0.01, 0.9999), st.floats(0.0001, 0.99)).filter(lambda p: p[0] > p[1] and sum(p) <= 1)


@pytest.mark.parametrize(("p", "radius"), list(GOLDEN.items()))
def test_golden_renyi(p: tuple[float, float], radius: str) -> None:
    assert f"{renyi_radius(*p, 1.0):.8f}" == radius


@pytest.mark.parametrize(("p", "radius"), list(PIXELDP.items()))
def test_golden_pixeldp(p: float, radius: str) -> None:
    assert f"{pixeldp_radius(p, None, 1.0):.3f}".lstrip("0") == radius


def test_golden_ratio_to_the_tight_bound() -> None:
    for p, ratio in ((0.6, 0.798), (0.7, 0.799), (0.9, 0.805), (0.99, 0.820), (0.999, 0.834), (0.9999309248, 0.846)):
        assert renyi_radius(p, None, 1.0) / Gaussian(1.0).radius(p) == pytest.approx(ratio, abs=6e-4)


@settings(max_examples=300, deadline=None)
@given(pairs)
def test_nothing_exceeds_the_tight_bound(p: tuple[float, float]) -> None:
    tight = Gaussian(0.5).radius(*p)
    for bound in (renyi_radius, pixeldp_radius, hockey_stick_radius):
        assert 0 <= bound(*p, 0.5) <= tight
    laplace = Laplace(0.5).radius(*p)
    assert laplace >= max(li_laplace_radius(*p, 0.5), pixeldp_laplace_radius(*p, 0.5)) >= 0


NEAR = [(0.5 + gap, None) for gap in (2.0**-53, 1e-15, 1e-12, 1e-10, 1e-9, 1e-8, 1e-6, 1e-4)] + [
    (p, b)
    for p in (0.3, 0.01, 0.49, 1e-5)
    for b in (math.nextafter(p, 0), p * (1 - 1e-14), p * (1 - 1e-11), p * (1 - 1e-9), p * (1 - 1e-6))
]


@pytest.mark.parametrize("p", NEAR)
def test_nothing_exceeds_the_tight_bound_near_a_tie(p: tuple[float, float | None]) -> None:
    """There the terms of a bound nearly cancel, and what is left of them may be rounding error."""
    tight, laplace = Gaussian(0.5).radius(*p), Laplace(0.5).radius(*p)
    for bound in (renyi_radius, pixeldp_radius, hockey_stick_radius):
        assert 0 <= bound(*p, 0.5) <= tight
    for bound in (li_laplace_radius, pixeldp_laplace_radius):
        assert 0 <= bound(*p, 0.5) <= laplace


def test_ties_of_the_report() -> None:
    assert 0 <= renyi_radius(0.5 + 1e-9, None, 1.0) <= Gaussian(1.0).radius(0.5 + 1e-9)
    assert (
        0 <= hockey_stick_radius(0.3, math.nextafter(0.3, 0), 1.0) <= Gaussian(1.0).radius(0.3, math.nextafter(0.3, 0))
    )
    assert hockey_stick_radius(1e-12, 1e-12 * (1 - 1e-10), 1.0) == 0.0  # all of it is lost to rounding
    assert pixeldp_radius(0.5 + 1e-10, None, 1.0) == 0.0
    assert pixeldp_radius(0.5 + 1e-6, None, 1.0) > 0.0


@settings(max_examples=100, deadline=None)
@given(st.floats(0.5001, 0.9999))
def test_binary_limits(p: float) -> None:
    q = 1 - p
    assert renyi_radius(p, None, 1.0) == renyi_radius(p, q, 1.0)
    assert hockey_stick_radius(p, q, 1.0) == pytest.approx(Gaussian(1.0).radius(p), abs=1e-6)
    assert li_laplace_radius(p, None, 1.0) == pytest.approx(Laplace(1.0).radius(p), abs=1e-9)


def test_renyi_against_a_dense_grid_of_orders() -> None:
    """An independent evaluation of the same supremum, in plain powers."""
    for p_a, p_b in GOLDEN:
        best = 0.0
        for order in [0.5 + 0.001 * i for i in range(2000)]:
            if abs(order - 1) > 1e-6:
                e = 1 - order
                mean = ((p_a**e + p_b**e) / 2) ** (1 / e)
                best = max(best, -2 / order * math.log(1 - p_a - p_b + 2 * mean))
        assert renyi_radius(p_a, p_b, 2.0) == pytest.approx(2 * math.sqrt(best), abs=1e-6)
        assert renyi_radius(p_a, p_b, 2.0) >= 2 * math.sqrt(best) * (1 - 1e-9)


def test_edges() -> None:
    for bound in (renyi_radius, pixeldp_radius, hockey_stick_radius, li_laplace_radius, pixeldp_laplace_radius):
        assert bound(0.4, 0.4, 1.0) == 0.0
        assert bound(0.3, None, 1.0) == 0.0
        assert bound(0.9, 0.0, 1.0) > bound(0.9, 0.05, 1.0)
        assert bound(0.8, 0.1, 2.0) == pytest.approx(2 * bound(0.8, 0.1, 1.0), rel=1e-9)
        with pytest.raises(InputError, match="need probabilities"):
            bound(1.1, None, 1.0)
        with pytest.raises(InputError, match="need a finite scale > 0; got -1"):
            bound(0.9, None, -1.0)


def test_the_certifier_votes_as_smoothing_does_and_certifies_less() -> None:
    model = affine(4, (6,), seed=1)
    x = torch.rand(20, 6, generator=torch.Generator().manual_seed(0))
    renyi = RenyiSmoothing(0.5, n=2000)(model, x, rng=Stream(0))
    tight = Smoothing(Gaussian(0.5), n=2000, runner_up=0.1)(model, x, rng=Stream(0))
    assert renyi.counts is not None
    assert tight.counts is not None
    assert torch.equal(renyi.counts, tight.counts)
    assert renyi.subject == tight.subject == "g(Gaussian(sigma=0.5))"
    certified = renyi.radius > 0
    assert certified.any()
    assert (renyi.radius[certified] < tight.radius[certified]).all()
    assert torch.equal(renyi.prediction == ABSTAIN, ~certified)


def test_the_certifier_stays_below_the_true_radius() -> None:
    for sigma in (0.25, 1.0):
        model, radius = threshold_with_probability(0.9, sigma)
        c = RenyiSmoothing(sigma, n=100_000, box=None)(model, torch.zeros(1, 1), rng=Stream(0))
        assert 0.78 * radius < float(c.radius[0]) < 0.81 * radius


def test_refuses_what_smoothing_refuses() -> None:
    with pytest.raises(InputError, match="need a finite sigma > 0"):
        RenyiSmoothing(0.0)
    with pytest.raises(InputError, match="need 0 < alpha < 1"):
        RenyiSmoothing(1.0, alpha=0.0)
