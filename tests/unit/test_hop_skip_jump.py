"""HopSkipJump against the nearest error of linear classifiers."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from analysis.attacks.hop_skip_jump import HopSkipJump
from certify.errors import InputError
from certify.rng import Stream
from certify.threat import Box, Norm, Threat
from tests.attack_cases import BOXES, FAR, SHAPES, assert_honest, counted, linear_case

# About 11,600 decisions per example: within 5 % of the optimum in up to 48 dimensions.
BUDGET = HopSkipJump(steps=30, initial_samples=100)
TINY = HopSkipJump(steps=2, initial_samples=10)


@pytest.mark.parametrize("box", BOXES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("norm", ["L2", "Linf"])
def test_it_finds_the_nearest_error_within_five_percent(shape, box: Box, norm: Norm) -> None:
    model, x, y, nearest = linear_case(shape, 4, norm, box, classes=2)
    attacked = BUDGET(model, x, y, threat=Threat(norm, FAR, box), rng=Stream(0))
    assert_honest(attacked, model, x, y)
    assert bool((attacked.distance >= nearest * (1 - 1e-4)).all())
    assert bool((attacked.distance <= nearest * 1.05).all())
    assert bool((attacked.forwards <= 11_800).all())
    assert not bool(attacked.backwards.any())


def test_it_reads_decisions_only() -> None:
    model, x, y, _ = linear_case((1, 5, 5), 3, "L2", None)

    class Decisions(nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            return nn.functional.one_hot(model(z).argmax(1), 3).float()

    threat = Threat("L2", FAR, None)
    scores, decisions = (TINY(m, x, y, threat=threat, rng=Stream(0)) for m in (model, Decisions().eval()))
    assert torch.equal(scores.adversarial, decisions.adversarial)
    assert torch.equal(scores.forwards, decisions.forwards)


@pytest.mark.parametrize("n", [1, 3, 8])
@pytest.mark.parametrize("norm", ["L2", "Linf"])
def test_an_example_is_attacked_alike_alone_and_in_a_batch(n: int, norm: Norm) -> None:
    model, x, y, _ = linear_case((1, 5, 5), n, norm, None, classes=2)
    attack, threat = HopSkipJump(steps=6, initial_samples=40), Threat(norm, FAR, None)
    streams = [Stream(0).child(f"id{i}") for i in range(n)]
    together = attack(model, x, y, threat=threat, rng=streams)
    alone = [attack(model, x[i : i + 1], y[i : i + 1], threat=threat, rng=streams[i : i + 1]) for i in range(n)]
    torch.testing.assert_close(together.distance, torch.cat([a.distance for a in alone]), rtol=0.01, atol=0)


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
        attacked = TINY(model, x, y, threat=threat, rng=Stream(seed))
    assert_honest(attacked, model, x, y)
    assert sum(sizes) == int(attacked.forwards.sum())
    assert not bool(attacked.backwards.any())
    again = TINY(model, x, y, threat=threat, rng=Stream(seed))
    assert torch.equal(again.adversarial, attacked.adversarial)
    assert torch.equal(again.forwards, attacked.forwards)


def test_more_steps_bring_it_nearer() -> None:
    model, x, y, _ = linear_case((3, 4, 4), 4, "L2", None, classes=2)
    short, long = (
        HopSkipJump(steps=steps, initial_samples=40)(model, x, y, threat=Threat("L2", FAR, None), rng=Stream(0))
        for steps in (2, 8)
    )
    assert bool((long.distance < short.distance).all())
    assert bool((long.forwards > short.forwards).all())
    assert long.loss is not None
    assert bool((long.loss[:, -1] > long.loss[:, 0]).all())


def test_where_no_start_is_found_there_is_no_success() -> None:
    class Constant(nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            return z.flatten(1)[:, :1] * 0 + torch.tensor([1.0, 0.0])

    x, y = torch.rand(2, 4), torch.zeros(2, dtype=torch.int64)
    attacked = HopSkipJump(starts=7)(Constant().eval(), x, y, threat=Threat("L2", FAR), rng=Stream(0))
    assert not bool(attacked.success.any())
    assert attacked.forwards.tolist() == [8, 8]


def test_noise_grows_until_it_reaches_a_far_boundary() -> None:
    model = nn.Linear(2, 2).eval()
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.0, 0.0], [1.0, 0.0]]))
        model.bias.copy_(torch.tensor([0.0, -200.0]))
    x, y = torch.zeros(1, 2), torch.tensor([0])
    attacked = HopSkipJump(steps=10, initial_samples=50)(model, x, y, threat=Threat("L2", FAR, None), rng=Stream(0))
    assert float(attacked.distance) == pytest.approx(200, rel=0.01)


def test_steps_are_halved_where_errors_lie_in_a_small_disc() -> None:
    class Disc(nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            inside = 0.05 - (z - torch.tensor([0.7, 0.7])).norm(dim=1)
            return torch.stack([torch.zeros_like(inside), inside], dim=1)

    x, y = torch.tensor([[0.2, 0.6], [0.9, 0.1]]), torch.tensor([0, 0])
    attack = HopSkipJump(steps=15, initial_samples=50, starts=2000)
    attacked = attack(Disc().eval(), x, y, threat=Threat("L2", FAR), rng=Stream(0))
    nearest = (x - 0.7).double().norm(dim=1) - 0.05
    torch.testing.assert_close(attacked.distance, nearest, rtol=0.005, atol=0)


def test_what_is_misclassified_already_is_a_success_at_distance_zero() -> None:
    model, x, y, _ = linear_case((4,), 3, "L2", None)
    attacked = HopSkipJump()(model, x, (y + 1) % 3, threat=Threat("L2", 0.0, None), rng=Stream(0))
    assert attacked.distance.tolist() == [0.0, 0.0, 0.0]
    assert attacked.forwards.tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("fields", "rule"),
    [
        ({"steps": 0}, "need steps >= 1; got 0"),
        ({"initial_samples": 0}, "need initial_samples >= 1; got 0"),
        ({"max_samples": 50}, "need max_samples >= initial_samples = 100; got 50"),
        ({"gamma": 0.0}, "need a finite gamma > 0; got 0.0"),
        ({"starts": 0}, "need starts >= 1; got 0"),
    ],
)
def test_fields_out_of_range(fields, rule: str) -> None:
    with pytest.raises(InputError, match=rule):
        HopSkipJump(**fields)


def test_threats_it_cannot_serve() -> None:
    model, x, y, _ = linear_case((4,), 1, "L2", None)
    with pytest.raises(InputError, match="need an L2 or Linf threat for HopSkipJump; got L1"):
        HopSkipJump()(model, x, y, threat=Threat("L1", 1.0, None), rng=Stream(0))
