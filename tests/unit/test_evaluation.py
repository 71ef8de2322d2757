"""The ladder of attacks: survivors, per-example worst case, intervals, provenance."""

from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch

import analysis.attacks
from analysis.attacks import DDN, FGSM, PGD, Attack, Attacked, RandomNoise, SmoothAdv, Transfer
from analysis.evaluation import beyond, evaluate, exact_interval, explicit, robust_accuracy_curve, round_down, round_up
from certify import Gaussian, InputError, Stream, Threat, lower_confidence_bound, upper_confidence_bound
from certify.threat import Norm
from tests.classifiers import affine

MODEL = affine(3, (6,), seed=1)
X = torch.rand(40, 6, generator=torch.Generator().manual_seed(0))
Y = MODEL(X).argmax(1).detach()
DISTANCE = MODEL.distance(X)
EPS = float(DISTANCE.median())
THREAT = Threat("L2", EPS, box=None)


def test_robust_accuracy_of_an_affine_classifier_is_known() -> None:
    """Two classes, where the gradient points at the nearest boundary; a budget half way between two distances."""
    model = affine(2, (6,), seed=1)
    y, distance = model(X).argmax(1).detach(), model.distance(X).sort().values
    threat = Threat("L2", float((distance[19] + distance[20]) / 2), box=None)
    result = evaluate(model, X, y, [FGSM(), PGD(20)], threat=threat, rng=Stream(0))
    assert result.clean_accuracy == 1.0
    assert result.robust_accuracy == 0.5
    assert result.interval == (lower_confidence_bound(20, 40, 0.025), upper_confidence_bound(20, 40, 0.025))
    assert (result.distance >= model.distance(X) * (1 - 1e-5)).all()


def test_each_rung_meets_only_survivors() -> None:
    result = evaluate(MODEL, X, Y, [RandomNoise(20), FGSM(), PGD(20)], threat=THREAT, rng=Stream(0))
    first, second, third = result.rungs
    assert first.attacked == 40
    assert second.attacked == 40 - first.broken
    assert third.attacked == second.attacked - second.broken
    assert round(result.robust_accuracy * 40) == third.attacked - third.broken
    everyone = evaluate(MODEL, X, Y, [FGSM(), PGD(20)], threat=THREAT, rng=Stream(0), survivors_only=False)
    assert [r.attacked for r in everyone.rungs] == [40, 40]


def test_keeps_the_nearest_counterexample() -> None:
    threat = Threat("L2", 100.0, box=None)
    attacks = [PGD(20), DDN()]
    result = evaluate(MODEL, X, Y, attacks, threat=threat, rng=Stream(0), survivors_only=False)
    alone = evaluate(MODEL, X, Y, attacks[1:], threat=threat, rng=Stream(0), survivors_only=False)
    assert (result.distance <= alone.distance * (1 + 1e-3)).all()
    assert (MODEL(result.adversarial).argmax(1) != Y).all()
    other_order = evaluate(MODEL, X, Y, attacks[::-1], threat=threat, rng=Stream(0), survivors_only=False)
    assert (other_order.distance <= alone.distance).all(), "a later, farther one replaces nothing"
    recomputed = (result.adversarial - X).double().norm(dim=1)
    assert torch.allclose(recomputed, result.distance, rtol=1e-5)


def test_misclassified_inputs_are_at_distance_zero_and_are_not_attacked() -> None:
    wrong = Y.clone()
    wrong[:5] = (wrong[:5] + 1) % 3
    result = evaluate(MODEL, X, wrong, [FGSM()], threat=THREAT, rng=Stream(0))
    assert result.clean_accuracy == 35 / 40
    assert result.distance[:5].tolist() == [0.0] * 5
    assert result.rungs[0].attacked == 35


def test_what_is_printed_says_everything() -> None:
    text = str(evaluate(MODEL, X, Y, [FGSM()], threat=THREAT, rng=Stream(7)))
    for part in ("n = 40", "95 %", "L2 eps =", "seed 7", "FGSM(", "forward", "clean 1.0000", "box None"):
        assert part in text


def test_curve() -> None:
    distance = torch.tensor([0.0, 0.1, 0.2, torch.inf], dtype=torch.float64)
    assert robust_accuracy_curve(distance, [0.0, 0.1, 0.15, 10.0]) == [0.75, 0.5, 0.5, 0.25]
    with pytest.raises(InputError, match="budgets >= 0"):
        robust_accuracy_curve(distance, [-0.1])


def test_the_cut_into_blocks_is_the_cut_of_the_randomness() -> None:
    """Two blocks of twenty are what each half is by itself, under the name of its first example."""
    attacks = [RandomNoise(3), PGD(2)]
    whole = evaluate(MODEL, X, Y, attacks, threat=THREAT, rng=Stream(3), batch=20)
    first = evaluate(MODEL, X[:20], Y[:20], attacks, threat=THREAT, rng=Stream(3), batch=20)
    assert whole.distance[:20].tolist() == first.distance.tolist()
    other = evaluate(MODEL, X, Y, attacks, threat=THREAT, rng=Stream(4), batch=20)
    assert whole.distance.tolist() != other.distance.tolist()


