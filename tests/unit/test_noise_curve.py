"""Accuracy in noise, and the noise that predicts the nearest error: closed forms of affine classifiers."""

import math
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure
from scipy.special import bdtr, bdtrc, ndtr, ndtri
from torch import Tensor

from analysis.boundary_distance import BoundaryDistances, NoiseAndBoundary
from analysis.noise_curve import NoiseCurve, NoiseLevels
from certify import InputError, Stream, lower_confidence_bound, upper_confidence_bound
from figures.accuracy_in_noise import _draw as draw_noise
from figures.accuracy_in_noise import accuracy_in_noise
from figures.boundary_distance import _draw as draw_distances
from figures.boundary_distance import boundary_distance
from tests.classifiers import Affine, affine

FALSE_ALARM = 1e-9
MODEL = affine(2, (6,), seed=1)
W = (MODEL.linear.weight[0] - MODEL.linear.weight[1]).detach().double()


def inputs(distances: list[float]) -> tuple[Tensor, Tensor]:
    """Inputs at these distances from the boundary, all of class 0; a negative one is on the other side."""
    bias = float((MODEL.linear.bias[0] - MODEL.linear.bias[1]).detach())
    unit = W / W.norm()
    on_boundary = -bias / float(W.norm()) * unit
    x = on_boundary + torch.tensor(distances, dtype=torch.float64)[:, None] * unit
    return x.float(), torch.zeros(len(distances), dtype=torch.int64)


# --- accuracy in noise --------------------------------------------------------------------------------------------


def test_accuracy_in_noise_is_phi() -> None:
    """400 inputs at distance 0.3, 10 draws: 4,000 independent trials of probability Phi(0.3 / sigma)."""
    x, y = inputs([0.3] * 400)
    sigmas = (0.0, 0.1, 0.3, 1.0)
    curve = NoiseLevels(sigmas)(MODEL, x, y, rng=Stream(0))
    assert curve.correct.shape == (4, 10)
    assert curve.correct[0].tolist() == [400] * 10
    for level, sigma in enumerate(sigmas[1:], start=1):
        right, p = int(curve.correct[level].sum()), float(ndtr(0.3 / sigma))
        assert min(bdtr(right, 4000, p), bdtrc(right - 1, 4000, p)) > FALSE_ALARM
        # Draws of their own: their counts spread as binomials do.
        expected = math.sqrt(p * (1 - p) / 400)
        assert 0.2 * expected < float(curve.sd[level]) < 2.5 * expected
    assert float(curve.sd[0]) == 0


def test_interval_is_the_exact_one_of_the_first_draw() -> None:
    x, y = inputs([0.1, 0.2, 0.3, -0.1] * 10)
    curve = NoiseLevels((0.2,), rho=0.1)(MODEL, x, y, rng=Stream(1))
    first = int(curve.correct[0, 0])
    assert curve.interval == [(lower_confidence_bound(first, 40, 0.05), upper_confidence_bound(first, 40, 0.05))]
    assert float(curve.mean[0]) == pytest.approx(float(curve.correct.double().mean()) / 40)
    assert float(curve.sd[0]) == pytest.approx(float((curve.correct[0].double() / 40).std()))


def test_an_example_does_not_see_the_others() -> None:
    """Counts of all are the sum of counts of a first part and of the rest, moved to its place."""
    x, y = inputs([0.1, 0.3, 0.2, 0.4, 0.1])
    levels = NoiseLevels((0.2, 0.5), draws=20)
    every = levels(MODEL, x, y, rng=Stream(2)).correct
    head = levels(MODEL, x[:4], y[:4], rng=Stream(2)).correct
    last = every - head
    assert bool(((last == 0) | (last == 1)).all())


def test_the_box_clips() -> None:
    """Distance 0.3 inside a box that ends before the boundary: clipped noise cannot reach it."""
    model = Affine(torch.tensor([[1.0], [0.0]]), torch.tensor([0.0, -0.25])).eval()
    x, y = torch.full((50, 1), 0.05), torch.zeros(50, dtype=torch.int64)
    free = NoiseLevels((1.0,))(model, x, y, rng=Stream(0))
    clipped = NoiseLevels((1.0,), box=(0.0, 1.0))(model, x, y, rng=Stream(0))
    assert int(clipped.correct.sum()) == 500
    assert int(free.correct.sum()) < 400


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({"sigmas": ()}, "need finite sigmas >= 0, at least one"),
        ({"sigmas": (-0.1,)}, "need finite sigmas >= 0"),
        ({"sigmas": (math.inf,)}, "need finite sigmas >= 0"),
        ({"draws": 1}, "need draws >= 2 for a standard deviation; got 1"),
        ({"draws": 0}, "need an integer draws >= 1; got 0"),
        ({"rho": 0.0}, "need 0 < rho < 1; got 0.0"),
        ({"box": (1.0, 0.0)}, "need box = "),
    ],
)
def test_levels_refuse(options: dict, rule: str) -> None:
    with pytest.raises(InputError, match=rule):
        NoiseLevels(**options)


