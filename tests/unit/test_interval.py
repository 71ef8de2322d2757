"""Interval bounds: every rule against sampled points, dense matrices and exact fractions."""

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from certify import ABSTAIN, Deterministic, InputError, Threat, UnsupportedModule
from certify.interval import IBP, RULES, layers
from certify.layers import Normalize, Residual
from certify.lirpa import CROWN

NORMS = ("Linf", "L2", "L1")


def random_(module: nn.Module, seed: int) -> nn.Module:
    """Parameters and statistics drawn from a generator of their own, in evaluation mode and float64."""
    generator = torch.Generator().manual_seed(seed)
    for tensor in [*module.parameters(), *module.buffers()]:
        if tensor.is_floating_point():
            tensor.data.uniform_(-1.0, 1.0, generator=generator)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
            assert part.running_var is not None
            part.running_var.abs_()
        if isinstance(part, Normalize):
            part.std.abs_().add_(0.1)
    return module.double().eval().requires_grad_(False)


def mixed() -> nn.Module:
    """Every layer that has a rule, in one network on (n, 2, 6, 6)."""
    return nn.Sequential(
        Normalize([0.1, 0.5], [0.3, 0.7]),
        nn.Conv2d(2, 4, 3, padding=1, groups=2),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        Residual(nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.LeakyReLU(0.1)), nn.Identity()),
        nn.Sequential(nn.MaxPool2d(2), nn.Tanh()),
        nn.AvgPool2d(2, stride=1, padding=1),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(16, 6),
        nn.BatchNorm1d(6),
        nn.Sigmoid(),
        nn.Linear(6, 3),
    )


def mixed_head_less() -> nn.Module:
    """Ends in an activation: no last linear layer to merge."""
    return nn.Sequential(nn.Flatten(), nn.Linear(72, 5), nn.ReLU())


def activation_first() -> nn.Module:
    """No affine layer meets the ball: only its box does."""
    return nn.Sequential(nn.Tanh(), nn.Flatten(), nn.Linear(72, 3))


def norm_first() -> nn.Module:
    """A shortcut of nothing but the input: both branches see the ball itself."""
    return nn.Sequential(
        nn.BatchNorm2d(2),
        Residual(nn.Conv2d(2, 2, 1), nn.Identity()),
        Residual(nn.Identity(), nn.Identity()),
        nn.Flatten(),
        nn.Linear(72, 3),
    )


def unflattened() -> nn.Module:
    """Linear layers along the last axis of images: each channel has a scale of its own, and all of them one weight."""
    return nn.Sequential(
        Normalize([0.1, 0.5], [3.0, 0.2]),
        nn.Linear(6, 6),
        nn.LeakyReLU(0.1),
        Residual(nn.Sequential(nn.Linear(6, 6, bias=False), nn.Tanh()), nn.Identity()),
        nn.MaxPool2d(2),
        nn.Linear(3, 4),
        nn.Flatten(),
        nn.Linear(24, 3),
    )


NETWORKS: list[Callable[[], nn.Module]] = [mixed, mixed_head_less, activation_first, norm_first, unflattened]


