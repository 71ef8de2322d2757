"""On an affine classifier the smoothed radius is the true distance, at every sigma."""

import pytest
import torch

from certify import Gaussian, Smoothing, Stream
from certify.binomial import lower_confidence_bound
from tests.classifiers import Affine


@pytest.mark.parametrize("sigma", [0.25, 1.0, 3.0])
def test_binary_affine_radius_is_the_distance(sigma: float) -> None:
    """The certificate approaches the distance from below as n grows."""
    weight = torch.tensor([[1.0, -2.0, 0.5], [-1.0, 0.0, 1.0]])
    model = Affine(weight, torch.tensor([0.3, 0.0])).eval()
    x = torch.tensor([[0.9, 0.1, 0.2], [0.1, 0.9, 0.9], [0.5, 0.3, 0.5]])
    distance = model.distance(x)
    radii = []
    for n in (1000, 100_000):
        c = Smoothing(Gaussian(sigma), n0=20_000, n=n, alpha=1e-9)(model, x, rng=Stream(0))
        assert (c.radius <= distance).all()
        radii.append(c.radius)
    # What the exact success probability would certify with an unlucky count of six standard errors below the mean.
    p = torch.special.ndtr(distance / sigma)
    for true, got, q in zip(distance, radii[1], p, strict=True):
        count = int(1e5 * (q - 6 * (q * (1 - q) / 1e5) ** 0.5))
        assert got >= Gaussian(sigma).radius(lower_confidence_bound(count, 100_000, 1e-9))
        assert got <= true


def test_a_class_that_never_wins_changes_nothing() -> None:
    """Three classes, one hopeless: the two-class certificate stays below the distance and close to the binary one."""
    weight = torch.tensor([[1.0, -2.0, 0.5], [-1.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
    model = Affine(weight, torch.tensor([0.3, 0.0, -1000.0])).eval()
    x = torch.tensor([[0.9, 0.1, 0.2], [0.1, 0.9, 0.9], [0.5, 0.3, 0.5]])
    distance = model.distance(x)
    binary = Smoothing(Gaussian(0.25), n0=1000, n=100_000, alpha=1e-6)(model, x, rng=Stream(0))
    two_class = Smoothing(Gaussian(0.25), n0=1000, n=100_000, alpha=1e-6, runner_up=0.1)(model, x, rng=Stream(0))
    assert (two_class.radius <= distance).all()
    assert (two_class.radius >= 0.98 * binary.radius).all()
    assert torch.equal(two_class.prediction, binary.prediction)
