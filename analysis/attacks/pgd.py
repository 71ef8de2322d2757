"""Projected gradient ascent within a fixed budget."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from analysis.attacks.attacked import Attacked, Queries
from analysis.attacks.geometry import project, random_start, steepest, unit
from analysis.attacks.losses import LossName, loss_named
from certify.errors import InputError, check_count
from certify.rng import Stream
from certify.threat import Threat

StepName = Literal["steepest", "sign", "normalized", "momentum", "adam"]
Direction = Callable[[Tensor, Tensor], Tensor]
"""From gradients (live, ...) and the indices of their examples to steps (live, ...) of norm at most 1."""

MOMENTUM = 1.0
"""Share of the accumulated gradient that a step keeps. Source: Dong et al. (2018)."""

_FIRST, _SECOND, _ADAM_EPS = 0.9, 0.999, 1e-8


@dataclass(frozen=True, slots=True)
class PGD:
    """Projected gradient ascent on a loss, from random starts.

    Every step has the same length in the threat's norm; the kind of step gives its direction:

    * "steepest": the sign of the gradient for Linf, the unit gradient for L2, its largest coordinates for L1;
    * "sign", "normalized": the sign of the gradient, or the gradient itself, scaled to length 1;
    * "momentum": steepest, along a running sum of gradients of unit L1 norm (MI-FGSM);
    * "adam": Adam's direction, scaled to length 1; the gradients are scaled to unit Linf norm first.

    Args:
        steps: Gradient steps per restart.
        step_size: Length of a step in input units, > 0; None for 2.5 * eps / steps.
        restarts: Independent random starts; 1 without a random start.
        step: The kind of step.
        loss: What to increase.
        random_start: Start at a random point of the ball; False starts at x.
        early_stop: An example that is broken leaves; False goes on, and keeps its nearest counterexample. One that is
            misclassified as it is leaves in either case: nothing is nearer.

    Raises:
        InputError: a hyperparameter is out of range.

    Source: Madry et al. (2018); Dong et al. (2018), momentum; Kingma & Ba (2015), Adam.
    """

    steps: int = 40
    step_size: float | None = None
    restarts: int = 1
    step: StepName = "steepest"
    loss: LossName = "cross_entropy"
    random_start: bool = True
    early_stop: bool = True

    def __post_init__(self) -> None:
        check_count("steps", self.steps)
        check_count("restarts", self.restarts)
        if self.step_size is not None and not (math.isfinite(self.step_size) and self.step_size > 0):
            raise InputError(f"need a finite step_size > 0, or None; got {self.step_size!r}")
        if self.step not in get_args(StepName):
            raise InputError(f"need a step among {', '.join(get_args(StepName))}; got {self.step!r}")
        loss_named(self.loss)
        if self.restarts > 1 and not self.random_start:
            raise InputError(f"need restarts = 1 without a random start, all being the same; got {self.restarts}")

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, *, threat: Threat, rng: Stream) -> Attacked:
        """Look for misclassified inputs within the threat.

        Args:
            model: (n, ...) -> (n, classes) logits, in evaluation mode.
            x: (n, ...) inputs in the box.
            y: (n,) labels.
            threat: An Linf, L2 or L1 ball.
            rng: Start r of example i comes from its child (r, i).

        Returns: Attacked; its loss is (n, restarts * steps), the objective after each step, restart after restart. A
            random start costs a forward pass to look at x itself, and each restart one to look at its end.

        Raises:
            InputError: training mode, or inputs that do not fit.
        """
        queries = Queries(model, x, y, threat)
        return queries.result(self, self.maximise(queries, loss_named(self.loss), rng))

    def maximise(self, queries: Queries, objective: Callable[[Tensor, Tensor], Tensor], rng: Stream) -> Tensor:
        """Climb an objective (logits, y) -> (n,) as this attack does; its values, (n, restarts * steps)."""
        if self.random_start:
            look(queries)
        step_size = 2.5 * queries.threat.eps / self.steps if self.step_size is None else self.step_size
        losses = []
        for restart in range(self.restarts):
            start = starts(queries, rng.child(restart)) if self.random_start else queries.x
            direction = direction_named(self.step, queries.threat, start)
            losses.append(ascend(queries, start, objective, direction, self.steps, step_size, self.early_stop))
        return torch.cat(losses, dim=1)


def look(queries: Queries) -> None:
    """Classify the inputs as they are."""
    with torch.no_grad():
        queries.logits(queries.x)


def starts(queries: Queries, rng: Stream) -> Tensor:
    """A random start for each example, from a stream of its own."""
    x, threat = queries.x, queries.threat
    points = [random_start(x[i : i + 1], threat, rng.child(i).generator(x.device)) for i in range(x.shape[0])]
    return torch.cat(points) if points else x


def ascend(
    queries: Queries,
    start: Tensor,
    objective: Callable[[Tensor, Tensor], Tensor],
    direction: Direction,
    steps: int,
    step_size: float,
    early_stop: bool,
) -> Tensor:
    """Climb from `start`, keeping what is misclassified on the way.

    Args:
        queries: The model under attack.
        start: (n, ...) points of the threat.
        objective: (live, classes), (live,) -> (live,), to be increased.
        direction: From gradients to steps of unit norm.
        steps: Gradient steps.
        step_size: Length of a step.
        early_stop: Whether a broken example leaves.

    Returns: (n, steps) float32, the objective after each step; nan where an example had left.
    """
    z, x, threat = start.clone(), queries.x, queries.threat
    trace = torch.full((x.shape[0], steps), torch.nan)
    live = remaining(queries, early_stop)
    for taken in range(steps):
        if live.numel() == 0:
            return trace
        gradient, value, _ = queries.gradient(z[live], objective, live)
        if taken:
            trace[live.cpu(), taken - 1] = value.float().cpu()
        stays = torch.isin(live, remaining(queries, early_stop))
        live = live[stays]
        z[live] = project(z[live] + step_size * direction(gradient[stays], live), x[live], threat)
    if live.numel():
        with torch.no_grad():
            value = objective(queries.logits(z[live], live), queries.y[live])
        trace[live.cpu(), steps - 1] = value.float().cpu()
    return trace


def remaining(queries: Queries, early_stop: bool) -> Tensor:
    """Indices of the examples still worth attacking."""
    done = queries.success if early_stop else queries.distance == 0
    return (~done).nonzero()[:, 0].to(queries.x.device)


def direction_named(name: StepName, threat: Threat, like: Tensor) -> Direction:
    """The rule from gradients to steps, with its memory of all examples where it has one."""
    match name:
        case "steepest":
            return lambda gradient, live: steepest(gradient, threat)
        case "sign":
            return lambda gradient, live: unit(gradient.sign(), threat.norm)
        case "normalized":
            return lambda gradient, live: unit(gradient, threat.norm)
        case "momentum":
            return _momentum(threat, like)
        case "adam":
            return _adam(threat, like)


def _momentum(threat: Threat, like: Tensor) -> Direction:
    velocity = torch.zeros_like(like)

    def direction(gradient: Tensor, live: Tensor) -> Tensor:
        velocity[live] = MOMENTUM * velocity[live] + unit(gradient, "L1")
        return steepest(velocity[live], threat)

    return direction


def _adam(threat: Threat, like: Tensor) -> Direction:
    first, second = torch.zeros_like(like), torch.zeros_like(like)
    taken = 0  # of every live example: examples leave and never return

    def direction(gradient: Tensor, live: Tensor) -> Tensor:
        nonlocal taken
        taken += 1
        gradient = unit(gradient, "Linf")
        first[live] = _FIRST * first[live] + (1 - _FIRST) * gradient
        second[live] = _SECOND * second[live] + (1 - _SECOND) * gradient**2
        mean, square = first[live] / (1 - _FIRST**taken), second[live] / (1 - _SECOND**taken)
        return unit(mean / (square.sqrt() + _ADAM_EPS), threat.norm)

    return direction
