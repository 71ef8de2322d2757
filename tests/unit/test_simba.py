"""SimBA: exact where single coordinates are optimal, honest everywhere."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.fft import idctn

from analysis.attacks.losses import log_odds
from analysis.attacks.simba import SimBA, dct_basis
from certify.errors import InputError
from certify.rng import Stream
from certify.threat import Box, Norm, Threat
from tests.attack_cases import BOXES, SHAPES, assert_honest, counted, linear_case


@pytest.mark.parametrize("box", BOXES)
@pytest.mark.parametrize("shape", SHAPES)
def test_in_linf_one_pass_over_the_pixels_finds_what_there_is(shape, box: Box) -> None:
    """Two linear classes: every coordinate at plus or minus eps is the optimal attack."""
    model, x, y, nearest = linear_case(shape, 8, "Linf", box, classes=2)
    for i in range(8):
        for factor in (0.99, 1.01):
            eps = factor * float(nearest[i])
            attack = SimBA(steps=math.prod(shape), step_size=2 * eps)
            one, label = x[i : i + 1], y[i : i + 1]
            attacked = attack(model, one, label, threat=Threat("Linf", eps, box), rng=Stream(i))
            assert_honest(attacked, model, one, label)
            assert bool(attacked.success) == (factor > 1)


@pytest.mark.parametrize("basis", ["pixel", "dct"])
@pytest.mark.parametrize("shape", SHAPES)
def test_in_l2_it_succeeds_with_room_to_spare(shape, basis) -> None:
    model, x, y, nearest = linear_case(shape, 8, "L2", None, classes=2)
    threat = Threat("L2", 5 * float(nearest.max()), None)
    attacked = SimBA(steps=400, step_size=0.1, basis=basis)(model, x, y, threat=threat, rng=Stream(0))
    assert_honest(attacked, model, x, y)
    assert bool(attacked.success.all())
    assert bool((attacked.distance >= nearest * (1 - 1e-5)).all())


@pytest.mark.parametrize("shape", [*SHAPES, (6, 3)])
def test_the_cosines_are_those_of_scipy_and_orthonormal(shape) -> None:
    count = math.prod(shape)
    basis = dct_basis(torch.arange(count), shape, share=1.0)
    flat = basis.flatten(1)
    torch.testing.assert_close(flat @ flat.T, torch.eye(count, dtype=torch.float64), rtol=0, atol=1e-12)
    height, width = (1, *shape)[-2:]
    for index in (0, 1, count // 2, count - 1):
        spectrum = torch.zeros(count // (height * width), height, width, dtype=torch.float64)
        spectrum.view(-1)[index] = 1
        wave = torch.from_numpy(idctn(spectrum.numpy(), axes=(1, 2), norm="ortho"))
        torch.testing.assert_close(basis[index].flatten(), wave.flatten(), rtol=0, atol=1e-12)


def test_a_share_of_the_frequencies_keeps_the_lowest() -> None:
    shape, low = (2, 8, 8), dct_basis(torch.arange(2 * 4 * 4), (2, 8, 8), share=0.5)
    every = dct_basis(torch.arange(128), shape, share=1.0)
    wanted = [c * 64 + row * 8 + column for c in range(2) for row in range(4) for column in range(4)]
    assert torch.equal(low, every[wanted])


def test_log_odds_order_inputs_whose_probability_rounds_to_one() -> None:
    y = torch.tensor([0, 0])
    logits = torch.tensor([[60.0, 0.0, 0.0], [59.0, 0.0, 0.0]])
    assert torch.equal(logits.softmax(1)[:, 0], torch.ones(2))
    odds = log_odds(logits, y)
    assert float(odds[0] - odds[1]) == pytest.approx(1.0, rel=1e-5)
    logits = torch.tensor([[1.0, 0.5, -1.0]])
    p = float(logits.softmax(1)[0, 0])
    assert float(log_odds(logits, y[:1])) == pytest.approx(math.log(p / (1 - p)), rel=1e-5)


@pytest.mark.parametrize("n", [1, 3, 8])
def test_an_example_is_attacked_alike_alone_and_in_a_batch(n: int) -> None:
    model, x, y, _ = linear_case((1, 5, 5), n, "L2", None)
    attack, threat = SimBA(steps=40, step_size=0.1), Threat("L2", 1.0, None)
    streams = [Stream(0).child(f"id{i}") for i in range(n)]
    together = attack(model, x, y, threat=threat, rng=streams)
    alone = [attack(model, x[i : i + 1], y[i : i + 1], threat=threat, rng=streams[i : i + 1]) for i in range(n)]
    torch.testing.assert_close(together.distance, torch.cat([a.distance for a in alone]))
    assert torch.equal(together.forwards, torch.cat([a.forwards for a in alone]))


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    eps=st.sampled_from([0.0, 0.003, 0.05, 0.3, 3.0]),
    shape=st.sampled_from(SHAPES),
    box=st.sampled_from(BOXES),
    norm=st.sampled_from(["L2", "Linf"]),
    basis=st.sampled_from(["pixel", "dct"]),
)
def test_successes_are_successes_and_queries_are_counted(
    seed: int, eps: float, shape, box: Box, norm: Norm, basis
) -> None:
    model, x, _, _ = linear_case(shape, 3, norm, box, seed=seed)
    y, threat = torch.tensor([0, 1, 2]), Threat(norm, eps, box)
    attack = SimBA(steps=15, step_size=0.1, basis=basis, share=0.7)
    with counted(model) as sizes:
        attacked = attack(model, x, y, threat=threat, rng=Stream(seed))
    assert_honest(attacked, model, x, y)
    assert sum(sizes) == int(attacked.forwards.sum())
    assert bool((attacked.forwards <= 1 + 2 * 15).all())
    assert not bool(attacked.backwards.any())
    assert attacked.loss is not None
    loss = attacked.loss.nan_to_num(-torch.inf).cummax(1).values
    seen = ~attacked.loss.isnan()
    assert torch.equal(attacked.loss[seen], loss[seen])  # a step is kept only if it helps
    again = attack(model, x, y, threat=threat, rng=Stream(seed))
    assert torch.equal(again.adversarial, attacked.adversarial)
    assert torch.equal(again.forwards, attacked.forwards)


def test_queries_of_one_step() -> None:
    """A first move that helps costs one query, one that does not costs two."""
    model, x, y, _ = linear_case((4,), 8, "L2", None, classes=2)
    attacked = SimBA(steps=1, step_size=1e-3)(model, x, y, threat=Threat("L2", 1.0, None), rng=Stream(3))
    assert set(attacked.forwards.tolist()) == {2, 3}


def test_what_is_misclassified_already_is_a_success_at_distance_zero() -> None:
    model, x, y, _ = linear_case((4,), 3, "L2", None)
    attacked = SimBA()(model, x, (y + 1) % 3, threat=Threat("L2", 0.0, None), rng=Stream(0))
    assert attacked.distance.tolist() == [0.0, 0.0, 0.0]
    assert attacked.forwards.tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("fields", "rule"),
    [
        ({"steps": 0}, "need steps >= 1; got 0"),
        ({"step_size": 0.0}, "need a finite step_size > 0; got 0.0"),
        ({"basis": "wavelet"}, "need a basis among pixel, dct; got 'wavelet'"),
        ({"share": 0.0}, "need 0 < share <= 1; got 0.0"),
    ],
)
def test_fields_out_of_range(fields, rule: str) -> None:
    with pytest.raises(InputError, match=rule):
        SimBA(**fields)


def test_threats_it_cannot_serve() -> None:
    model, x, y, _ = linear_case((4,), 1, "L2", None)
    with pytest.raises(InputError, match="need an L2 or Linf threat for SimBA; got L1"):
        SimBA()(model, x, y, threat=Threat("L1", 1.0, None), rng=Stream(0))