ATTACKS = [getattr(analysis.attacks, name) for name in analysis.attacks.__all__]
ATTACKS = [a for a in ATTACKS if isinstance(a, type) and a not in (Attack, Attacked)]
EFFORT = {
    "steps",
    "step_size",
    "step",
    "restarts",
    "queries",
    "draws",
    "searches",
    "samples",
    "votes",
    "loss",
    "targets",
}


def made(kind: type) -> Any:
    """An attack with numbers that no default is, where it has them."""
    needed = {SmoothAdv: {"noise": Gaussian(0.5)}, Transfer: {"surrogate": MODEL, "attack": PGD(), "name": "other"}}
    attack = kind(**needed.get(kind, {}))
    wanted = {"steps": 173, "step_size": 0.0173, "restarts": 17, "queries": 1733, "draws": 1737}
    return replace(attack, **{name: value for name, value in wanted.items() if hasattr(attack, name)})


@pytest.mark.parametrize("kind", ATTACKS, ids=lambda kind: kind.__name__)
def test_every_attack_shows_its_effort(kind: type) -> None:
    """Every field that decides how hard it tries: a table repeats no more than the repr."""
    attack, text = made(kind), repr(made(kind))
    assert text.startswith(kind.__name__ + "(")
    shown = [f.name for f in fields(attack) if f.name != "surrogate"]
    assert EFFORT & set(shown) or kind in (FGSM, Transfer)
    for name in shown:
        assert f"{name}={getattr(attack, name)!r}" in text


def test_a_step_size_in_proportion_to_the_budget_is_printed_as_a_number() -> None:
    proportionate = PGD(50)
    spelled_out = explicit(proportionate, Threat("L2", 0.5))
    assert spelled_out == PGD(50, step_size=0.025)
    assert explicit(PGD(50, 0.3), Threat("L2", 0.5)) == PGD(50, 0.3)
    assert explicit(proportionate, Threat("L2", 0.0)) == proportionate, "a step size is positive"
    transfer = Transfer(MODEL, proportionate, "other")
    assert "step_size=0.025" in repr(explicit(transfer, Threat("L2", 0.5)))
    # It is the step that the attack takes by itself.
    by_itself = proportionate(MODEL, X, Y, threat=THREAT, rng=Stream(0))
    the_same = explicit(proportionate, THREAT)(MODEL, X, Y, threat=THREAT, rng=Stream(0))
    assert by_itself.distance.tolist() == the_same.distance.tolist()
    result = evaluate(MODEL, X, Y, [proportionate], threat=THREAT, rng=Stream(0))
    assert f"step_size={2.5 * EPS / 50!r}" in str(result)


def test_intervals_are_printed_outward() -> None:
    low, high = exact_interval(20, 40, 0.05)
    assert low == lower_confidence_bound(20, 40, 0.025)
    assert float(round_down(low)) <= low < float(round_down(low)) + 1e-4
    assert float(round_up(high)) - 1e-4 < high <= float(round_up(high))
    assert (round_down(0.0), round_up(0.0), round_up(1.0), round_up(0.30001)) == (
        "0.0000",
        "0.0000",
        "1.0000",
        "0.3001",
    )
    assert (round_down(float("inf")), round_up(float("inf"))) == ("inf", "inf")


def test_refuses() -> None:
    with pytest.raises(InputError, match="need a model in evaluation mode"):
        evaluate(affine(3, (6,), seed=1).train(), X, Y, [FGSM()], threat=THREAT, rng=Stream(0))
    with pytest.raises(InputError, match="need 0 < rho < 1; got 1"):
        evaluate(MODEL, X, Y, [FGSM()], threat=THREAT, rng=Stream(0), rho=1.0)
    with pytest.raises(InputError, match="need at least one attack"):
        evaluate(MODEL, X, Y, [], threat=THREAT, rng=Stream(0))


def test_what_exceeds_a_budget_by_rounding_was_found_within_it() -> None:
    """Every float32 nearest to one of these budgets is above it; so is every pixel moved by it."""
    for budget in (0.05, 0.1, 0.2, 0.3):
        moved = float(torch.tensor(budget))
        assert moved > budget
        found = beyond(np.array([moved, 0.0, budget * 1.001, np.inf]), budget)
        assert found.tolist() == [False, False, True, True]
        assert robust_accuracy_curve(torch.tensor([moved, torch.inf], dtype=torch.float64), [budget]) == [0.5]


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_the_curve_at_the_budget_of_an_attack_is_its_robust_accuracy(norm: Norm) -> None:
    model, generator = affine(2, (30,), seed=0), torch.Generator().manual_seed(0)
    x = 0.25 + 0.5 * torch.rand(300, 30, generator=generator)
    y, scale = model(x).argmax(1), {"L2": 1.0, "Linf": 0.2}[norm]
    threat = Threat(norm, scale * float(model.distance(x).median()))
    found = evaluate(model, x, y, [PGD(20)], threat=threat, rng=Stream(0))
    robust = float(found.distance.isinf().double().mean())
    assert 0.1 < robust < 0.9
    assert robust_accuracy_curve(found.distance, [threat.eps]) == [robust]
