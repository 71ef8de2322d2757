"""On an affine classifier the distance to the boundary is known in every norm: attacks reach it and never beat it."""

import pytest
import torch
from torch import Tensor

from analysis.attacks.attacked import Attack, norm_of
from analysis.attacks.fgsm import FGSM
from analysis.attacks.pgd import PGD
from analysis.attacks.random_noise import RandomNoise
from analysis.attacks.transfer import Transfer
from certify.rng import Stream
from certify.threat import Norm, Threat
from tests.classifiers import Affine, affine

ALL: tuple[Norm, ...] = ("L1", "L2", "Linf")

# Attacks, and the norms in which each must succeed at 1.01 times the distance. Add yours.
ATTACKS: list[tuple[Attack, tuple[Norm, ...]]] = [
    (FGSM(), ALL),
    (FGSM(loss="margin"), ALL),
    (PGD(steps=20), ("L1", "Linf")),
    # In L2 the standard steps, 2.5 eps in all, shrink a random start's angle by exp(-2.5): not always to within 1 %.
    (PGD(steps=20, step_size=0.1), ("L2",)),
    (PGD(steps=20, step_size=0.1, step="normalized"), ("L2",)),
    (PGD(steps=20, loss="margin", early_stop=False), ("L1", "Linf")),
    (PGD(steps=20, loss="dlr", random_start=False), ALL),
    (PGD(steps=20, step="sign"), ("Linf",)),
    (PGD(steps=20, step="momentum", random_start=False), ALL),
    (PGD(steps=20, step="adam"), ("Linf",)),
]
# Weaker ones, which must still never find what is not there.
SOUND: list[Attack] = [
    FGSM(random_start=True),
    PGD(steps=5, restarts=2, step="adam"),
    RandomNoise(draws=50, chunk=20),
    Transfer(affine(4, (4,), seed=9), PGD(steps=5), "another affine classifier"),
]
SHAPES = [(1, (4,)), (8, (4,)), (3, (1, 5, 5)), (1, (3, 4, 4)), (8, (3, 4, 4))]
DUAL = {"L1": float("inf"), "L2": 2.0, "Linf": 1.0}
STRONG = [(attack, norm) for attack, norms in ATTACKS for norm in norms]


def distance(model: Affine, x: Tensor, norm: Norm) -> Tensor:
    """(n,) float64 distances to the nearest boundary: the gap over the dual norm of the difference of the weights."""
    w, b = model.linear.weight.detach().double(), model.linear.bias.detach().double()
    scores = x.flatten(1).double() @ w.T + b
    top = scores.argmax(1)
    gap = scores.gather(1, top[:, None]) - scores
    ratio = gap / torch.linalg.vector_norm(w[top][:, None] - w[None], ord=DUAL[norm], dim=2)
    return ratio.scatter(1, top[:, None], torch.inf).min(1).values


def equidistant(n: int, shape: tuple[int, ...], seed: int) -> tuple[Affine, Tensor, Tensor]:
    """Two classes that compete and one that never wins; n inputs of both, all equally far from the boundary."""
    model = affine(3, shape, seed)
    with torch.no_grad():
        model.linear.weight[2] = 0.0
        model.linear.bias[2] = -1000.0
    w = (model.linear.weight[1] - model.linear.weight[0]).detach().double()
    b = (model.linear.bias[1] - model.linear.bias[0]).detach().double()
    flat = torch.rand(n, w.numel(), generator=torch.Generator().manual_seed(seed)).double()
    y = torch.arange(n) % 2
    wanted = 0.4 * w.norm() * (2 * y - 1)
    flat = flat + ((wanted - flat @ w - b) / w.square().sum())[:, None] * w
    return model, flat.float().view(n, *shape), y


@pytest.mark.parametrize("norm", ALL)
def test_the_distance_is_that_of_the_classifier(norm: Norm) -> None:
    model, x, y = equidistant(8, (3, 4, 4), seed=3)
    assert torch.equal(model(x).argmax(1), y)
    r = distance(model, x, norm)
    assert float(r.max()) == pytest.approx(float(r.min()), rel=1e-4)
    if norm == "L2":
        assert torch.allclose(r, model.distance(x))
    # The best perturbation, written out, crosses exactly there.
    w = (model.linear.weight[1 - y] - model.linear.weight[y]).detach().double()
    best = {
        "L1": torch.zeros_like(w).scatter(
            1, w.abs().argmax(1)[:, None], w.gather(1, w.abs().argmax(1)[:, None]).sign()
        ),
        "L2": w / w.norm(dim=1, keepdim=True),
        "Linf": w.sign(),
    }[norm]
    assert torch.allclose(norm_of(best, norm), torch.ones(8, dtype=torch.float64))
    for factor, broken in ((0.999, False), (1.001, True)):
        z = x + (factor * r[:, None] * best).float().view_as(x)
        assert torch.equal(model(z).argmax(1) != y, torch.full((8,), broken))


@pytest.mark.parametrize(("n", "shape"), SHAPES, ids=str)
@pytest.mark.parametrize(("attack", "norm"), STRONG, ids=str)
def test_attacks_reach_the_distance(attack: Attack, norm: Norm, n: int, shape: tuple[int, ...]) -> None:
    model, x, y = equidistant(n, shape, seed=n)
    r = distance(model, x, norm)
    found = attack(model, x, y, threat=Threat(norm, 1.01 * float(r.max()), box=None), rng=Stream(n))
    assert found.success.all()
    assert (found.distance >= r * (1 - 1e-4)).all()
    assert torch.equal(model(found.adversarial).argmax(1), 1 - y)
    below = attack(model, x, y, threat=Threat(norm, 0.99 * float(r.min()), box=None), rng=Stream(n))
    assert not below.success.any()
    assert torch.isinf(below.distance).all()
    assert torch.equal(below.adversarial, x)


@pytest.mark.parametrize("norm", ALL)
@pytest.mark.parametrize("attack", [a for a, _ in ATTACKS] + SOUND, ids=str)
def test_attacks_never_beat_the_distance(attack: Attack, norm: Norm) -> None:
    """Four classes, and inputs at every distance: what lies within the budget may break, and nothing else."""
    model = affine(4, (4,), seed=1)
    x = torch.rand(8, 4, generator=torch.Generator().manual_seed(5))
    y = model(x).argmax(1)
    r = distance(model, x, norm)
    for eps in (0.99 * float(r.min()), float(r.median())):
        found = attack(model, x, y, threat=Threat(norm, eps, box=None), rng=Stream(2))
        assert (found.distance >= r * (1 - 1e-4)).all()
        assert not found.success[r > eps * 1.001].any()
