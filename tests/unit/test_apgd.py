"""APGD on affine classifiers, where the optimum is known, and on a small network, where every success is checked."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from analysis.attacks import Attacked
from analysis.attacks.apgd import APGD, TargetedAPGD, checkpoints
from certify import InputError, Stream, Threat
from certify.threat import Norm
from tests.classifiers import Affine, affine

SHAPES = [(6,), (2, 3, 3), (1, 8, 8)]
NORMS: list[Norm] = ["Linf", "L2"]
UNTARGETED = [APGD(steps=20), APGD(steps=20, loss="margin"), APGD(steps=20, loss="dlr")]
ATTACKS = [*UNTARGETED, TargetedAPGD(targets=3, steps=20)]


def distance(model: Affine, x: Tensor, norm: Norm) -> Tensor:
    """To the nearest decision boundary: gap over the dual norm of the weights' difference, in float64."""
    w, b = model.linear.weight.detach().double(), model.linear.bias.detach().double()
    scores = x.flatten(1).double() @ w.T + b
    top = scores.argmax(1)
    difference = w[top][:, None] - w[None]
    dual = {"Linf": difference.abs().sum(2), "L2": difference.norm(dim=2), "L1": difference.abs().amax(2)}[norm]
    ratio = (scores.gather(1, top[:, None]) - scores) / dual
    return ratio.scatter(1, top[:, None], torch.inf).amin(1)


def example(shape: tuple[int, ...], n: int, seed: int = 0) -> tuple[Affine, Tensor, Tensor]:
    """An affine classifier of four classes, n inputs, and what it says of them."""
    model = affine(4, shape, seed)
    x = torch.rand(n, *shape, generator=torch.Generator().manual_seed(seed + 1))
    return model, x, model(x).argmax(1)


def one_rival(shape: tuple[int, ...], n: int) -> tuple[Affine, Tensor, Tensor]:
    """Four classes of which two never win: one boundary, where several make local optima of an untargeted loss."""
    model, x, _ = example(shape, n)
    with torch.no_grad():
        weight, bias = model.linear.weight, model.linear.bias
        weight[2:] = weight[:2].mean(0)
        bias[2:] = bias[:2].mean() - torch.tensor([5.0, 6.0])
    return model, x, model(x).argmax(1)


def network(seed: int, shape: tuple[int, ...] = (1, 6, 6)) -> nn.Module:
    """A random network, its weights drawn without touching the global generator."""
    generator = torch.Generator().manual_seed(seed)
    size = int(torch.tensor(shape).prod())
    model = nn.Sequential(nn.Flatten(), nn.Linear(size, 16), nn.ReLU(), nn.Linear(16, 5))
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * (2 / p.shape[-1]) ** 0.5)
    return model.eval()


def check_successes(result: Attacked, model: nn.Module, x: Tensor, y: Tensor, threat: Threat) -> None:
    """What an attack says it found is there: wrong, in the ball, in the box, at the distance it states."""
    z, ok = result.adversarial, result.success
    # Batches of other sizes may round logits differently: a tie within rounding is no contradiction.
    logits = model(z).detach()
    own = logits.gather(1, y[:, None])[:, 0]
    assert (logits.scatter(1, y[:, None], -torch.inf).amax(1) >= own - 1e-5)[ok].all()
    delta = (z.double() - x.double()).flatten(1)
    size = torch.linalg.vector_norm(delta, {"Linf": torch.inf, "L2": 2, "L1": 1}[threat.norm], dim=1)
    assert (size <= threat.eps * (1 + 1e-5) + 1e-6).all()
    assert torch.allclose(size[ok], result.distance[ok], rtol=1e-6, atol=1e-9)
    assert torch.equal(z[~ok], x[~ok])
    assert torch.isinf(result.distance[~ok]).all()
    if threat.box is not None:
        assert z.min() >= threat.box[0]
        assert z.max() <= threat.box[1]


@pytest.mark.parametrize("n", [1, 3, 8])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("shape", SHAPES)
def test_success_begins_at_the_distance(shape: tuple[int, ...], norm: Norm, n: int) -> None:
    for attack in ATTACKS:
        model, x, y = (one_rival if attack in UNTARGETED else example)(shape, n)
        radius = distance(model, x, norm)
        for i in range(0, n, 3):
            one, label = x[i : i + 1], y[i : i + 1]
            outside, inside = (Threat(norm, float(radius[i]) * f, box=None) for f in (1.01, 0.99))
            assert attack(model, one, label, threat=outside, rng=Stream(0)).success.all(), attack
            assert not attack(model, one, label, threat=inside, rng=Stream(0)).success.any(), attack
        found = attack(model, x, y, threat=Threat(norm, float(radius.median()) * 1.01, box=None), rng=Stream(1))
        assert torch.equal(found.success, radius <= float(radius.median()) * 1.01), attack


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    norm=st.sampled_from(NORMS),
    eps=st.sampled_from([0.0, 0.01, 8 / 255, 0.3, 2.0]),
    box=st.sampled_from([(0.0, 1.0), None]),
)
def test_successes_are_real(seed: int, norm: Norm, eps: float, box: tuple[float, float] | None) -> None:
    model, threat = network(seed), Threat(norm, eps, box)
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.rand(5, 1, 6, 6, generator=generator), torch.randint(5, (5,), generator=generator)
    y[:3] = model(x).argmax(1)[:3]
    state = torch.get_rng_state()
    for attack in (APGD(steps=7, restarts=2), TargetedAPGD(targets=2, steps=7)):
        result = attack(model, x, y, threat=threat, rng=Stream(seed))
        check_successes(result, model, x, y, threat)
        wrong = model(x).argmax(1) != y
        assert (result.distance[wrong] == 0).all()
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in model.parameters())