def images(n: int, seed: int) -> Tensor:
    return torch.rand(n, 2, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def points_in_ball(x: Tensor, threat: Threat, count: int, seed: int) -> Tensor:
    """(count, n, ...) points of the threat around x, many of them extreme."""
    generator = torch.Generator().manual_seed(seed)
    d = torch.empty(count, *x.shape, dtype=x.dtype).uniform_(-1, 1, generator=generator)
    if threat.norm == "Linf":
        d[: count // 2] = d[: count // 2].sign()
    elif threat.norm == "L2":
        d /= torch.linalg.vector_norm(d.flatten(2), dim=2).view(count, -1, *[1] * (x.ndim - 1))
    else:
        flat = d.flatten(2)
        keep = torch.nn.functional.one_hot(flat.abs().argmax(2), flat.shape[2])
        d = (flat.sign() * keep).view_as(d)
    z = x + threat.eps * d
    return z.clamp(*threat.box) if threat.norm == "Linf" and threat.box is not None else z


def test_the_network_of_the_tests_has_every_layer() -> None:
    def all_layers(model: nn.Module) -> set[type[nn.Module]]:
        return {
            t
            for part in layers(model)
            for t in ({type(part)} | (all_layers(part.body) if isinstance(part, Residual) else set()))
        }

    assert all_layers(mixed()) | {nn.Identity} == set(RULES)


@pytest.mark.parametrize("make", NETWORKS)
@pytest.mark.parametrize("norm", NORMS)
def test_at_eps_zero_it_is_the_model(make: Callable[[], nn.Module], norm: Any) -> None:
    model, x = random_(make(), 0), images(5, 1)
    ends = IBP(Threat(norm, 0.0)).bounds(model, x)
    torch.testing.assert_close(ends.lower, model(x), rtol=0, atol=1e-13)
    torch.testing.assert_close(ends.upper, model(x), rtol=0, atol=1e-13)


@settings(max_examples=60, deadline=None)
@given(
    make=st.sampled_from(NETWORKS),
    norm=st.sampled_from(NORMS),
    eps=st.sampled_from([1e-6, 0.01, 0.3, 5.0]),
    box=st.sampled_from([None, (0.0, 1.0)]),
    outward=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_sampled_points_lie_inside(
    make: Callable[[], nn.Module], norm: Any, eps: float, box: Any, outward: bool, seed: int
) -> None:
    model, x, threat = random_(make(), seed), images(2, seed + 1), Threat(norm, eps, box=box)
    method = IBP(threat, outward=outward)
    ends = method.bounds(model, x)
    y = torch.tensor([0, 2])
    margins = method.margins(model, x, y)
    tolerance = 0.0 if outward else 1e-12
    for z in points_in_ball(x, threat, 40, seed + 2):
        logits = model(z)
        # What is computed at the points is rounded too: 1e-12 is for that alone.
        assert (logits >= ends.lower - tolerance - 1e-12).all()
        assert (logits <= ends.upper + tolerance + 1e-12).all()
        assert (logits.gather(1, y[:, None]) - logits >= margins - 2e-12).all()


def matrix_of(module: nn.Module, x: Tensor) -> Tensor:
    """(outputs, inputs) of an affine network, by its Jacobian."""
    return torch.autograd.functional.jacobian(lambda t: module(t).flatten(), x[:1]).flatten(1)  # type: ignore[no-any-return]


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(72, 7)),
        lambda: nn.Sequential(Normalize([0.2, 0.3], [0.5, 2.0]), nn.Flatten(), nn.Linear(72, 7)),
        lambda: nn.Sequential(nn.BatchNorm2d(2), nn.Conv2d(2, 3, 3, padding=1)),
        lambda: nn.Sequential(Normalize([0.2, 0.3], [0.5, 2.0]), nn.Conv2d(2, 4, (3, 2), 2, (1, 1), 1, groups=2)),
        lambda: nn.Sequential(nn.Conv2d(2, 3, 3, padding="same", dilation=2)),
        lambda: nn.Sequential(nn.Conv2d(2, 3, 5, padding=4, bias=False)),
        # Along the last axis, of 6: outputs as many as channels, as many as inputs, and neither.
        lambda: nn.Sequential(Normalize([0.2, 0.3], [0.5, 2.0]), nn.Linear(6, 2)),
        lambda: nn.Sequential(Normalize([0.2, 0.3], [0.5, 2.0]), nn.Linear(6, 6, bias=False)),
        lambda: nn.Sequential(nn.BatchNorm2d(2), nn.Linear(6, 5)),
    ],
)
def test_the_first_affine_layer_is_exact_in_the_dual_norm(make: Callable[[], nn.Module], norm: Any) -> None:
    model, x = random_(make(), 3), images(4, 4)
    matrix = matrix_of(model, x)
    order = {"Linf": 1, "L2": 2, "L1": torch.inf}[norm]
    reach = 0.3 * torch.linalg.vector_norm(matrix, order, dim=1)
    eps = torch.tensor([0.3, 0.0, 0.6, 0.3], dtype=torch.float64)
    ends = IBP(Threat(norm, 0.3, box=None)).bounds(model, x, eps)
    expected = (eps / 0.3)[:, None] * reach
    torch.testing.assert_close((ends.upper - ends.lower).flatten(1) / 2, expected, rtol=1e-10, atol=1e-13)
    torch.testing.assert_close(ends.center, model(x), rtol=1e-10, atol=1e-12)