# --- the nearest error --------------------------------------------------------------------------------------------

DISTANCES = [0.1, 0.5, 1.0, 1.5, -0.2]


@pytest.fixture(scope="module")
def half_spaces() -> BoundaryDistances:
    return NoiseAndBoundary()(MODEL, *inputs(DISTANCES), rng=Stream(0))


def test_distance_is_that_of_the_hyperplane(half_spaces: BoundaryDistances) -> None:
    for found, true in zip(half_spaces.distance.tolist(), DISTANCES, strict=True):
        assert found == pytest.approx(max(true, 0.0), rel=0.01)


def test_sigma_is_that_of_the_half_space_within_monte_carlo_error(half_spaces: BoundaryDistances) -> None:
    """Of 1,000 normals at most 10 are errors below sigma and more above: d / sigma is their 11th largest projection,
    which lies in [1.708, 3.176] except with probability 1e-9: P(Bin(1000, Phi(-t)) >= 11), exactly."""
    low, high = 1.708, 3.176
    assert bdtrc(10, 1000, float(ndtr(-high))) < FALSE_ALARM / 2  # the 11th largest is above `high`
    assert bdtr(10, 1000, float(ndtr(-low))) < FALSE_ALARM / 2  # ... below `low`
    unit = (W / W.norm()).float()
    for i, (sigma, true) in enumerate(zip(half_spaces.sigma.tolist(), DISTANCES, strict=True)):
        if true < 0:
            assert sigma == 0
            continue
        assert true / high - 0.001 < sigma < true / low + 0.001
        # The slow twin: sort the projections themselves.
        normals = torch.empty(1000, 6).normal_(generator=Stream(0).child(i).generator())
        eleventh = float((-normals @ unit).sort(descending=True).values[10])
        assert abs(sigma - true / eleventh) <= 0.0005 + 1e-6


def test_prediction_and_slope(half_spaces: BoundaryDistances) -> None:
    predicted = half_spaces.predicted
    assert predicted.tolist() == pytest.approx([-s * float(ndtri(0.01)) for s in half_spaces.sigma.tolist()])
    assert half_spaces.used.tolist() == [True] * 4 + [False]
    # Each distance over its prediction is the 11th largest projection over 2.326, as above.
    assert 1.708 / 2.327 < half_spaces.slope < 3.176 / 2.326
    made_up = BoundaryDistances(
        torch.tensor([1.0, 2.0, 0.0, math.inf, 1.0]).double(),
        torch.tensor([3.0, 1.0, 0.0, 1.0, math.inf]).double(),
        NoiseAndBoundary(mu=float(ndtr(-1.0)), draws=100),
        0,
    )
    assert made_up.used.tolist() == [True, True, False, False, False]
    assert made_up.slope == pytest.approx((1 * 3 + 2 * 1) / (1 + 4))


def test_far_errors_are_reported_as_such() -> None:
    """Beyond the ceiling there is no scale; where nothing is ever wrong there is no distance either."""
    x, y = inputs([3.0])
    far = NoiseAndBoundary()(MODEL, x, y, rng=Stream(0))
    assert far.sigma.tolist() == [math.inf]
    assert far.distance.tolist() == pytest.approx([3.0], rel=0.01)
    constant = Affine(torch.zeros(2, 6), torch.tensor([1.0, 0.0])).eval()
    never = NoiseAndBoundary(steps=10)(constant, x, y, rng=Stream(0))
    assert never.distance.tolist() == [math.inf]
    assert math.isnan(never.slope)


def test_each_example_by_itself(half_spaces: BoundaryDistances) -> None:
    x, y = inputs(DISTANCES[:2])
    first = NoiseAndBoundary()(MODEL, x, y, rng=Stream(0))
    assert torch.equal(first.sigma, half_spaces.sigma[:2])
    assert torch.equal(first.distance, half_spaces.distance[:2])


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({"mu": 0.5}, "need 0 < mu < 1/2 and mu . draws >= 1; got 0.5, 1000"),
        ({"mu": 0.01, "draws": 99}, "need 0 < mu < 1/2 and mu . draws >= 1; got 0.01, 99"),
        ({"tolerance": 0.0}, "need 0 < tolerance < ceiling, finite; got 0.0, 1.0"),
        ({"ceiling": math.inf}, "need 0 < tolerance < ceiling, finite"),
        ({"steps": 0}, "need an integer steps >= 1; got 0"),
    ],
)
def test_the_search_refuses(options: dict, rule: str) -> None:
    with pytest.raises(InputError, match=rule):
        NoiseAndBoundary(**options)


def test_both_refuse_what_no_attack_takes() -> None:
    x, y = inputs([0.1])
    for method in (NoiseLevels(), NoiseAndBoundary()):
        with pytest.raises(InputError, match="need a model in evaluation mode"):
            method(affine(2, (6,)).train(), x, y, rng=Stream(0))
        with pytest.raises(InputError, match="need x"):
            method(MODEL, x, y[:0], rng=Stream(0))


