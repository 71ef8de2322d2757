"""Robust accuracy as an adversary would have it: every attack on every survivor, the worst kept for each example."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from analysis.attacks.attacked import Attack, Attacked
from certify.binomial import lower_confidence_bound, upper_confidence_bound
from certify.errors import InputError
from certify.rng import Stream
from certify.threat import Threat


@dataclass(frozen=True, slots=True)
class Rung:
    """One attack of a ladder: how many examples it met, how many it broke, and what it cost.

    Attributes:
        attack: repr of the attack, all its hyperparameters.
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
        low, high = self.interval
        lines = [
            f"robust accuracy {self.robust_accuracy:.4f} [{low:.4f}, {high:.4f}] at {100 * (1 - self.rho):g} %, "
            f"clean {self.clean_accuracy:.4f}, n = {self.n}, {self.threat.norm} eps = {self.threat.eps:g}, "
            f"box {self.threat.box}, seed {self.seed}"
        ]
        lines += [
            f"  {r.broken} of {r.attacked} by {r.attack}; {r.forwards} forward, {r.backwards} backward"
            for r in self.rungs
        ]
        return "\n".join(lines)


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
        rng: Each attack and batch draws from a child of its own.
        rho: Failure probability of the interval; 0 < rho < 1.
        survivors_only: False runs every attack on every example, for minimal distances and for attacks' own rates.
        batch: Examples attacked together.

    Raises:
        InputError: no attacks, no examples, or what an attack refuses.
    """
    n = x.shape[0]
    if not attacks or n == 0 or batch < 1:
        raise InputError(f"need at least one attack, one example and batch >= 1; got {len(attacks)}, {n}, {batch}")
    device = x.device
    with torch.inference_mode():
        clean = torch.cat([model(part).argmax(1) for part in x.split(batch)]) == y
    distance = torch.where(clean.cpu(), torch.inf, 0.0).double()
    adversarial = x.clone()
    rungs = []
    for number, attack in enumerate(attacks):
        live = (torch.isinf(distance) if survivors_only else clean.cpu()).nonzero()[:, 0]
        broken = forwards = backwards = 0
        for part in live.split(batch):
            rows = part.to(device)
            # Named by the batch's first example: the cut into batches is part of the evaluation's arguments.
            result = attack(model, x[rows], y[rows], threat=threat, rng=rng.child(number, int(part[0])))
            broken += int(result.success.sum())
            forwards += int(result.forwards.sum())
            backwards += int(result.backwards.sum())
            _keep_nearer(distance, adversarial, part, result)
        rungs.append(Rung(repr(attack), len(live), broken, forwards, backwards))
    robust = int(torch.isinf(distance).sum())
    return Evaluation(
        clean_accuracy=int(clean.sum()) / n,
        robust_accuracy=robust / n,
        interval=(lower_confidence_bound(robust, n, rho / 2), upper_confidence_bound(robust, n, rho / 2)),
        distance=distance,
        adversarial=adversarial,
        rungs=tuple(rungs),
        threat=threat,
        n=n,
        rho=rho,
        seed=rng.seed,
    )


def _keep_nearer(distance: Tensor, adversarial: Tensor, part: Tensor, result: Attacked) -> None:
    nearer = result.distance < distance[part]
    chosen = part[nearer]
    distance[chosen] = result.distance[nearer]
    adversarial[chosen.to(adversarial.device)] = result.adversarial[nearer.to(result.adversarial.device)]


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
    return [float((distance > e).double().mean()) for e in eps]
