"""DDN against the nearest error of linear classifiers."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.attacks.ddn import DDN
from certify.errors import InputError
from certify.rng import Stream
from certify.threat import Box, Threat
from tests.attack_cases import BOXES, FAR, SHAPES, assert_honest, counted, linear_case


@pytest.mark.parametrize("box", BOXES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("loss", "scale"), [("cross_entropy", 1.0), ("cross_entropy", 50.0), ("margin", 1.0)])
def test_it_finds_the_nearest_error_within_one_percent(shape, box: Box, loss, scale: float) -> None:
    # At scale 50 the probability of the label rounds to 1, and a cross-entropy has no gradient.
    model, x, y, nearest = linear_case(shape, 8, "L2", box, classes=2, scale=scale)
    attacked = DDN(loss=loss)(model, x, y, threat=Threat("L2", FAR, box), rng=Stream(0))
    assert_honest(attacked, model, x, y)
    assert bool((attacked.distance >= nearest * (1 - 1e-5)).all())
    assert bool((attacked.distance <= nearest * 1.01).all())


def test_among_several_classes_most_find_the_nearest() -> None:
    model, x, y, nearest = linear_case((3, 4, 4), 8, "L2", (0.0, 1.0), classes=4)
    attacked = DDN(loss="margin")(model, x, y, threat=Threat("L2", FAR), rng=Stream(0))
    assert bool(attacked.success.all())
    assert float((attacked.distance / nearest).median()) <= 1.01


@pytest.mark.parametrize("n", [1, 3, 8])
def test_an_example_is_attacked_alike_alone_and_in_a_batch(n: int) -> None:
    model, x, y, _ = linear_case((1, 5, 5), n, "L2", None, classes=3)
    threat, streams = Threat("L2", FAR, None), [Stream(0).child(f"id{i}") for i in range(n)]
    together = DDN()(model, x, y, threat=threat, rng=streams)
    alone = [DDN()(model, x[i : i + 1], y[i : i + 1], threat=threat, rng=streams[i : i + 1]) for i in range(n)]
    torch.testing.assert_close(together.distance, torch.cat([a.distance for a in alone]), rtol=1e-4, atol=0)
    assert torch.equal(together.forwards, torch.cat([a.forwards for a in alone]))


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    eps=st.sampled_from([0.0, 0.003, 0.05, 0.3, 3.0]),
    shape=st.sampled_from(SHAPES),
    box=st.sampled_from(BOXES),
    levels=st.sampled_from([None, 256]),
)
def test_successes_are_successes_and_queries_are_counted(seed: int, eps: float, shape, box: Box, levels) -> None:
    levels = None if box is None else levels
    model, x, _, _ = linear_case(shape, 3, "L2", box, seed=seed)
    y = torch.tensor([0, 1, 2])
    attack, threat = DDN(steps=12, initial_norm=0.2, levels=levels), Threat("L2", eps, box)
    with counted(model) as sizes:
        attacked = attack(model, x, y, threat=threat, rng=Stream(seed))
    assert_honest(attacked, model, x, y)
    right = model(x).argmax(1) == y
    assert torch.equal(attacked.forwards, 1 + 12 * right)
    assert torch.equal(attacked.backwards, 12 * right)
    assert sum(sizes) == int(attacked.forwards.sum())
    again = attack(model, x, y, threat=threat, rng=Stream(seed))
    assert torch.equal(again.adversarial, attacked.adversarial)


def test_what_is_misclassified_already_is_a_success_at_distance_zero() -> None:
    model, x, y, _ = linear_case((4,), 3, "L2", None)
    attacked = DDN()(model, x, (y + 1) % 3, threat=Threat("L2", 0.0, None), rng=Stream(0))
    assert attacked.distance.tolist() == [0.0, 0.0, 0.0]
    assert torch.equal(attacked.adversarial, x)
    assert attacked.forwards.tolist() == [1, 1, 1]
    assert attacked.backwards.tolist() == [0, 0, 0]


def test_nothing_outside_the_budget_counts() -> None:
    model, x, y, nearest = linear_case((4,), 8, "L2", None)
    attacked = DDN()(model, x, y, threat=Threat("L2", 0.999 * float(nearest.min()), None), rng=Stream(0))
    assert not bool(attacked.success.any())
    assert torch.equal(attacked.adversarial, x)


def test_levels_round_what_the_model_is_shown() -> None:
    model, x, _, _ = linear_case((1, 5, 5), 3, "L2", (0.0, 1.0), classes=2)
    x = (x * 15).round() / 15
    y = model(x).argmax(1)
    attacked = DDN(levels=16)(model, x, y, threat=Threat("L2", FAR), rng=Stream(0))
    assert bool(attacked.success.all())
    torch.testing.assert_close(attacked.adversarial * 15, (attacked.adversarial * 15).round(), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("fields", "rule"),
    [
        ({"steps": 0}, "need steps >= 1; got 0"),
        ({"gamma": 1.0}, "need 0 < gamma < 1; got 1.0"),
        ({"initial_norm": 0.0}, "need a finite initial_norm > 0; got 0.0"),
        ({"levels": 1}, "need levels >= 2, or None; got 1"),
        ({"loss": "hinge"}, "need a loss among cross_entropy, margin, dlr; got 'hinge'"),
    ],
)
def test_fields_out_of_range(fields, rule: str) -> None:
    with pytest.raises(InputError, match=rule):
        DDN(**fields)


def test_threats_it_cannot_serve() -> None:
    model, x, y, _ = linear_case((4,), 1, "L2", None)
    with pytest.raises(InputError, match="need an L2 threat for DDN; got Linf"):
        DDN()(model, x, y, threat=Threat("Linf", 1.0, None), rng=Stream(0))
    with pytest.raises(InputError, match="need a box to round inputs to 8 levels; got None"):
        DDN(levels=8)(model, x, y, threat=Threat("L2", 1.0, None), rng=Stream(0))