# --- records and figures ------------------------------------------------------------------------------------------


def test_records_come_back_as_they_were(tmp_path: Path, half_spaces: BoundaryDistances) -> None:
    curve = NoiseLevels((0.1, 0.2), draws=3, box=(-5.0, 5.0))(MODEL, *inputs([0.1, 0.2]), rng=Stream(4))
    curve.save(tmp_path / "curve.npz")
    again = NoiseCurve.load(tmp_path / "curve.npz")
    assert torch.equal(again.correct, curve.correct)
    assert (again.n, again.method, again.seed) == (2, curve.method, 4)
    half_spaces.save(tmp_path / "distances.npz")
    back = BoundaryDistances.load(tmp_path / "distances.npz")
    assert torch.equal(back.sigma, half_spaces.sigma)
    assert torch.equal(back.distance, half_spaces.distance)
    assert back.method == half_spaces.method
    with pytest.raises(InputError, match=r"need a record of kind 'noise_curve'; .* is of kind 'boundary_distances'"):
        NoiseCurve.load(tmp_path / "distances.npz")
    with pytest.raises(InputError, match="need a record of kind 'boundary_distances'"):
        BoundaryDistances.load(tmp_path / "curve.npz")


def test_figures_are_two_pictures_and_a_table_in_three_forms(tmp_path: Path, half_spaces: BoundaryDistances) -> None:
    x, y = inputs([0.1, 0.2, 0.3, 0.4])
    curve = NoiseLevels((0.0, 0.2), draws=3)(MODEL, x, y, rng=Stream(0))
    files = accuracy_in_noise({"one": curve, "two": curve}, tmp_path)
    assert [f.name for f in files] == [f"accuracy_in_noise.{s}" for s in ("png", "pdf", "md", "csv", "tex")]
    rows = files[3].read_text().splitlines()
    assert rows[0] == "network,sigma,mean,sd,lower,upper,draws,n"
    assert len(rows) == 5
    assert rows[1].startswith("one,0,1.0000,0.0000,0.3976,1.0000,3,4")  # 0.025^(1/4) = 0.39763
    files = boundary_distance({"half-spaces": half_spaces}, tmp_path)
    assert [f.name for f in files] == [f"boundary_distance.{s}" for s in ("png", "pdf", "md", "csv", "tex")]
    assert files[3].read_text().splitlines()[1] == f"half-spaces,5,1,0,0,4,{half_spaces.slope:.3f},0.01,1000"
    for draw in (accuracy_in_noise, boundary_distance):
        with pytest.raises(InputError, match="need at least one"):
            draw({}, tmp_path)


def test_networks_are_told_apart_in_grey(half_spaces: BoundaryDistances) -> None:
    curve = NoiseLevels((0.0, 0.2), draws=3)(MODEL, *inputs([0.1, 0.2]), rng=Stream(0))
    figure = Figure()
    draw_noise(figure, {"one": curve, "two": curve, "three": curve})
    means = [bars.lines[0] for bars in figure.axes[0].containers]
    assert len({(line.get_marker(), line.get_linestyle()) for line in means}) == 3
    assert len({line.get_linestyle() for line in means}) == 3
    figure = Figure()
    draw_distances(figure, {"one": half_spaces, "two": half_spaces, "three": half_spaces})
    *points, diagonal = figure.axes[0].lines
    assert len({line.get_marker() for line in points}) == 3
    assert all(line.get_linestyle() == "None" for line in points)
    assert diagonal.get_linestyle() == "--"


def test_only_images_that_the_slope_uses_are_drawn_and_axes_end_where_they_do() -> None:
    sigma = torch.tensor([0.0, 0.5, 1.0, torch.inf, 0.5], dtype=torch.float64)
    distance = torch.tensor([0.0, 4.0, 9.0, 1.0, torch.inf], dtype=torch.float64)
    figure = Figure()
    draw_distances(figure, {"one": BoundaryDistances(sigma, distance, NoiseAndBoundary(), 0)})
    points, diagonal = figure.axes[0].lines
    assert str(points.get_label()).startswith("one: 2 of 5 images, slope ")
    assert list(points.get_ydata()) == [4.0, 9.0]
    largest = float(max(points.get_xdata()))
    assert figure.axes[0].get_xlim()[1] == pytest.approx(1.05 * largest), "not where the line of half-spaces would end"
    assert list(diagonal.get_xdata()) == list(diagonal.get_ydata()) == [0.0, largest]


def test_the_axis_of_accuracy_begins_near_the_data() -> None:
    right = torch.arange(200) < torch.tensor([[190, 190], [180, 178]])[:, :, None]
    figure = Figure()
    draw_noise(figure, {"one": NoiseCurve(right, NoiseLevels((0.0, 0.2), draws=2), 0)})
    assert figure.axes[0].get_ylim()[0] > 0.8
    assert figure.axes[0].get_title().startswith("Accuracy in Gaussian noise.")
