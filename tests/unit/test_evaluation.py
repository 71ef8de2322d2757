"""The ladder of attacks: survivors, per-example worst case, intervals, provenance."""

import pytest
import torch

from analysis.attacks import DDN, FGSM, PGD, RandomNoise
from analysis.evaluation import evaluate, robust_accuracy_curve
from certify import InputError, Stream, Threat, lower_confidence_bound, upper_confidence_bound
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


def test_refuses() -> None:
    with pytest.raises(InputError, match="need at least one attack"):
        evaluate(MODEL, X, Y, [], threat=THREAT, rng=Stream(0))