def test_query_counts() -> None:
    model, x, y = example((6,), 4)
    y[0] = (y[0] + 1) % 4
    threat = Threat("Linf", 1e-4, box=None)
    untargeted = APGD(steps=9, restarts=2)(model, x, y, threat=threat, rng=Stream(0))
    assert untargeted.forwards.tolist() == [1, 21, 21, 21]  # x, then twice a start and nine steps
    assert untargeted.backwards.tolist() == [0, 18, 18, 18]
    targeted = TargetedAPGD(targets=3, steps=9, restarts=2)(model, x, y, threat=threat, rng=Stream(0))
    assert targeted.forwards.tolist() == [1, 61, 61, 61]
    assert targeted.backwards.tolist() == [0, 54, 54, 54]
    assert untargeted.loss is not None
    assert untargeted.loss.isnan().tolist() == [[True] * 9] + [[False] * 9] * 3
    large = APGD(steps=9)(model, x, y, threat=Threat("Linf", 10.0, box=None), rng=Stream(0))
    assert large.success.all()
    assert (large.forwards < 11).all()  # who is broken leaves the batch


def test_the_same_stream_gives_the_same_result() -> None:
    model, x, y = example((2, 3, 3), 8)
    threat = Threat("L2", float(distance(model, x, "L2").median()), box=None)
    for attack in ATTACKS:
        a, b = (attack(model, x, y, threat=threat, rng=Stream(5)) for _ in range(2))
        assert torch.equal(a.adversarial, b.adversarial)
        # The first three alone: the same starts, and so the same results up to rounding.
        few = attack(model, x[:3], y[:3], threat=threat, rng=Stream(5))
        assert torch.equal(few.success, a.success[:3])
        assert torch.allclose(few.adversarial, a.adversarial[:3], atol=1e-5)


def test_more_restarts_never_lose_an_example() -> None:
    model, generator = network(3), torch.Generator().manual_seed(0)
    x = torch.rand(40, 1, 6, 6, generator=generator)
    y = model(x).argmax(1)
    threat = Threat("Linf", 0.08)
    once, thrice = (APGD(steps=5, restarts=r)(model, x, y, threat=threat, rng=Stream(0)) for r in (1, 3))
    assert (thrice.success | ~once.success).all()


def test_checkpoints() -> None:
    assert checkpoints(100) == [22, 41, 57, 70, 80, 87, 93, 99]
    assert checkpoints(1) == [1]
    for steps in range(1, 200):
        marks = checkpoints(steps)
        assert marks == sorted(set(marks))
        assert marks[-1] <= steps


def test_the_step_halves_where_the_objective_stalls() -> None:
    """On |x| a step of 2 eps overshoots for ever; only smaller steps find the narrow gap at the middle."""

    class Gap(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            near = 1e-3 - (x[:, :1] - 0.3).abs()
            return torch.cat([torch.zeros_like(near), near, near - 9, near - 9], 1)

    x, y = torch.zeros(1, 1), torch.zeros(1, dtype=torch.int64)
    threat = Threat("L2", 1.0, box=None)
    assert APGD(steps=100, loss="margin")(Gap().eval(), x, y, threat=threat, rng=Stream(0)).success.all()
    assert not APGD(steps=10, loss="margin", rho=1e-9)(Gap().eval(), x, y, threat=threat, rng=Stream(0)).success.any()


def test_refusals() -> None:
    for make, message in (
        (lambda: APGD(steps=0), "need an integer steps >= 1; got 0"),
        (lambda: APGD(restarts=1.5), "need an integer restarts >= 1; got 1.5"),  # type: ignore[arg-type]
        (lambda: APGD(rho=1.0), "need 0 < rho < 1; got 1.0"),
        (lambda: APGD(loss="hinge"), "need a loss among .*; got 'hinge'"),  # type: ignore[arg-type]
        (lambda: TargetedAPGD(targets=0), "need an integer targets >= 1; got 0"),
    ):
        with pytest.raises(InputError, match=message):
            make()
    model, x, y = example((6,), 2)
    with pytest.raises(InputError, match="need a threat in Linf or L2 for APGD, and FMN for L1; got L1"):
        APGD()(model, x, y, threat=Threat("L1", 1.0, None), rng=Stream(0))
    with pytest.raises(InputError, match="need targets < 4, the number of classes; got 9"):
        TargetedAPGD()(model, x, y, threat=Threat("L2", 1.0, None), rng=Stream(0))
    with pytest.raises(InputError, match="evaluation mode"):
        APGD()(affine(4, (6,)).train(), x, y, threat=Threat("L2", 1.0, None), rng=Stream(0))
