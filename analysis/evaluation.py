"""Robust accuracy as an adversary would have it: every attack on every survivor, the worst kept for each example."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from analysis.attacks.attacked import SLACK, Attack, Queries
from analysis.attacks.pgd import PGD
from analysis.attacks.transfer import Transfer
from certify.accuracy import FloatArray
from certify.binomial import check_alpha, lower_confidence_bound, upper_confidence_bound
from certify.campaign.logs import floor_decimal
from certify.errors import InputError
from certify.rng import Stream
from certify.threat import Threat


@dataclass(frozen=True, slots=True)
class Rung:
    """One attack of a ladder: how many examples it met, how many it broke, and what it cost.

    Attributes:
        attack: repr of the attack, all its hyperparameters, its step size as a number.
        attacked: Examples that had survived so far.
        broken: Of those, how many it misclassified.
        forwards: Inputs classified in all.
        backwards: Input gradients in all.
    """

    attack: str
    attacked: int
    broken: int
    forwards: int
    backwards: int


@dataclass(frozen=True, slots=True, eq=False)
class Climbed:
    """What a ladder of k attacks did to one block of n examples.

    Attributes:
        prediction: (n,) int64, of the inputs as they are.
        distance: (n,) float64, the smallest over attacks; 0 where misclassified already, +inf where unbroken.
        adversarial: (n, ...) the input at that distance; x itself where unbroken.
        broken_by: (n,) int64, place in the ladder of the attack that found it; -1 for none.
        attacked: (n, k) bool, whether each attack met the example.
        broken: (n, k) bool, whether it misclassified it.
        forwards: (n, k) int64, inputs classified.
        backwards: (n, k) int64, input gradients.
    """

    prediction: Tensor
    distance: Tensor
    adversarial: Tensor
    broken_by: Tensor
    attacked: Tensor
    broken: Tensor
    forwards: Tensor
    backwards: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """Robust accuracy of n examples under a ladder of attacks.

    Attributes:
        clean_accuracy: Share classified correctly as they are.
        robust_accuracy: Share that no attack broke: an upper bound on the sample's true robust accuracy.
        interval: Exact two-sided interval for the population's share that these attacks would not break.
        distance: (n,) float64, the smallest over attacks; 0 where misclassified already, +inf where unbroken.
        adversarial: (n, ...) the input at that distance; x itself where unbroken.
        rungs: In the order in which the attacks ran.
        threat: What they were allowed.
        n: Number of examples.
        rho: Failure probability of the interval.
        seed: Of the stream they drew from.
    """

    clean_accuracy: float
    robust_accuracy: float
    interval: tuple[float, float]
    distance: Tensor
    adversarial: Tensor
    rungs: tuple[Rung, ...]
    threat: Threat
    n: int
    rho: float
    seed: int

    def __str__(self) -> str:
        robust, clean = round(self.robust_accuracy * self.n), round(self.clean_accuracy * self.n)
        return describe(robust, clean, self.n, self.threat, self.rungs, rho=self.rho, seed=self.seed)


def evaluate(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    attacks: Sequence[Attack],
    *,
    threat: Threat,
    rng: Stream,
    rho: float = 0.05,
    survivors_only: bool = True,
    batch: int = 500,
) -> Evaluation:
    """Run a ladder of attacks, in order, and keep the nearest counterexample of each example.

    Args:
        model: (n, ...) -> (n, classes) logits, in evaluation mode.
        x: (n, ...) inputs.
        y: (n,) labels.
        attacks: Cheap ones first: each meets only what survived the ones before it.
        threat: Norm, budget and box.
        rng: Each block of examples draws from the child named by the position of its first, see `climb`.
        rho: Failure probability of the interval; 0 < rho < 1.
        survivors_only: False runs every attack on every example, for minimal distances and for attacks' own rates.
        batch: Examples attacked together. The cut into blocks is part of what determines the numbers.

    Raises:
        InputError: no attacks, no examples, or what an attack refuses.
    """
    check_alpha(rho, "rho")
    n = x.shape[0]
    if not attacks or n == 0 or batch < 1:
        raise InputError(f"need at least one attack, one example and batch >= 1; got {len(attacks)}, {n}, {batch}")
    parts = [
        climb(model, x[b], y[b], attacks, threat=threat, rng=rng.child(b.start), survivors_only=survivors_only)
        for b in blocks(n, batch)
    ]
    clean = sum(int((part.prediction == y[b].cpu()).sum()) for part, b in zip(parts, blocks(n, batch), strict=True))
    distance = torch.cat([part.distance for part in parts])
    robust = int(torch.isinf(distance).sum())
    return Evaluation(
        clean_accuracy=clean / n,
        robust_accuracy=robust / n,
        interval=exact_interval(robust, n, rho),
        distance=distance,
        adversarial=torch.cat([part.adversarial for part in parts]),
        rungs=tuple(
            Rung(
                attack=repr(explicit(attack, threat)),
                attacked=sum(int(part.attacked[:, k].sum()) for part in parts),
                broken=sum(int(part.broken[:, k].sum()) for part in parts),
                forwards=sum(int(part.forwards[:, k].sum()) for part in parts),
                backwards=sum(int(part.backwards[:, k].sum()) for part in parts),
            )
            for k, attack in enumerate(attacks)
        ),
        threat=threat,
        n=n,
        rho=rho,
        seed=rng.seed,
    )


def climb(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    attacks: Sequence[Attack],
    *,
    threat: Threat,
    rng: Stream,
    survivors_only: bool = True,
) -> Climbed:
    """The ladder on one block of examples.

    A block is attacked as a whole or not at all: the last bits of a batched convolution, and so all that follows,
    depend on the shape of the batch. What is computed depends on the block and its stream, and on nothing else.

    Args:
        model: (n, ...) -> (n, classes) logits, in evaluation mode.
        x: (n, ...) inputs.
        y: (n,) labels.
        attacks: In order.
        threat: Norm, budget and box.
        rng: Of this block; attack k draws from its child k.
        survivors_only: Whether an attack meets only what survived the ones before it.

    Raises:
        InputError: what an attack refuses.
    """
    n, k = x.shape[0], len(attacks)
    prediction = classify(model, x, y, threat)
    correct = prediction == y.cpu()
    result = Climbed(
        prediction=prediction,
        distance=torch.where(correct, torch.inf, 0.0).double(),
        adversarial=x.clone(),
        broken_by=torch.full((n,), -1),
        attacked=torch.zeros(n, k, dtype=torch.bool),
        broken=torch.zeros(n, k, dtype=torch.bool),
        forwards=torch.zeros(n, k, dtype=torch.int64),
        backwards=torch.zeros(n, k, dtype=torch.int64),
    )
    for number, attack in enumerate(attacks):
        live = (torch.isinf(result.distance) if survivors_only else correct).nonzero()[:, 0]
        if not len(live):
            break
        rows = live.to(x.device)
        found = explicit(attack, threat)(model, x[rows], y[rows], threat=threat, rng=rng.child(number))
        result.attacked[live, number] = True
        result.broken[live, number] = found.success.cpu()
        result.forwards[live, number] = found.forwards.cpu()
        result.backwards[live, number] = found.backwards.cpu()
        nearer = found.distance.cpu() < result.distance[live]
        chosen = live[nearer]
        result.distance[chosen] = found.distance.cpu()[nearer]
        result.broken_by[chosen] = number
        result.adversarial[chosen.to(x.device)] = found.adversarial[nearer.to(found.adversarial.device)].to(x.dtype)
    return result


def classify(model: nn.Module, x: Tensor, y: Tensor, threat: Threat) -> Tensor:
    """(n,) int64 on the CPU, the predictions for inputs as they are.

    Raises:
        InputError: training mode, inputs that do not fit, or logits that are not finite.
    """
    with torch.no_grad():
        return Queries(model, x, y, threat).logits(x).argmax(1).cpu()


def blocks(n: int, size: int) -> Iterator[slice]:
    """0 ... n - 1 in blocks of `size`, the last one shorter where it must be."""
    for first in range(0, n, size):
        yield slice(first, min(first + size, n))


def explicit(attack: Attack, threat: Threat) -> Attack:
    """The same attack with its step size as a number, where it would take one in proportion to the budget (PGD)."""
    if isinstance(attack, PGD) and attack.step_size is None and threat.eps > 0:
        return replace(attack, step_size=2.5 * threat.eps / attack.steps)
    if isinstance(attack, Transfer):
        return replace(attack, attack=explicit(attack.attack, threat))
    return attack


def exact_interval(successes: int, trials: int, rho: float) -> tuple[float, float]:
    """Two-sided Clopper-Pearson interval.

    Proves: It contains the success probability with probability at least 1 - rho, if the trials are independent.

    Raises:
        InputError: a count or rho is out of range.
    """
    check_alpha(rho, "rho")
    return lower_confidence_bound(successes, trials, rho / 2), upper_confidence_bound(successes, trials, rho / 2)


def round_down(value: float, digits: int = 4) -> str:
    """A lower bound to `digits` decimals, or inf."""
    return floor_decimal(value, digits) if math.isfinite(value) else str(value)


def round_up(value: float, digits: int = 4) -> str:
    """An upper bound to `digits` decimals, or inf."""
    return str(-Decimal(floor_decimal(-value, digits))) if math.isfinite(value) else str(value)


def describe(robust: int, clean: int, n: int, threat: Threat, rungs: Sequence[Rung], *, rho: float, seed: int) -> str:
    """Robust accuracy in words, with all that it depends on: one line, and one per attack."""
    low, high = exact_interval(robust, n, rho)
    lines = [
        f"robust accuracy {robust / n:.4f} [{round_down(low)}, {round_up(high)}] at {100 * (1 - rho):g} %, "
        f"clean {clean / n:.4f}, n = {n}, {threat.norm} eps = {threat.eps:g}, box {threat.box}, seed {seed}"
    ]
    lines += [
        f"  {r.broken} of {r.attacked} by {r.attack}; {r.forwards} forward, {r.backwards} backward" for r in rungs
    ]
    return "\n".join(lines)


def beyond(distance: FloatArray, budget: float) -> NDArray[np.bool_]:
    """Which counterexamples are too far for a budget.

    An attack may exceed its budget by the rounding of floats: a pixel moved by 0.1 in float32 is 0.10000000149 away.
    What exceeds the budget by no more than that was found within it.

    Args:
        distance: Distances of the counterexamples; +inf where none was found.
        budget: In the same units; inputs are of the order of 1.
    """
    return distance > budget * (1 + SLACK) + torch.finfo(torch.float32).eps


def robust_accuracy_curve(distance: Tensor, eps: Sequence[float]) -> list[float]:
    """Robust accuracy at each budget, from the distances of minimal-norm attacks: the share farther than it.

    Args:
        distance: (n,) smallest distances, 0 where misclassified already and +inf where unbroken.
        eps: Budgets >= 0.

    Raises:
        InputError: a budget is negative, or there is no example.
    """
    if distance.numel() == 0 or any(not e >= 0 for e in eps):
        raise InputError(f"need at least one distance and budgets >= 0; got {distance.numel()}, {list(eps)!r}")
    return [float(beyond(distance.cpu().double().numpy(), e).mean()) for e in eps]