def worst_points(model: nn.Module, x: Tensor, threat: Threat) -> list[Tensor]:
    """Per logit and sign, the end of the ball that the gradient at x points to: for an affine network the worst one."""
    found = []
    for k in range(model(x).shape[1]):
        leaf = x.clone().requires_grad_()
        (g,) = torch.autograd.grad(model(leaf)[:, k].sum(), leaf)
        flat = g.flatten(1)
        if threat.norm == "L1":
            flat = flat.sign() * torch.nn.functional.one_hot(flat.abs().argmax(1), flat.shape[1])
        else:
            flat = flat.sign() if threat.norm == "Linf" else flat / flat.norm(dim=1, keepdim=True).clamp_min(1e-300)
        found += [x + sign * threat.eps * flat.view_as(x) for sign in (-1, 1)]
    return found


ROWS: dict[str, Callable[[], nn.Module]] = {
    "square": lambda: nn.Sequential(Normalize([0.0, 0.3], [1.0, 0.1]), nn.Linear(6, 2), nn.Flatten(), nn.Linear(4, 3)),
    "normalize": lambda: nn.Sequential(
        Normalize([0.2, 0.3], [0.1, 2.0]), nn.Linear(6, 4), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3)
    ),
    "batch norm": lambda: nn.Sequential(
        nn.BatchNorm1d(2), nn.Linear(6, 2), nn.Tanh(), nn.BatchNorm1d(2), nn.Flatten(), nn.Linear(4, 3)
    ),
    "residual": lambda: nn.Sequential(
        Normalize([0.2, 0.3], [0.1, 2.0]),
        Residual(nn.Linear(6, 6), nn.Sequential(nn.Linear(6, 6), nn.Sigmoid())),
        nn.Flatten(),
        nn.Linear(12, 3),
    ),
    "activation first": lambda: nn.Sequential(nn.LeakyReLU(0.2), nn.Linear(6, 2), nn.Flatten(), nn.Linear(4, 3)),
    "max pool": lambda: nn.Sequential(
        Normalize([0.2, 0.3], [0.1, 2.0]), nn.MaxPool2d((1, 2)), nn.Linear(3, 2), nn.Flatten(), nn.Linear(4, 3)
    ),
    "average": lambda: nn.Sequential(
        nn.BatchNorm1d(2), nn.AvgPool2d((1, 2)), nn.Linear(3, 2), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4, 3)
    ),
}
"""Networks on (n, 2, 6) that are flattened late."""


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("make", ROWS.values(), ids=ROWS)
def test_layers_on_inputs_that_are_not_flattened(make: Callable[[], nn.Module], norm: Any) -> None:
    """Sampled and worst points; and at eps 0 it is the model."""
    y = torch.tensor([0, 2])
    for seed in range(4):
        model = random_(make(), seed)
        x = torch.rand(2, 2, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed + 1))
        torch.testing.assert_close(IBP(Threat(norm, 0.0)).bounds(model, x).lower, model(x), rtol=0, atol=1e-12)
        for eps, outward in ((0.02, True), (0.3, False)):
            threat = Threat(norm, eps, box=None)
            ends, margins = (
                getattr(IBP(threat, outward=outward), name)(model, x, *more)
                for name, more in (("bounds", ()), ("margins", (y,)))
            )
            for z in [*points_in_ball(x, threat, 40, seed + 2), *worst_points(model, x, threat)]:
                logits = model(z)
                assert (logits >= ends.lower - 1e-12).all()
                assert (logits <= ends.upper + 1e-12).all()
                assert (logits.gather(1, y[:, None]) - logits >= margins - 2e-12).all()


