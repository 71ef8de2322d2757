"""Certified Lipschitz constants and gradient oscillation: closed forms, dense Jacobians, sampled points."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from certify import InputError, Threat, UnsupportedModule
from certify.interval import IBP, Interval
from certify.layers import Normalize, Residual
from certify.lipschitz import local_lipschitz, norm_product
from certify.oscillation import gradient_oscillation
from tests.unit.test_interval import ROWS, images, mixed, norm_first, points_in_ball, random_, unflattened


def relu_net() -> nn.Module:
    """ReLU, pooling of both kinds, a residual block and batch norm on (n, 2, 6, 6)."""
    return nn.Sequential(
        Normalize([0.1, 0.5], [0.3, 0.7]),
        nn.Conv2d(2, 4, 3, padding=1, groups=2),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        Residual(nn.Sequential(nn.Conv2d(4, 4, 3, padding="same"), nn.ReLU()), nn.Conv2d(4, 4, 1, bias=False)),
        nn.MaxPool2d(3, stride=2, padding=1),
        nn.AvgPool2d(2, stride=1),
        nn.Flatten(),
        nn.Linear(16, 8),
        nn.ReLU(),
        nn.Linear(8, 3),
    )


NETWORKS: list[Callable[[], nn.Module]] = [mixed, relu_net, norm_first, unflattened]
ORDER = {"Linf": 1, "L2": 2}


def jacobian(model: nn.Module, x: Tensor) -> Tensor:
    """(n, classes, inputs)."""
    rows = [torch.autograd.functional.jacobian(lambda t: model(t[None])[0], point) for point in x]
    return torch.stack(rows).flatten(2)  # type: ignore[arg-type]


def operator_norm(matrices: Tensor, norm: str) -> Tensor:
    return matrices.abs().sum(2).amax(1) if norm == "Linf" else torch.linalg.matrix_norm(matrices, 2)


@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize("make", NETWORKS)
def test_at_eps_zero_it_is_the_norm_of_the_jacobian(make: Callable[[], nn.Module], norm: Any) -> None:
    model, x = random_(make(), 0), images(3, 1)
    dense, y = jacobian(model, x), torch.tensor([0, 1, 2])
    bound = local_lipschitz(model, x, Threat(norm, 0.0), y=y)
    torch.testing.assert_close(bound.interval, operator_norm(dense, norm), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(bound.logits, torch.linalg.vector_norm(dense, ORDER[norm], dim=2), rtol=1e-9, atol=1e-12)
    margins = dense[torch.arange(3), y][:, None] - dense
    torch.testing.assert_close(
        bound.margins, torch.linalg.vector_norm(margins, ORDER[norm], dim=2), rtol=1e-9, atol=1e-12
    )
    assert (bound.operator <= bound.product * (1 + 1e-12)).all()


@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize("eps", [0.0, 0.3, 100.0])
def test_the_affine_classifiers_constants_are_exact_at_any_distance(norm: Any, eps: float) -> None:
    model, x = random_(nn.Sequential(nn.Flatten(), nn.Linear(72, 4)), 2), images(2, 3)
    weight = model[1].weight
    bound = local_lipschitz(model, x, Threat(norm, eps))
    expected = operator_norm(weight[None], norm).expand(2)
    torch.testing.assert_close(bound.interval, expected)
    assert bound.product == pytest.approx(float(expected[0]))
    torch.testing.assert_close(bound.operator, expected)


@settings(max_examples=40, deadline=None)
@given(
    make=st.sampled_from(NETWORKS),
    norm=st.sampled_from(["Linf", "L2"]),
    eps=st.sampled_from([1e-4, 0.01, 0.3]),
    seed=st.integers(0, 2**16),
)
def test_no_pair_of_points_changes_faster(make: Callable[[], nn.Module], norm: Any, eps: float, seed: int) -> None:
    model, x, threat = random_(make(), seed), images(2, seed + 1), Threat(norm, eps, box=None)
    y = torch.tensor([0, 2])
    bound = local_lipschitz(model, x, threat, y=y)
    points = points_in_ball(x, threat, 20, seed + 2)
    order = {"Linf": torch.inf, "L2": 2}[norm]
    for a, b in pairwise(points):
        near = torch.lerp(a, b, 1e-3)  # close pairs meet the slope, far pairs its mean
        for one, other in ((a, b), (a, near)):
            distance = torch.linalg.vector_norm((one - other).flatten(1), order, dim=1)
            change = model(one) - model(other)
            slack = 1 + 1e-6
            assert (torch.linalg.vector_norm(change, order, dim=1) <= slack * bound.operator * distance).all()
            assert (change.abs() <= slack * bound.logits * distance[:, None]).all()
            margins = change.gather(1, y[:, None]) - change
            assert (margins.abs() <= slack * bound.margins * distance[:, None] + 1e-12).all()


@settings(max_examples=30, deadline=None)
@given(make=st.sampled_from(NETWORKS), eps=st.sampled_from([0.0, 0.01, 0.2]), seed=st.integers(0, 2**16))
def test_the_jacobian_at_sampled_points_is_below_both_bounds(
    make: Callable[[], nn.Module], eps: float, seed: int
) -> None:
    model, x = random_(make(), seed), images(2, seed + 1)
    for norm in ("Linf", "L2"):
        threat = Threat(norm, eps)  # type: ignore[arg-type]
        bound = local_lipschitz(model, x, threat)
        for z in points_in_ball(x, threat, 8, seed + 2):
            assert (operator_norm(jacobian(model, z), norm) <= bound.operator * (1 + 1e-9)).all()


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(2, 3, 3, padding=1),
        nn.Conv2d(2, 4, 3, stride=2, groups=2),
        nn.Conv2d(2, 3, (1, 2), dilation=2, padding=1),
        nn.MaxPool2d(3, stride=2),
        nn.MaxPool2d(2),
        nn.MaxPool2d(2, stride=2, dilation=2),
        nn.MaxPool2d((2, 3), stride=(4, 2), dilation=(2, 1), padding=1),
        nn.MaxPool2d(2, stride=3, dilation=3),
        nn.Linear(6, 3),
        nn.AvgPool2d(3, stride=1, padding=1),
        nn.AdaptiveAvgPool2d(1),
        Normalize([0.0, 0.1], [0.2, 3.0]),
        nn.BatchNorm2d(2),
        Residual(nn.Conv2d(2, 2, 3, padding=1), nn.Identity()),
    ],
)
def test_the_norm_of_a_layer_bounds_that_of_its_matrix(layer: nn.Module) -> None:
    random_(layer, 4)
    for x in images(5, 5):
        matrix = torch.autograd.functional.jacobian(lambda t: layer(t[None]).flatten(), x).flatten(1)  # type: ignore[union-attr]
        for norm in ("Linf", "L2"):
            true = float(operator_norm(matrix[None], norm))
            assert true <= norm_product(layer, x.shape, norm) * (1 + 1e-12)
            if not isinstance(layer, nn.MaxPool2d | Residual) and norm == "Linf":
                assert norm_product(layer, x.shape, norm) == pytest.approx(true)


def test_overlapping_windows_count_an_input_more_than_once() -> None:
    """One peak in the middle is the maximum of four windows: in L2 its slope is 2, not 1."""
    pool, x = nn.MaxPool2d(3, stride=2, padding=0).eval(), torch.zeros(1, 5, 5, dtype=torch.float64)
    x[0, 2, 2] = 1.0
    matrix = torch.autograd.functional.jacobian(lambda t: pool(t[None]).flatten(), x).flatten(1)  # type: ignore[union-attr]
    assert float(operator_norm(matrix[None], "L2")) == pytest.approx(2.0)
    assert norm_product(pool, x.shape, "L2") == 2.0


@pytest.mark.parametrize(
    ("pool", "expected"),
    [
        (nn.MaxPool2d(2, stride=2, dilation=2), 2.0),
        (nn.MaxPool2d(2, stride=1, dilation=2), 2.0),
        (nn.MaxPool2d((3, 2), stride=(4, 2), dilation=(2, 1)), 2**0.5),  # along the height 0, 2, 4 meet 0 and 4
        (nn.MaxPool2d(2, stride=2, dilation=1), 1.0),
        (nn.MaxPool2d(2, stride=3, dilation=2), 1.0),
    ],
)
def test_windows_of_a_dilated_pool_overlap_where_their_taps_do(pool: nn.MaxPool2d, expected: float) -> None:
    """A peak at each place in turn is the maximum of every window that it is in."""
    peaks = torch.eye(144, dtype=torch.float64).view(144, 1, 12, 12)
    windows = pool(peaks).flatten(1).sum(1).max()
    assert float(windows.sqrt()) == pytest.approx(expected)
    assert norm_product(pool.eval(), torch.Size([1, 12, 12]), "L2") == pytest.approx(expected)
    assert norm_product(pool.eval(), torch.Size([1, 12, 12]), "Linf") == 1.0


def test_products_of_smooth_activations() -> None:
    sigmoid = nn.Sequential(nn.Flatten(), nn.Sigmoid(), nn.LeakyReLU(2.0))
    assert norm_product(sigmoid.eval(), torch.Size([1, 2, 2]), "L2") == 0.5


def halved(prefix: nn.Module, x: Tensor) -> Interval:
    """Bounds on the same inputs as a threat of 0.02, from one of half the size: not sound, but seen to be used."""
    return IBP(Threat("Linf", 0.01)).bounds(prefix, x.double())


def test_tighter_bounds_before_activations_tighten_the_constant() -> None:
    model, x = random_(relu_net(), 6), images(3, 7)
    wide, narrow = (local_lipschitz(model, x, Threat("Linf", e)).interval for e in (0.02, 0.01))
    helped = local_lipschitz(model, x, Threat("Linf", 0.02), tighter=halved).interval
    assert (helped < wide).all()
    assert (helped >= narrow * (1 - 1e-9)).all()
    y = torch.tensor([0, 1, 2])
    plain = gradient_oscillation(model, x, y, Threat("Linf", 0.02))
    assert (gradient_oscillation(model, x, y, Threat("Linf", 0.02), tighter=halved) < plain).all()


# --- oscillation --------------------------------------------------------------------------------------------------


def parameter_gradient(model: nn.Module, z: Tensor, y: Tensor) -> Tensor:
    """(n, parameters)."""
    parameters = list(model.parameters())
    rows = []
    for point, label in zip(z, y, strict=True):
        loss = cross_entropy(model(point[None]), label[None])
        rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)]))
    return torch.stack(rows)


@settings(max_examples=25, deadline=None)
@given(
    make=st.sampled_from(NETWORKS),
    norm=st.sampled_from(["Linf", "L2", "L1"]),
    eps=st.sampled_from([1e-3, 0.02, 0.3]),
    seed=st.integers(0, 2**16),
)
def test_no_two_gradients_are_farther_apart(make: Callable[[], nn.Module], norm: Any, eps: float, seed: int) -> None:
    model, x, y = random_(make(), seed), images(2, seed + 1), torch.tensor([0, 2])
    threat = Threat(norm, eps)
    bound = gradient_oscillation(model, x, y, Threat(norm, eps))
    model.requires_grad_(True)
    gradients = torch.stack([parameter_gradient(model, z, y) for z in points_in_ball(x, threat, 8, seed + 2)])
    apart = (gradients[:, None] - gradients[None]).norm(dim=3).amax((0, 1))
    assert (apart <= bound * (1 + 1e-9)).all()


def widest(model: nn.Module, x: Tensor, y: Tensor, threat: Threat, seed: int) -> Tensor:
    """(n,) the largest distance between parameter gradients at sampled points."""
    model.requires_grad_(True)
    gradients = torch.stack([parameter_gradient(model, z, y) for z in points_in_ball(x, threat, 12, seed)])
    return (gradients[:, None] - gradients[None]).norm(dim=3).amax((0, 1))


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
@pytest.mark.parametrize("name", [name for name in ROWS if name != "max pool"])
def test_gradients_on_inputs_that_are_not_flattened(name: str, norm: Any) -> None:
    for seed in range(4):
        model, y, threat = random_(ROWS[name](), seed), torch.tensor([0, 2]), Threat(norm, 0.05, box=None)
        x = torch.rand(2, 2, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed + 1))
        bound = gradient_oscillation(model, x, y, threat)
        assert (widest(model, x, y, threat, seed + 2) <= bound * (1 + 1e-9)).all()
        assert (gradient_oscillation(model.requires_grad_(False), x, y, Threat(norm, 0.0, box=None)) < 1e-12).all()


def test_the_gradient_of_a_weight_is_a_sum_over_positions() -> None:
    """W = 0 and logits of b alone: the weight's gradient is an outer product with x, which moves by 0.02 at most."""
    generator = torch.Generator().manual_seed(0)
    model = random_(nn.Sequential(nn.Linear(8, 8), nn.Flatten(), nn.Linear(8, 2)), 1)
    model[0].weight.zero_()
    x = torch.rand(1, 1, 8, dtype=torch.float64, generator=generator)
    y, threat = torch.tensor([0]), Threat("Linf", 0.01, box=None)
    bound = float(gradient_oscillation(model, x, y, threat))
    model.requires_grad_(True)
    ends = parameter_gradient(model, torch.cat([x - 0.01, x + 0.01]), torch.tensor([0, 0]))
    assert float((ends[0] - ends[1]).norm()) <= bound * (1 + 1e-9)
    assert float((ends[0] - ends[1]).norm()) >= 0.9 * bound  # the gradient of the rest does not move


