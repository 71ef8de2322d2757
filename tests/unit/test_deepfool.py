"""DeepFool against the nearest error of linear classifiers, a slow twin, and finite differences."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from analysis.attacks.deepfool import DeepFool, deepfool_perturbation
from certify.errors import InputError
from certify.rng import Stream
from certify.threat import Box, Norm, Threat
from tests.attack_cases import BOXES, FAR, SHAPES, assert_honest, counted, linear_case, nearest_error


def smooth_net(seed: int = 0, classes: int = 3) -> nn.Sequential:
    """A float64 tanh network on the plane."""
    generator = torch.Generator().manual_seed(seed)
    net = nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, classes)).double().eval()
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=torch.float64) * 1.5)
    return net


def points(n: int, seed: int = 1) -> Tensor:
    return torch.randn(n, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("box", BOXES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("norm", ["L2", "Linf"])
@pytest.mark.parametrize("classes", [2, 4])
def test_on_a_linear_classifier_one_step_is_exact(shape, box: Box, norm: Norm, classes: int) -> None:
    model, x, y, nearest = linear_case(shape, 8, norm, box, classes=classes)
    attacked = DeepFool()(model, x, y, threat=Threat(norm, FAR, box))
    assert_honest(attacked, model, x, y)
    torch.testing.assert_close(attacked.distance, 1.02 * nearest, rtol=1e-4, atol=0)
    assert attacked.forwards.tolist() == [2] * 8
    assert attacked.backwards.tolist() == [classes - 1] * 8
    if norm == "L2":
        torch.testing.assert_close(nearest, model.distance(x), rtol=1e-9, atol=0)


def test_only_candidates_are_considered() -> None:
    model, x, y, nearest = linear_case((1, 5, 5), 40, "L2", None, classes=6)
    two = DeepFool(candidates=2)(model, x, y, threat=Threat("L2", FAR, None))
    assert two.backwards.tolist() == [1] * 40
    assert bool((two.distance >= 1.0199 * nearest).all())
    assert bool((two.distance > 1.03 * nearest).any())
    every = DeepFool(candidates=None)(model, x, y, threat=Threat("L2", FAR, None))
    torch.testing.assert_close(every.distance, 1.02 * nearest, rtol=1e-4, atol=0)


def test_finished_examples_leave_the_batch() -> None:
    net, x = smooth_net(2), points(16)
    y = net(x).argmax(1)
    with counted(net) as sizes:
        attacked = DeepFool(steps=6, overshoot=0.001)(net, x, y, threat=Threat("L2", FAR, None))
    assert int(attacked.success.sum()) >= 12
    taken = attacked.forwards - 1
    assert len(set(taken.tolist())) > 1
    assert sizes == [16] + [int((taken >= t).sum()) for t in range(1, int(taken.max()) + 1)]
    assert torch.equal(attacked.backwards, 2 * taken)


@pytest.mark.parametrize("n", [1, 3, 8])
@pytest.mark.parametrize("norm", ["L2", "Linf"])
def test_an_example_is_attacked_alike_alone_and_in_a_batch(n: int, norm: Norm) -> None:
    net, x, threat = smooth_net(), points(n), Threat(norm, FAR, None)
    y = net(x).argmax(1)
    together = DeepFool()(net, x, y, threat=threat, rng=Stream(0))
    alone = [DeepFool()(net, x[i : i + 1], y[i : i + 1], threat=threat, rng=Stream(0)) for i in range(n)]
    torch.testing.assert_close(together.distance, torch.cat([a.distance for a in alone]))
    assert torch.equal(together.forwards, torch.cat([a.forwards for a in alone]))


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    eps=st.sampled_from([0.0, 0.003, 0.05, 0.3, 3.0]),
    shape=st.sampled_from(SHAPES),
    box=st.sampled_from(BOXES),
    norm=st.sampled_from(["L2", "Linf"]),
)
def test_successes_are_successes_and_queries_are_counted(seed: int, eps: float, shape, box: Box, norm: Norm) -> None:
    model, x, _, _ = linear_case(shape, 3, norm, box, seed=seed)
    y, threat = torch.tensor([0, 1, 2]), Threat(norm, eps, box)
    with counted(model) as sizes:
        attacked = DeepFool(steps=4)(model, x, y, threat=threat)
    assert_honest(attacked, model, x, y)
    assert sum(sizes) == int(attacked.forwards.sum())
    assert torch.equal(attacked.backwards, 2 * (attacked.forwards - 1))
    again = DeepFool(steps=4)(model, x, y, threat=threat)
    assert torch.equal(again.adversarial, attacked.adversarial)


def test_what_is_misclassified_already_is_a_success_at_distance_zero() -> None:
    model, x, y, _ = linear_case((4,), 3, "L2", None)
    attacked = DeepFool()(model, x, (y + 1) % 3, threat=Threat("L2", 0.0, None))
    assert attacked.distance.tolist() == [0.0, 0.0, 0.0]
    assert attacked.forwards.tolist() == [1, 1, 1]
    assert attacked.backwards.tolist() == [0, 0, 0]


def test_a_constant_classifier_is_left_unfooled() -> None:
    class Constant(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1)[:, :1] * 0 + torch.tensor([1.0, 0.0])

    x, y = torch.rand(2, 4), torch.zeros(2, dtype=torch.int64)
    attacked = DeepFool(steps=3)(Constant().eval(), x, y, threat=Threat("L2", FAR))
    assert not bool(attacked.success.any())
    delta, iterations = deepfool_perturbation(Constant().eval(), x, y, steps=3)
    assert not bool(delta.any())
    assert iterations.tolist() == [3, 3]


# The differentiable form.


def slow_twin(net: nn.Module, x: Tensor, label: int, steps: int, overshoot: float) -> tuple[Tensor, int]:
    """One example of the L2 recursion, written out with a full Jacobian; the guards are those of the module."""
    correct = int(net(x[None]).argmax()) == label
    r = torch.zeros_like(x)
    for t in range(steps):
        z = (x + r).detach()
        f = net(z[None])[0].detach()
        jacobian = torch.autograd.functional.jacobian(lambda v: net(v[None])[0], z)
        assert isinstance(jacobian, Tensor)
        others = [k for k in range(len(f)) if k != label]
        if correct:
            steepness = {k: (jacobian[k] - jacobian[label]).norm() for k in others}
            k = min(others, key=lambda k: float(abs(f[k] - f[label]) / steepness[k]))
            gap, w = abs(f[k] - f[label]), jacobian[k] - jacobian[label]
        else:
            current = max(others, key=lambda k: float(f[k]))
            gap, w = abs(f[label] - f[current]), jacobian[label] - jacobian[current]
        r = r + (gap + 1e-6) / (w.square().sum() + 1e-12) * w
        if (int(net((x + (1 + overshoot) * r)[None]).argmax()) == label) != correct:
            return (1 + overshoot) * r, t + 1
    return (1 + overshoot) * r, steps


@pytest.mark.parametrize("seed", range(6))
def test_the_perturbation_is_that_of_a_slow_twin(seed: int) -> None:
    net, x = smooth_net(seed, classes=4), points(24, seed)
    y = torch.arange(24) % 4  # right and wrong ones
    delta, iterations = deepfool_perturbation(net, x, y, steps=8)
    assert len(set(iterations.tolist())) > 1
    for i in range(24):
        expected, taken = slow_twin(net, x[i], int(y[i]), 8, 0.02)
        torch.testing.assert_close(delta[i].detach(), expected, rtol=1e-8, atol=1e-10)
        assert int(iterations[i]) == taken


def test_across_many_points_the_label_is_left_or_reached() -> None:
    net, x = smooth_net(3, classes=4), points(40)
    y = torch.arange(40) % 4
    delta, iterations = deepfool_perturbation(net, x, y, steps=30)
    before, after = net(x).argmax(1) == y, net(x + delta).argmax(1) == y
    finished = iterations < 30
    assert int(finished.sum()) >= 30  # the others ran off to where every tanh is flat
    assert bool((before != after)[finished].all())


def test_a_prediction_that_changes_on_the_way_changes_gap_and_slope_together() -> None:
    """The official code keeps the first prediction in the gap: here it would stop short of the label."""
    # Scores on the line: class 1 first, class 2 from 1 on, and class 0, the label, from 4 on.
    model = nn.Linear(1, 3).double().eval()
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[3.0], [0.0], [2.0]]))
        model.bias.copy_(torch.tensor([-6.0, 0.0, -2.0]))
    x, y = torch.zeros(1, 1, dtype=torch.float64), torch.tensor([0])
    delta, iterations = deepfool_perturbation(model, x, y)
    # Towards f_0 = f_1 at 2, where class 2 leads by 2 with a slope of 1: two further, at 4, is the boundary.
    assert iterations.tolist() == [2]
    assert float(delta.detach()) == pytest.approx(1.02 * 4, rel=1e-5)


@pytest.mark.parametrize("norm", ["L2", "Linf"])
@pytest.mark.parametrize("shape", SHAPES)
def test_on_a_linear_classifier_the_perturbation_is_the_shortest(shape, norm: Norm) -> None:
    model, x, y, nearest = linear_case(shape, 8, norm, None, classes=4)
    delta, iterations = deepfool_perturbation(model, x, y, norm=norm)
    _, point = nearest_error(model, x, norm)
    torch.testing.assert_close(delta.detach().double(), 1.02 * (point - x.double()), rtol=1e-3, atol=1e-5)
    assert iterations.tolist() == [1] * 8
    assert bool((nearest > 0).all())


@pytest.mark.parametrize("norm", ["L2", "Linf"])
def test_the_gradient_of_the_norm_agrees_with_finite_differences(norm: Norm) -> None:
    net, x = smooth_net(4), points(12, 5)
    y = torch.arange(12) % 3
    # Where a step landed among flat tanhs, 1 - tanh^2 has few digits left, and no finite difference means anything.
    near = deepfool_perturbation(net, x, y, norm=norm)[0].detach().norm(dim=1) < 3
    x, y = x[near], y[near]
    correct = net(x).argmax(1) == y
    assert int(correct.sum()) >= 2
    assert int((~correct).sum()) >= 2

    def total() -> tuple[Tensor, Tensor]:
        delta, iterations = deepfool_perturbation(net, x, y, steps=5, norm=norm)
        return (delta.norm(dim=1) / x.norm(dim=1)).sum(), iterations

    value, taken = total()
    assert int(taken.max()) > 1  # through more than one step
    gradients = torch.autograd.grad(value, list(net.parameters()))
    assert all(p.grad is None for p in net.parameters())
    h = 1e-6
    for p, gradient in zip(net.parameters(), gradients, strict=True):
        flat, numeric = p.detach().view(-1), torch.zeros(p.numel(), dtype=torch.float64)
        for j in range(p.numel()):
            ends = []
            for sign in (2, 1, -1, -2):
                flat[j] += sign * h
                moved, iterations = total()
                flat[j] -= sign * h
                assert torch.equal(iterations, taken)
                ends.append(float(moved.detach()))
            numeric[j] = (-ends[0] + 8 * ends[1] - 8 * ends[2] + ends[3]) / (12 * h)
        assert float((numeric - gradient.reshape(-1)).norm()) <= 1e-6 * float(gradient.norm())


def test_training_through_it_moves_the_boundary_away() -> None:
    net, x = smooth_net(6), points(20)
    y = net(x).argmax(1)
    before = deepfool_perturbation(net, x, y)[0].detach().norm(dim=1).mean()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    for _ in range(10):
        delta, _ = deepfool_perturbation(net, x, y)
        correct = net(x).argmax(1) == y
        loss = torch.where(correct, (-delta.norm(dim=1)).exp(), delta.norm(dim=1).exp()).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert deepfool_perturbation(net, x, y)[0].detach().norm(dim=1).mean() > before


@pytest.mark.parametrize(
    ("fields", "rule"),
    [
        ({"steps": 0}, "need steps >= 1; got 0"),
        ({"overshoot": -0.1}, "need a finite overshoot >= 0; got -0.1"),
        ({"candidates": 1}, "need candidates >= 2, the label among them, or None; got 1"),
    ],
)
def test_fields_out_of_range(fields, rule: str) -> None:
    with pytest.raises(InputError, match=rule):
        DeepFool(**fields)
    with pytest.raises(InputError, match=rule):
        deepfool_perturbation(smooth_net(), points(1), torch.tensor([0]), **fields)


def test_what_it_cannot_serve() -> None:
    net, x, y = smooth_net(), points(1), torch.tensor([0])
    with pytest.raises(InputError, match="need an L2 or Linf threat for DeepFool; got L1"):
        DeepFool()(net, x, y, threat=Threat("L1", 1.0, None))
    with pytest.raises(InputError, match="need norm L2 or Linf; got 'L1'"):
        deepfool_perturbation(net, x, y, norm="L1")  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match="need at least 2 classes; got 1"):
        DeepFool()(smooth_net(classes=1), x, y, threat=Threat("L2", 1.0, None))
    with pytest.raises(InputError, match="need a model in evaluation mode"):
        deepfool_perturbation(net.train(), x, y)