@pytest.mark.parametrize("outward", [False, True])
@pytest.mark.parametrize("norm", ["L2", "L1"])
def test_a_channel_of_small_deviation_reaches_farther(norm: Any, outward: bool) -> None:
    """The logits differ by 10 times the second channel's first value, minus 4: at 0.5 class 0, at 0.35 class 1."""
    layers = (nn.Linear(2, 2, bias=False), nn.Flatten(), nn.Linear(4, 2))
    model = nn.Sequential(Normalize([0.0, 0.0], [1.0, 0.1]), *layers).eval().requires_grad_(False)
    model[1].weight[:] = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    model[3].weight[:] = torch.tensor([[0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    model[3].bias[:] = torch.tensor([-4.0, 0.0])
    x = torch.full((1, 2, 2), 0.5)
    near = x.clone()
    near[0, 1, 0] -= 0.15
    assert [int(model(t).argmax(1)) for t in (x, near)] == [0, 1]
    assert IBP(Threat(norm, 0.2), outward=outward)(model, x).prediction.tolist() == [ABSTAIN]
    assert IBP(Threat(norm, 0.099), outward=outward)(model, x).prediction.tolist() == [0]  # exact: the margin is 0.01


@pytest.mark.parametrize("norm", ["L2", "L1"])
@pytest.mark.parametrize("make", NETWORKS)
def test_the_dual_norm_is_never_looser_than_the_box(make: Callable[[], nn.Module], norm: Any) -> None:
    model, x = random_(make(), 5), images(3, 6)
    ball = IBP(Threat(norm, 0.2)).bounds(model, x)
    box = IBP(Threat("Linf", 0.2, box=None)).bounds(model, x)
    assert (ball.lower >= box.lower - 1e-12).all()
    assert (ball.upper <= box.upper + 1e-12).all()


@pytest.mark.parametrize("norm", NORMS)
def test_the_affine_classifier_is_verified_exactly_up_to_its_radius(norm: Any) -> None:
    weight = torch.tensor([[1.0, -2.0, 0.5], [0.0, 1.0, 1.0], [-1.0, 0.5, 2.0]])
    model = nn.Sequential(nn.Linear(3, 3)).eval()
    model[0].weight.data, model[0].bias.data = weight, torch.tensor([0.1, -0.2, 0.3])
    x = torch.tensor([[0.9, 0.1, 0.2], [0.2, 0.8, 0.9]])
    logits = model(x).detach().double()
    y = logits.argmax(1)
    order = {"Linf": 1, "L2": 2, "L1": torch.inf}[norm]
    rows = weight.double()[y][:, None] - weight.double()
    gap = logits.gather(1, y[:, None]) - logits
    distance = (gap / torch.linalg.vector_norm(rows, order, dim=2)).scatter(1, y[:, None], torch.inf).amin(1)
    for i in range(2):
        for factor, holds in ((1 - 1e-5, True), (1 + 1e-5, False)):
            certificate = IBP(Threat(norm, factor * float(distance[i]), box=None))(model, x[i : i + 1])
            assert bool(certificate.prediction == y[i]) is holds
            assert float(certificate.radius) == (factor * float(distance[i]) if holds else 0.0)
    margins = IBP(Threat(norm, 0.1, box=None)).margins(model.double(), x.double(), y)
    torch.testing.assert_close(
        margins.detach(), gap - 0.1 * torch.linalg.vector_norm(rows, order, dim=2), rtol=0, atol=1e-6
    )


def test_merging_the_last_layer_is_never_looser_and_here_much_tighter() -> None:
    model, x = random_(mixed(), 7), images(20, 8)
    method, y = IBP(Threat("Linf", 0.05)), torch.arange(20) % 3
    ends = method.bounds(model, x)
    apart = ends.lower.gather(1, y[:, None]) - ends.upper
    margins = method.margins(model, x, y)
    assert (margins >= apart - 1e-12).all()
    assert (margins - apart).mean() > 0.1 * apart.abs().mean()
    torch.testing.assert_close(margins.gather(1, y[:, None]), torch.zeros(20, 1, dtype=torch.float64))


@pytest.mark.parametrize("norm", NORMS)
def test_bounds_train_a_network(norm: Any) -> None:
    """Their gradient against finite differences, with respect to the weights."""
    model = random_(nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(72, 3)), 9)
    x, y, method = images(2, 10), torch.tensor([0, 1]), IBP(Threat(norm, 0.02, box=None))

    def total(*parameters: Tensor) -> Tensor:
        for slot, value in zip((model[0], model[3]), (parameters[:2], parameters[2:]), strict=True):
            for name, tensor in zip(("weight", "bias"), value, strict=True):
                delattr(slot, name)
                setattr(slot, name, tensor)
        return method.margins(model, x, y).sum()

    parameters = [p.detach().clone().requires_grad_() for p in model.parameters()]
    assert torch.autograd.gradcheck(total, parameters, atol=1e-6)


# --- rounding -----------------------------------------------------------------------------------------------------


def exact(model: nn.Module, values: list[Fraction]) -> list[Fraction]:
    """The network's function of one flat input, in exact arithmetic."""
    for part in model:
        if isinstance(part, nn.Linear):
            weight = [[Fraction(float(w)) for w in row] for row in part.weight]
            bias = [Fraction(float(b)) for b in part.bias]
            parts = [values[i : i + part.in_features] for i in range(0, len(values), part.in_features)]
            values = [
                b + sum(w * v for w, v in zip(row, along, strict=True))
                for along in parts
                for row, b in zip(weight, bias, strict=True)
            ]
        elif isinstance(part, nn.ReLU):
            values = [max(v, Fraction(0)) for v in values]
        elif isinstance(part, nn.LeakyReLU):
            values = [max(v, v * Fraction(part.negative_slope)) for v in values]
        elif isinstance(part, Normalize):
            mean, std = (Fraction(float(t.flatten()[0])) for t in (part.mean, part.std))
            values = [(v - mean) / std for v in values]
        elif isinstance(part, nn.BatchNorm2d):  # of variance 4
            mean, gain, shift = (Fraction(float(t)) for t in (part.running_mean, part.weight, part.bias))
            values = [(v - mean) * gain / 2 + shift for v in values]
        elif isinstance(part, nn.Conv2d):  # one channel in, 2 x 2 kernel, 3 x 3 input
            kernel = [[[Fraction(float(w)) for w in row] for row in k[0]] for k in part.weight]
            bias = [Fraction(float(b)) for b in part.bias] if part.bias is not None else [Fraction(0)] * len(kernel)
            values = [
                b + sum(k[i][j] * values[3 * (r + i) + c + j] for i in range(2) for j in range(2))
                for k, b in zip(kernel, bias, strict=True)
                for r in range(2)
                for c in range(2)
            ]
        elif isinstance(part, nn.AvgPool2d):  # 2 x 2 input of each channel to 1 x 1
            values = [sum(values[i : i + 4], Fraction(0)) / 4 for i in range(0, len(values), 4)]
        else:
            assert isinstance(part, nn.Flatten), part
    return values


def cancelling() -> nn.Module:
    """Large and opposite terms on equal pixels: float64 keeps few of the digits that matter."""
    model = random_(nn.Sequential(nn.Flatten(), nn.Linear(9, 6), nn.LeakyReLU(0.3), nn.Linear(6, 3)), 11)
    model[1].weight[:, :8:2] *= 1e9
    model[1].weight[:, 2:8:4] = -model[1].weight[:, :8:4]
    return model


def shifted() -> nn.Module:
    """A batch norm that maps the pixel 0.4 nearly to 0, as the difference of two large numbers."""
    model = random_(nn.Sequential(nn.BatchNorm2d(1, eps=0.0), nn.Flatten(), nn.Linear(9, 3)), 18)
    norm = model[0]
    model[2].bias.zero_()
    norm.running_mean[:], norm.running_var[:], norm.weight[:] = -1e5, 4.0, 0.7
    norm.bias[:] = -(0.4 + 1e5) * 0.35
    return model


def shifted_box() -> nn.Module:
    """The same before an activation: there the ball becomes its box."""
    model = shifted()
    return nn.Sequential(model[0], nn.LeakyReLU(1.0), *model[1:]).eval()


def small_images() -> nn.Module:
    return random_(
        nn.Sequential(
            Normalize([0.1], [0.3]), nn.Conv2d(1, 3, 2), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(3, 3)
        ),
        12,
    )


def rows_first() -> nn.Module:
    """A linear layer along the last axis."""
    return random_(
        nn.Sequential(Normalize([0.1], [0.3]), nn.Linear(3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(6, 3)), 19
    )


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("eps", [0.0, 1e-15, 1e-3])
@pytest.mark.parametrize("make", [cancelling, shifted, shifted_box, small_images, rows_first])
def test_outward_bounds_contain_exact_arithmetic(make: Callable[[], nn.Module], eps: float, norm: Any) -> None:
    model, threat = make(), Threat(norm, eps, box=None)
    x = torch.rand(6, 1, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(13))
    x[:4] = torch.tensor([0.4, 0.1, 0.7, 1 / 3], dtype=torch.float64).view(4, 1, 1, 1)
    method, y = IBP(threat, outward=True), torch.tensor([0, 1, 2, 0, 1, 2])
    ends, margins = method.bounds(model, x), method.margins(model, x, y)
    for i in range(6):
        for direction in range(-9, 10):
            # The centre and the vertices of the cross-polytope, which every ball contains.
            z = [Fraction(float(v)) for v in x[i].flatten()]
            if direction:
                z[abs(direction) - 1] += Fraction(eps) * (1 if direction > 0 else -1)
            logits = exact(model, z)
            for k in range(3):
                assert Fraction(float(ends.lower[i, k])) <= logits[k] <= Fraction(float(ends.upper[i, k]))
                assert Fraction(float(margins[i, k])) <= logits[int(y[i])] - logits[k]


def test_without_outward_rounding_exact_arithmetic_escapes() -> None:
    """What the mode is for: at eps 0 the plain ends meet in a float64 number that is not the exact one."""
    model = cancelling()
    x = torch.rand(1, 1, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(13))
    plain = IBP(Threat("Linf", 0.0, box=None)).bounds(model, x)
    logits = exact(model, [Fraction(v) for v in x.flatten().tolist()])
    assert [Fraction(v) for v in plain.lower[0].tolist()] != logits


@pytest.mark.parametrize("make", NETWORKS)
@pytest.mark.parametrize("norm", NORMS)
def test_outward_rounding_costs_next_to_nothing(make: Callable[[], nn.Module], norm: Any) -> None:
    model, x = random_(make(), 14), images(3, 15)
    plain, outward = (IBP(Threat(norm, 0.01), outward=o).bounds(model, x) for o in (False, True))
    # An end that is a ReLU's 0 is exact.
    assert ((outward.lower < plain.lower) | (plain.lower == 0)).all()
    assert ((outward.upper > plain.upper) | (plain.upper == 0)).all()
    torch.testing.assert_close(outward.upper, plain.upper, rtol=1e-10, atol=1e-10)


# --- what is refused ----------------------------------------------------------------------------------------------


class Flipped(nn.Linear):
    """A subclass that computes something else."""

    def forward(self, x: Tensor) -> Tensor:
        return -super().forward(x)


class Wrapped(nn.Sequential):
    """Likewise."""


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.GELU(), "no interval rule for GELU; need nn.Sequential of Linear, "),
        (nn.Dropout(0.1), "no interval rule for Dropout"),
        (Flipped(2, 2), "no interval rule for Flipped"),
        (Wrapped(nn.Linear(2, 2)), "no interval rule for Wrapped"),
        (nn.LeakyReLU(-0.1), "need negative_slope >= 0 in LeakyReLU; got -0.1"),
        (nn.Conv2d(1, 1, 1, padding_mode="circular"), "need padding_mode 'zeros' in Conv2d; got 'circular'"),
        (nn.MaxPool2d(1, return_indices=True), "need MaxPool2d without return_indices"),
        (nn.Flatten(2), "need Flatten"),
        (nn.BatchNorm2d(1, track_running_stats=False), "need BatchNorm2d in evaluation mode, with running statistics"),
        (Residual(nn.GELU(), nn.Identity()), "no interval rule for GELU"),
        (nn.AvgPool2d(2, divisor_override=-4), "need AvgPool2d with a divisor > 0; got -4"),
        (Normalize([0.0, 0.0], [1.0, 1.0]), r"need as many channels as Normalize has, 2; got inputs \(1, 1, 2, 2\)"),
        (Residual(nn.Linear(2, 1), nn.Identity()), r"need a Residual of equal shapes; got \(1, 1, 2, 1\) and \(1, 1,"),
    ],
)
def test_a_layer_without_a_rule_is_refused_by_name(module: nn.Module, message: str) -> None:
    with pytest.raises(UnsupportedModule, match=message):
        IBP(Threat("Linf", 0.1)).bounds(nn.Sequential(module).eval(), torch.rand(1, 1, 2, 2))