def test_parameters_in_two_places_are_refused() -> None:
    """Their gradient is the sum of the places', and its width up to the sum of the widths: more than the root."""
    twice = nn.Linear(2, 2)
    tied = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    tied[1].bias = tied[0].bias
    x, y = torch.rand(1, 2, generator=torch.Generator().manual_seed(0)), torch.tensor([0])
    for model in (nn.Sequential(twice, twice), tied, nn.Sequential(Residual(twice, twice))):
        with pytest.raises(UnsupportedModule, match="need each parameter in one place; got one in two, "):
            gradient_oscillation(model.eval(), x, y, Threat("Linf", 0.1))
    relu = nn.ReLU()  # without parameters it may occur again
    model = random_(nn.Sequential(nn.Linear(2, 8), relu, nn.Linear(8, 8), relu, nn.Linear(8, 2)), 0)
    assert float(gradient_oscillation(model, x, y, Threat("Linf", 0.1))) > 0


def test_oscillation_vanishes_with_the_ball() -> None:
    model, x, y = random_(relu_net(), 8), images(3, 9), torch.tensor([0, 1, 2])
    assert (gradient_oscillation(model, x, y, Threat("Linf", 0.0)) < 1e-12).all()
    small, large = (gradient_oscillation(model, x, y, Threat("Linf", e, box=None)) for e in (1e-8, 2e-8))
    torch.testing.assert_close(large, 2 * small, rtol=1e-4, atol=0)


