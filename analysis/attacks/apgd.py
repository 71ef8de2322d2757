"""APGD: projected gradient ascent without a step size to tune.

Source: Croce & Hein (2020), "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free
attacks".
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from analysis.attacks.attacked import Attacked, Queries
from analysis.attacks.geometry import project, reach, steepest
from analysis.attacks.losses import LossName, loss_named, targeted_dlr
from certify.binomial import check_alpha
from certify.errors import InputError, check_count
from certify.rng import Stream
from certify.threat import Threat

Objective = Callable[[Tensor, Tensor], Tensor]

# Weight of the new step against the last move.
_MOMENTUM = 0.75


def checkpoints(steps: int) -> list[int]:
    """The steps after which the step size may halve: 22 % into the run, then at gaps that shrink from 19 % to 6 %.

    Args:
        steps: Of the run.

    Returns: Step counts, increasing.

    >>> checkpoints(100)
    [22, 41, 57, 70, 80, 87, 93, 99]
    """
    # Departs from paper: ceil(p_j * steps) there; these are the integers of the authors' code, the same at 100 steps.
    first, last, shrink = (max(int(share * steps), 1) for share in (0.22, 0.06, 0.03))
    marks, gap = [], first
    while (marks[-1] if marks else 0) + gap <= steps:
        marks.append((marks[-1] if marks else 0) + gap)
        gap = max(gap - shrink, last)
    return marks


def _check_threat(threat: Threat) -> None:
    if threat.norm not in ("Linf", "L2"):
        raise InputError(f"need a threat in Linf or L2 for APGD, and FMN for L1; got {threat.norm}")


def _start(queries: Queries, live: Tensor, rng: Stream) -> Tensor:
    """A random point for each live example: uniform in the cube for Linf, a random direction of full length for L2."""
    x, threat = queries.x, queries.threat
    z = x[live]
    for row, i in zip(z, live.tolist(), strict=True):
        generator = rng.child(i).generator(x.device)
        noise = torch.empty_like(row)
        if threat.norm == "Linf":
            row += noise.uniform_(-threat.eps, threat.eps, generator=generator)
        else:
            noise.normal_(generator=generator)
            row += noise * (threat.eps / noise.norm().clamp_min(1e-12))
    return project(z, x[live], threat)


def _inside(z: Tensor, x: Tensor, low: Tensor, high: Tensor, threat: Threat) -> Tensor:
    """`project`, with the limits of the cube computed once for all steps."""
    return z.clamp(low, high) if threat.norm == "Linf" else project(z, x, threat)


def _climb(
    queries: Queries,
    objective: Callable[[Tensor], Objective],
    live: Tensor,
    rng: Stream,
    steps: int,
    rho: float,
    trace: Tensor,
) -> None:
    """One run: increase the objective from a random start; an example leaves the batch when it is misclassified.

    Args:
        queries: The model under attack, which keeps the counterexamples.
        objective: Live indices -> the objective of those examples.
        live: (live,) indices of the examples to attack.
        rng: Of this run; example i draws from its child i.
        steps: Gradients per example.
        rho: A step size is kept while more than this share of its steps increased the objective.
        trace: (n, steps), to be filled with the objective.
    """
    threat = queries.threat
    trace[live] = torch.nan
    x, z = queries.x[live], _start(queries, live, rng)
    low, high = reach(x, threat) if threat.norm == "Linf" else (x, x)
    gradient, value, _ = queries.gradient(z, objective(live), live)
    before, best, best_gradient = z, z, gradient
    eta = torch.full_like(value, 2 * threat.eps)
    best_value, best_at_mark, rises, halved = value, value, torch.zeros_like(value), torch.ones_like(value) > 0
    marks, mark = checkpoints(steps), 0
    for i in range(steps):
        alive = ~queries.success.to(live.device)[live]
        if not alive.all():
            live, x, low, high, z, before, gradient, best, best_gradient = (
                t[alive] for t in (live, x, low, high, z, before, gradient, best, best_gradient)
            )
            eta, value, best_value, best_at_mark, rises, halved = (
                t[alive] for t in (eta, value, best_value, best_at_mark, rises, halved)
            )
        if not len(live):
            return
        column = (-1, *[1] * (x.ndim - 1))
        ahead = _inside(z + eta.view(column) * steepest(gradient, threat), x, low, high, threat)
        if i:
            ahead = _inside(z + _MOMENTUM * (ahead - z) + (1 - _MOMENTUM) * (z - before), x, low, high, threat)
        before, z, previous = z, ahead, value
        if i + 1 < steps:
            gradient, value, _ = queries.gradient(z, objective(live), live)
        else:  # No step follows: a gradient would go unused.
            with torch.no_grad():
                value = objective(live)(queries.logits(z, live), queries.y[live])
        trace[live, i] = value.float()
        rises = rises + (value > previous)
        better = value > best_value
        best_value = torch.where(better, value, best_value)
        best = torch.where(better.view(column), z, best)
        best_gradient = torch.where(better.view(column), gradient, best_gradient)
        if i + 1 in marks and i + 1 < steps:
            # Departs from paper: <= here, < there; <= is what the authors' code does.
            stuck = (rises <= rho * (i + 1 - mark)) | (~halved & (best_value <= best_at_mark))
            eta = torch.where(stuck, eta / 2, eta)
            z = torch.where(stuck.view(column), best, z)
            gradient = torch.where(stuck.view(column), best_gradient, gradient)
            mark, halved, best_at_mark, rises = i + 1, stuck, best_value, torch.zeros_like(rises)


def _survivors(queries: Queries) -> Tensor:
    """Indices of the examples without a counterexample, on the device of the inputs."""
    return (~queries.success).nonzero()[:, 0].to(queries.x.device)


@dataclass(frozen=True, slots=True)
class APGD:
    """Untargeted APGD: gradient ascent whose step size starts at 2 eps and halves where the objective stalls.

    A misclassified example leaves the batch at once: `forwards` and `backwards` count what it took.

    Args:
        steps: Gradients per restart; >= 1.
        restarts: Random starts; >= 1.
        loss: What is increased: "cross_entropy", "dlr" or "margin".
        rho: A step size is kept while more than this share of its steps increased the objective; 0 < rho < 1.

    Raises:
        InputError: a field is out of its range.

    Source: Croce & Hein (2020), Algorithm 1.
    """

    steps: int = 100
    restarts: int = 1
    loss: LossName = "cross_entropy"
    rho: float = 0.75

    def __post_init__(self) -> None:
        check_count("steps", self.steps)
        check_count("restarts", self.restarts)
        check_alpha(self.rho, "rho")
        loss_named(self.loss)

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, *, threat: Threat, rng: Stream) -> Attacked:
        """Look for misclassified inputs within the threat.

        Args:
            model: (n, ...) -> (n, classes) logits, in evaluation mode.
            x: (n, ...) inputs.
            y: (n,) labels.
            threat: In Linf or L2.
            rng: Restart r of example i draws from its child (r, i).

        Returns: What was found; `loss` holds each example's last restart.

        Raises:
            InputError: another norm, a model in training mode, or shapes that do not fit.
        """
        _check_threat(threat)
        queries = Queries(model, x, y, threat)
        trace = torch.full((len(x), self.steps), torch.nan, device=x.device)
        loss = loss_named(self.loss)
        with torch.no_grad():
            queries.logits(queries.x)
        for restart in range(self.restarts):
            live = _survivors(queries)
            if not len(live):
                break
            _climb(queries, lambda _: loss, live, rng.child(restart), self.steps, self.rho, trace)
        return queries.result(self, trace)


@dataclass(frozen=True, slots=True)
class TargetedAPGD:
    """APGD on the targeted DLR loss, towards the classes that come next after the label at x, the likeliest first.

    Args:
        targets: Classes to try; >= 1 and below the number of classes.
        steps: Gradients per restart and target; >= 1.
        restarts: Random starts per target; >= 1.
        rho: As for `APGD`.

    Raises:
        InputError: a field is out of its range.

    Source: Croce & Hein (2020); APGD-T of the authors' AutoAttack.
    """

    targets: int = 9
    steps: int = 100
    restarts: int = 1
    rho: float = 0.75

    def __post_init__(self) -> None:
        check_count("targets", self.targets)
        check_count("steps", self.steps)
        check_count("restarts", self.restarts)
        check_alpha(self.rho, "rho")

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, *, threat: Threat, rng: Stream) -> Attacked:
        """Look for misclassified inputs within the threat; any wrong class counts.

        Args:
            model: (n, ...) -> (n, classes) logits, in evaluation mode; at least 4 classes.
            x: (n, ...) inputs.
            y: (n,) labels.
            threat: In Linf or L2.
            rng: Restart r towards the target of rank t draws, for example i, from its child (t, r, i).

        Returns: What was found; `loss` holds each example's last run.

        Raises:
            InputError: another norm, too few classes, a model in training mode, or shapes that do not fit.
        """
        _check_threat(threat)
        queries = Queries(model, x, y, threat)
        trace = torch.full((len(x), self.steps), torch.nan, device=x.device)
        with torch.no_grad():
            logits = queries.logits(queries.x)
        if self.targets >= logits.shape[1]:
            raise InputError(f"need targets < {logits.shape[1]}, the number of classes; got {self.targets}")
        ranked = logits.scatter(1, y[:, None], -torch.inf).argsort(1, descending=True)
        for rank in range(self.targets):
            target = ranked[:, rank]

            def towards(live: Tensor, target: Tensor = target) -> Objective:
                return lambda logits, y: targeted_dlr(logits, y, target[live])

            for restart in range(self.restarts):
                live = _survivors(queries)
                if len(live):
                    _climb(queries, towards, live, rng.child(rank, restart), self.steps, self.rho, trace)
        return queries.result(self, trace)


def targeted_apgd(classes: int, steps: int) -> TargetedAPGD | None:
    """The targeted attack for a network of so many classes; None below 4, where its loss is not defined.

    Args:
        classes: Of the network; the nine likeliest wrong ones are tried, as AutoAttack does, or all where fewer.
        steps: For every target.
    """
    return TargetedAPGD(min(9, classes - 1), steps) if classes >= 4 else None