@pytest.mark.parametrize("method", [IBP(Threat("L2", 0.1)), CROWN(Threat("L2", 0.1)), CROWN(Threat("Linf", 0.1))])
def test_a_normaliser_that_copies_a_channel_is_refused(method: Any) -> None:
    """Its copies move together: sqrt(2) times as far as one of them, where the ball would let each go its own way."""
    model = nn.Sequential(Normalize([0.0, 0.0], [1.0, 1.0]), nn.Flatten(), nn.Linear(4, 2)).eval()
    x = torch.rand(3, 1, 2, generator=torch.Generator().manual_seed(0))
    with pytest.raises(UnsupportedModule, match=r"need as many channels as Normalize has, 2; got inputs \(3, 1, 2\)"):
        method(model, x)
    one = nn.Sequential(Normalize([0.5], [2.0]), nn.Flatten(), nn.Linear(4, 2)).eval()  # one for all channels is fine
    assert len(method(one, torch.rand(3, 2, 2, generator=torch.Generator().manual_seed(0)))) == 3


def test_linear_bounds_need_a_positive_deviation() -> None:
    """Divided by a negative one the ends of a box change places. Interval rules see to that."""
    model = random_(nn.Sequential(Normalize([0.5, 0.4], [1.0, 1.0]), nn.ReLU(), nn.Linear(2, 2)), 20).float()
    model[0].std[:] = torch.tensor([-0.5, 1.0])
    x, y = torch.full((1, 2), 0.5), torch.tensor([0])
    with pytest.raises(UnsupportedModule, match=r"need std > 0 in Normalize; got -0\.5"):
        CROWN(Threat("Linf", 0.1)).margins(model, x, y)
    margins = IBP(Threat("Linf", 0.1)).margins(model, x, y)
    logits = model(torch.tensor([[a, b] for a in (0.4, 0.6) for b in (0.4, 0.6)]))
    assert (logits[:, :1] - logits >= margins - 1e-6).all()