def test_oscillation_of_logistic_regression_at_zero_is_the_jump_of_the_gradient() -> None:
    """At weight 0 both probabilities are 1/2 whatever the input: the gradient is +-x / 2."""
    model = nn.Sequential(nn.Linear(2, 2, bias=False)).double().eval().requires_grad_(False)
    model[0].weight.zero_()
    bound = gradient_oscillation(
        model, torch.full((1, 2), 0.5, dtype=torch.float64), torch.tensor([0]), Threat("Linf", 0.1, box=None)
    )
    # Two rows of two entries, each in +-(x_j +- 0.1) / 2: widths 0.1, and the norm of four of them.
    assert float(bound) == pytest.approx(0.2)


def test_what_is_refused() -> None:
    model, x = nn.Sequential(nn.Flatten(), nn.Linear(4, 2)).eval(), torch.rand(2, 1, 2, 2)
    with pytest.raises(InputError, match="need a threat in Linf or L2; got L1"):
        local_lipschitz(model, x, Threat("L1", 0.1))
    with pytest.raises(InputError, match="need a model in evaluation mode"):
        local_lipschitz(nn.Sequential(nn.Linear(2, 2)), torch.rand(1, 2), Threat("L2", 0.1))
    with pytest.raises(InputError, match=r"need inputs in \[0, 1\]"):
        local_lipschitz(model, 2 + x, Threat("L2", 0.1))
    with pytest.raises(InputError, match=r"need y of shape \(2,\); got \(3,\)"):
        gradient_oscillation(model, x, torch.zeros(3, dtype=torch.int64), Threat("L2", 0.1))
    with pytest.raises(UnsupportedModule, match="no interval rule for GELU"):
        local_lipschitz(nn.Sequential(nn.GELU()).eval(), torch.rand(1, 2), Threat("L2", 0.1))
    pool = nn.Sequential(nn.MaxPool2d(2, ceil_mode=True), nn.Flatten()).eval()
    with pytest.raises(UnsupportedModule, match="without dilation and ceil_mode for derivatives"):
        local_lipschitz(pool, torch.rand(1, 1, 3, 3), Threat("L2", 0.1))
    flat = nn.Sequential(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4, 2)).eval()
    with pytest.raises(UnsupportedModule, match=r"need images .* before MaxPool2d for derivatives; got \(2, 4, 4\)"):
        local_lipschitz(flat, torch.rand(2, 4, 4), Threat("L2", 0.1))
    along = nn.Sequential(nn.Linear(8, 2)).eval()
    for call in (
        lambda: local_lipschitz(along, torch.rand(2, 2, 8), Threat("L2", 0.1)),
        lambda: gradient_oscillation(along, torch.rand(2, 2, 8), torch.tensor([0, 1]), Threat("L2", 0.1)),
    ):
        with pytest.raises(InputError, match=r"need a network with logits \(n, classes\); got"):
            call()
    with pytest.raises(UnsupportedModule, match="need a Residual of equal shapes"):
        norm_product(Residual(nn.Linear(4, 1), nn.Identity()).eval(), torch.Size([4]), "L2")
    with pytest.raises(UnsupportedModule, match="need as many channels as Normalize has, 2"):
        norm_product(Normalize([0.0, 0.0], [1.0, 1.0]).eval(), torch.Size([1, 4]), "L2")


def test_a_negative_deviation_scales_by_its_magnitude() -> None:
    assert norm_product(Normalize([0.0, 0.0], [-0.5, 2.0]).eval(), torch.Size([2]), "L2") == 2.0
