"""The adaptive certifiers' values, invariances and refusals."""

import pytest
import torch
from scipy.special import ndtri

from certify import ABSTAIN, Gaussian, InputError, Smoothing, Stream
from certify.adaptive import AdaptiveSmoothing, ToleranceSmoothing
from certify.binomial import lower_confidence_bound, randomized_lower_bound
from tests.classifiers import Threshold, affine, threshold_with_probability

GRID = AdaptiveSmoothing(Gaussian(0.5), (0.0, 0.25, 0.5, 1.0), n_max=20_000, alpha=0.001, box=None)


@pytest.mark.parametrize(("p", "largest"), [(0.55, 0.0), (0.75, 0.25), (0.9, 0.5), (0.9999, 1.0)])
def test_finds_the_largest_radius_of_the_grid(p: float, largest: float) -> None:
    model, radius = threshold_with_probability(p, 0.5)
    assert largest < radius
    c = GRID(model, torch.zeros(20, 1), rng=Stream(0))
    assert c.radius.max() == largest
    assert (c.radius == largest).sum() >= 18
    assert (c.prediction[c.radius > 0] == 0).all()
    assert (c.samples < 0.5 * 20_000).all()


def test_gives_up_early_where_no_class_wins() -> None:
    c = GRID(Threshold(0.0).eval(), torch.zeros(30, 1), rng=Stream(0))
    assert (c.prediction == ABSTAIN).sum() >= 29
    assert c.samples.double().mean() < 6000
    stubborn = AdaptiveSmoothing(Gaussian(0.5), (0.0,), n_max=2000, futility=0.0, box=None)
    assert stubborn(Threshold(0.0).eval(), torch.zeros(3, 1), rng=Stream(0)).samples.tolist() == [2100] * 3


def test_numbers_do_not_depend_on_company() -> None:
    model = affine(4, (6,), seed=2)
    x = torch.rand(12, 6, generator=torch.Generator().manual_seed(0))
    streams = [Stream(1).child(i) for i in range(12)]
    whole = GRID(model, x, rng=streams)
    for i in (0, 5, 11):
        alone = GRID(model, x[i : i + 1], rng=[streams[i]])
        assert alone.samples[0] == whole.samples[i]
        assert alone.radius[0] == whole.radius[i]
        assert whole.counts is not None
        assert alone.counts is not None
        assert torch.equal(alone.counts[0], whole.counts[i])


def test_unanimous_votes_stop_soon() -> None:
    c = AdaptiveSmoothing(Gaussian(0.5), (0.5,), box=None)(Threshold(100.0).eval(), torch.zeros(1, 1), rng=Stream(0))
    assert c.radius.tolist() == [0.5]
    assert c.samples.tolist() == [100 + 64]  # 55 would do; votes come 16 at a time


def test_tolerance_is_met_and_the_radius_is_true() -> None:
    model, radius = threshold_with_probability(0.9, 1.0)
    c = ToleranceSmoothing(Gaussian(1.0), 0.1, box=None)(model, torch.zeros(10, 1), rng=Stream(0))
    assert (c.radius <= radius).all()
    assert (c.radius >= radius - 0.1).all()
    assert (c.samples < 40_000).all()


def test_tolerance_abstains_below_one_half_and_goes_on_when_unanimous() -> None:
    method = ToleranceSmoothing(Gaussian(1.0), 0.1, n_max=1000, n0=1, box=None)
    low = method(Threshold(-1.0).eval(), torch.zeros(20, 1), rng=Stream(0))
    wrong = low.prediction == 0
    assert not wrong.any()
    sure = method(Threshold(100.0).eval(), torch.zeros(1, 1), rng=Stream(0))
    assert sure.samples.tolist() == [1001]
    assert 2.0 < float(sure.radius[0]) < float(ndtri(lower_confidence_bound(1000, 1000, 0.001)))


def test_randomized_bound_is_stored_with_its_draw() -> None:
    method = Smoothing(Gaussian(1.0), n=1000, alpha=0.001, randomized=True, box=None)
    model, _ = threshold_with_probability(0.999, 1.0)
    c = method(model, torch.zeros(5, 1), rng=Stream(0))
    assert c.w is not None
    assert c.counts is not None
    assert len(set(c.w.tolist())) == 5
    for counts, w, radius in zip(c.counts.tolist(), c.w.tolist(), c.radius.tolist(), strict=True):
        assert radius == Gaussian(1.0).radius(randomized_lower_bound(counts[0], 1000, 0.001, w))
        assert radius >= Gaussian(1.0).radius(lower_confidence_bound(counts[0], 1000, 0.001))
    again = method(model, torch.zeros(5, 1), rng=Stream(0))
    assert again.w is not None
    assert torch.equal(again.w, c.w)  # never drawn again
    with pytest.raises(InputError, match="need the example's w, drawn once"):
        method.radius([1000, 0], 0)


def test_randomized_bound_values() -> None:
    assert randomized_lower_bound(10, 10, 0.01, 0.5) == pytest.approx((0.01 / 0.5) ** 0.1, rel=1e-12)
    assert randomized_lower_bound(10, 10, 0.01, 0.001) == pytest.approx((1 / 1.001) ** 0.1, rel=1e-12)  # capped
    assert randomized_lower_bound(0, 10, 0.01, 0.5) == 0.0
    for k in (0, 1, 57, 99):
        plain, next_up = (lower_confidence_bound(j, 100, 0.01) for j in (k, k + 1))
        almost_one, almost_zero = (randomized_lower_bound(k, 100, 0.01, w) for w in (1 - 1e-9, 1e-9))
        assert almost_one == pytest.approx(plain, abs=1e-6)
        assert almost_zero == pytest.approx(next_up, rel=1e-5)
    by_w = [randomized_lower_bound(90, 100, 0.01, w) for w in (0.1, 0.5, 0.9)]
    assert by_w == sorted(by_w, reverse=True)
    with pytest.raises(InputError, match=r"need 0 < w < 1; got 0\.0"):
        randomized_lower_bound(1, 2, 0.1, 0.0)


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"radii": ()}, "in increasing order"),
        ({"radii": (0.5, 0.25)}, "in increasing order"),
        ({"radii": (-0.5, 0.25)}, "radii >= 0"),
        ({"radii": (0.0, float("inf"))}, "need finite radii"),
        ({"radii": (0.0, 100.0)}, "proves no radius of 100, not even from certainty"),
        ({"futility": 1.0}, "need 0 <= futility < 1"),
        ({"n_max": 0}, "need an integer n_max >= 1"),
        ({"alpha": 1.0}, "need 0 < alpha < 1"),
    ],
)
def test_refuses_settings(change: dict[str, object], rule: str) -> None:
    with pytest.raises(InputError, match=rule):
        AdaptiveSmoothing(**{"noise": Gaussian(0.5), "radii": (0.0,), **change})  # type: ignore[arg-type]


def test_refuses_tolerance() -> None:
    with pytest.raises(InputError, match="need a finite tolerance > 0; got 0"):
        ToleranceSmoothing(Gaussian(1.0), 0.0)
    with pytest.raises(InputError, match="need runner_up = 0 with randomized bounds"):
        Smoothing(Gaussian(1.0), randomized=True, runner_up=0.1)