def test_a_network_must_give_logits() -> None:
    """A linear layer along the last axis gives each channel logits of its own: no classifier."""
    x, y = torch.rand(2, 2, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1])
    for last in (nn.Linear(8, 2), nn.Sequential(nn.Linear(8, 2), nn.Tanh())):
        model = nn.Sequential(last).eval()
        for norm in NORMS:
            method = IBP(Threat(norm, 0.1))
            for call in (lambda m=method, f=model: m(f, x), lambda m=method, f=model: m.margins(f, x, y)):
                with pytest.raises(InputError, match=r"need a network with logits \(n, classes\); got \(2, 2, 2\)"):
                    call()
    with pytest.raises(InputError, match=r"need a network with logits \(n, classes\); got \(2, 2, 2\)"):
        CROWN(Threat("Linf", 0.1)).margins(nn.Sequential(nn.Linear(8, 2)).eval(), x, y)


def test_a_convolution_needs_a_batch_of_images() -> None:
    """Torch would take the batch for channels, and the network mix the examples."""
    with pytest.raises(InputError, match=r"need images \(n, channels, height, width\) before Conv2d; got \(2, 3, 3\)"):
        IBP(Threat("Linf", 0.1)).bounds(nn.Sequential(nn.Conv2d(2, 2, 1)).eval(), torch.rand(2, 3, 3))


