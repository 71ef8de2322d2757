"""The smoothed classifier as a module that attacks can differentiate."""

import pytest
import torch
from scipy.special import ndtr

from certify import Gaussian, InputError, Stream
from certify.smoothed import SmoothedClassifier
from tests.classifiers import Threshold, affine

X = torch.rand(3, 5, generator=torch.Generator().manual_seed(0))


def test_hard_votes_estimate_the_class_probabilities() -> None:
    g = SmoothedClassifier(Threshold(0.3).eval(), Gaussian(0.5), 20_000, stream=Stream(0), hard=True)
    p = g(torch.zeros(1, 1)).exp()
    assert float(p.sum()) == pytest.approx(1.0, abs=1e-4)
    assert float(p[0, 0]) == pytest.approx(float(ndtr(0.3 / 0.5)), abs=6 * 0.5 / 20_000**0.5)


def test_soft_votes_are_the_mean_softmax() -> None:
    base = affine(3, (5,))
    g = SmoothedClassifier(base, Gaussian(0.5), 7, stream=Stream(4), chunk=3)
    expected = []
    for i in range(3):
        p = []
        for first, size in ((0, 3), (3, 3), (6, 1)):
            noisy = torch.empty(size, 5)
            generator = Stream(4).child("call", 0, i, first).generator()
            Gaussian(0.5).perturb(noisy, X[i], generator)
            p.append(base(noisy).softmax(1))
        expected.append(torch.cat(p).mean(0))
    assert torch.allclose(g(X).exp(), torch.stack(expected), atol=1e-6)


def test_gradient_is_that_of_the_mean() -> None:
    """Against central differences with the same noise, in float64."""
    g = SmoothedClassifier(affine(3, (5,)).double(), Gaussian(0.5), 50, stream=Stream(1), fresh=False)
    x = X.double().requires_grad_()
    g(x)[:, 0].sum().backward()
    assert x.grad is not None
    step = 1e-6
    for i, j in ((0, 0), (1, 3), (2, 4)):
        high, low = X.double(), X.double()
        high[i, j] += step
        low[i, j] -= step
        slope = float((g(high) - g(low))[i, 0].detach() / (2 * step))
        assert float(x.grad[i, j]) == pytest.approx(slope, abs=1e-6)


def test_fresh_noise_differs_between_calls_and_given_noise_does_not() -> None:
    fresh = SmoothedClassifier(affine(3, (5,)), Gaussian(0.5), 10, stream=Stream(0))
    assert not torch.equal(fresh(X), fresh(X))
    given = SmoothedClassifier(affine(3, (5,)), Gaussian(0.5), 10, stream=Stream(0), fresh=False)
    assert torch.equal(given(X), given(X))
    same_input = X[:1].expand(2, -1)
    assert not torch.equal(fresh(same_input)[0], fresh(same_input)[1])  # nor is noise shared in a batch


def test_a_class_without_votes_is_finite() -> None:
    g = SmoothedClassifier(Threshold(100.0).eval(), Gaussian(0.5), 10, stream=Stream(0), hard=True)
    assert torch.isfinite(g(torch.zeros(1, 1))).all()


def test_refusals() -> None:
    with pytest.raises(InputError, match="need an integer samples >= 1; got 0"):
        SmoothedClassifier(affine(3, (5,)), Gaussian(0.5), 0, stream=Stream(0))
    with pytest.raises(InputError, match=r"need x of shape \(n, ...\)"):
        SmoothedClassifier(affine(3, (5,)), Gaussian(0.5), 1, stream=Stream(0))(torch.zeros(5))
