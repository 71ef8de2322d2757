"""Carlini and Wagner's attack against the nearest error of linear classifiers."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.attacks.carlini_wagner import CarliniWagner
from analysis.attacks.losses import margin
from certify.errors import InputError
from certify.rng import Stream
from certify.threat import Box, Threat
from tests.attack_cases import BOXES, FAR, SHAPES, assert_honest, counted, linear_case

# Enough for 1 % here; the defaults are for networks.
SHORT = CarliniWagner(steps=200, searches=7, initial_c=0.1)


@pytest.mark.parametrize("box", BOXES)
@pytest.mark.parametrize("shape", SHAPES)
def test_it_finds_the_nearest_error_within_one_percent(shape, box: Box) -> None:
    model, x, y, nearest = linear_case(shape, 8, "L2", box, classes=2)
    attacked = SHORT(model, x, y, threat=Threat("L2", FAR, box), rng=Stream(0))
    assert_honest(attacked, model, x, y)
    assert bool((attacked.distance >= nearest * (1 - 1e-5)).all())
    assert bool((attacked.distance <= nearest * 1.01).all())


@pytest.mark.parametrize("n", [1, 3, 8])
def test_an_example_is_attacked_alike_alone_and_in_a_batch(n: int) -> None:
    model, x, y, _ = linear_case((1, 5, 5), n, "L2", (0.0, 1.0), classes=3)
    attack, threat = CarliniWagner(steps=20, searches=3, initial_c=1.0, step_size=0.05), Threat("L2", FAR)
    together = attack(model, x, y, threat=threat)
    alone = [attack(model, x[i : i + 1], y[i : i + 1], threat=threat) for i in range(n)]
    torch.testing.assert_close(together.distance, torch.cat([a.distance for a in alone]), rtol=1e-3, atol=0)


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    eps=st.sampled_from([0.0, 0.003, 0.05, 0.3, 3.0]),
    shape=st.sampled_from(SHAPES),
    box=st.sampled_from([None, (0.0, 1.0), (-1.0, 3.0)]),
)
def test_successes_are_successes_and_queries_are_counted(seed: int, eps: float, shape, box: Box) -> None:
    model, x, _, _ = linear_case(shape, 3, "L2", box, seed=seed)
    y, threat = torch.tensor([0, 1, 2]), Threat("L2", eps, box)
    attack = CarliniWagner(steps=10, searches=2, initial_c=1.0, step_size=0.05)
    with counted(model) as sizes:
        attacked = attack(model, x, y, threat=threat, rng=Stream(seed))
    assert_honest(attacked, model, x, y)
    right = model(x).argmax(1) == y
    assert torch.equal(attacked.forwards, 1 + 20 * right)
    assert torch.equal(attacked.backwards, 20 * right)
    assert sum(sizes) == int(attacked.forwards.sum())
    again = attack(model, x, y, threat=threat, rng=Stream(seed + 1))
    assert torch.equal(again.adversarial, attacked.adversarial)
    assert all(p.grad is None for p in model.parameters())


def test_inputs_on_the_faces_of_the_box_can_move() -> None:
    model, x, _, _ = linear_case((1, 5, 5), 8, "L2", (0.0, 1.0), classes=2)
    x = x.round()
    y = model(x).argmax(1)
    attacked = CarliniWagner(steps=100, searches=4, initial_c=10.0, step_size=0.1)(
        model, x, y, threat=Threat("L2", FAR)
    )
    assert_honest(attacked, model, x, y)
    assert bool(attacked.success.all())


def test_confidence_pushes_beyond_the_boundary() -> None:
    model, x, y, nearest = linear_case((4,), 3, "L2", None, classes=2)
    attack = CarliniWagner(steps=100, searches=1, initial_c=10.0, confidence=1.0)
    seen: list[float] = []
    handle = model.register_forward_hook(lambda _m, _a, out: seen.append(float(margin(out.detach(), y).min())))
    attacked = attack(model, x, y, threat=Threat("L2", FAR, None))
    handle.remove()
    assert max(seen) >= 0.9
    assert bool((attacked.distance < 1.5 * nearest).all())  # the nearest on the way is still what counts


def test_what_is_misclassified_already_is_a_success_at_distance_zero() -> None:
    model, x, y, _ = linear_case((4,), 3, "L2", None)
    attacked = CarliniWagner()(model, x, (y + 1) % 3, threat=Threat("L2", 0.0, None))
    assert attacked.distance.tolist() == [0.0, 0.0, 0.0]
    assert attacked.forwards.tolist() == [1, 1, 1]
    assert attacked.backwards.tolist() == [0, 0, 0]


def test_nothing_outside_the_budget_counts() -> None:
    model, x, y, nearest = linear_case((4,), 8, "L2", None)
    attack, threat = (
        CarliniWagner(steps=30, searches=2, initial_c=1.0),
        Threat("L2", 0.999 * float(nearest.min()), None),
    )
    attacked = attack(model, x, y, threat=threat)
    assert not bool(attacked.success.any())
    assert torch.equal(attacked.adversarial, x)


@pytest.mark.parametrize(
    ("fields", "rule"),
    [
        ({"steps": 0}, "need steps >= 1; got 0"),
        ({"searches": 0}, "need searches >= 1; got 0"),
        ({"step_size": 0.0}, "need a finite step_size > 0; got 0.0"),
        ({"initial_c": -1.0}, "need a finite initial_c > 0; got -1.0"),
        ({"confidence": -1.0}, "need a finite confidence >= 0; got -1.0"),
    ],
)
def test_fields_out_of_range(fields, rule: str) -> None:
    with pytest.raises(InputError, match=rule):
        CarliniWagner(**fields)


def test_threats_it_cannot_serve() -> None:
    model, x, y, _ = linear_case((4,), 1, "L2", None)
    with pytest.raises(InputError, match="need an L2 threat for CarliniWagner; got Linf"):
        CarliniWagner()(model, x, y, threat=Threat("Linf", 1.0, None))