def test_a_hook_could_change_what_a_layer_computes() -> None:
    model = nn.Sequential(nn.Linear(2, 2)).eval()
    model[0].register_forward_hook(lambda module, inputs, output: -output)
    with pytest.raises(UnsupportedModule, match="without forward hooks; Linear has one"):
        IBP(Threat("Linf", 0.1))(model, torch.rand(1, 2))


def test_settings_and_inputs_are_checked() -> None:
    with pytest.raises(InputError, match="need a threat in Linf, L2 or L1; got L0"):
        IBP(Threat("L0", 1))
    with pytest.raises(InputError, match="need batch >= 1; got 0"):
        IBP(Threat("L2", 1), batch=0)
    with pytest.raises(InputError, match="need a model in evaluation mode"):
        IBP(Threat("L2", 1))(nn.Sequential(nn.Linear(2, 2)), torch.rand(1, 2))
    with pytest.raises(InputError, match=r"need inputs in \[0, 1\]"):
        IBP(Threat("L2", 1))(nn.Sequential(nn.Linear(2, 2)).eval(), 2 + torch.rand(1, 2))


# --- certificates -------------------------------------------------------------------------------------------------


def test_a_certificate_says_what_was_proved() -> None:
    model, x = nn.Sequential(nn.Linear(2, 2)).eval(), torch.rand(9, 2, generator=torch.Generator().manual_seed(1))
    certificate = IBP(Threat("Linf", 1e-4))(model, x)
    assert certificate.subject == "f"
    assert certificate.guarantee == Deterministic()
    assert (certificate.norm, certificate.region) == ("Linf", "box")
    assert IBP(Threat("Linf", 1e-4, box=None))(model, x).region == "ball"
    assert IBP(Threat("L2", 1e-4))(model, x).region == "ball"
    assert IBP(Threat("L2", 1e-4), outward=True)(model, x).arithmetic == "exact"
    assert (certificate.samples == 0).all()
    right = certificate.prediction == model(x).argmax(1)
    assert torch.equal(certificate.radius, right.double() * 1e-4)
    far = IBP(Threat("Linf", 50.0, box=None))(model, x)
    assert (far.prediction == ABSTAIN).all()


def test_numbers_do_not_depend_on_the_batch() -> None:
    model, x = random_(mixed(), 16), images(7, 17)
    y, eps = model(x).argmax(1), torch.linspace(0, 0.01, 7, dtype=torch.float64)
    whole, parts = (IBP(Threat("Linf", 1.0), batch=b).verified(model, x, y, eps) for b in (7, 3))
    assert torch.equal(whole, parts)
    assert whole[0]
