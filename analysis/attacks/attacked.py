"""What an attack returns, and how it queries the model it attacks."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from certify.errors import InputError
from certify.rng import Stream
from certify.threat import Norm, Threat, leaves
from certify.voting import check_model

# What a perturbation may exceed its budget by, relatively; what rounding x + delta adds to that is computed.
SLACK = 1e-6


@dataclass(frozen=True, slots=True, eq=False)
class Attacked:
    """The best counterexample found for each example: an upper bound on its robust radius where there is one.

    Attributes:
        adversarial: (n, ...) the misclassified input nearest to x within the budget; x itself where none was found.
        success: (n,) bool; an example that is misclassified as it is counts as a success at distance 0.
        distance: (n,) float64, the norm of the perturbation; +inf where none was found.
        norm: Of the threat.
        loss: (n, steps) float32, the attack's objective along the way, larger being worse for the model; nan where an
            example had stopped. None for attacks without one.
        forwards: (n,) int64, inputs classified per example.
        backwards: (n,) int64, input gradients per example.
        attack: The frozen attack; its repr is the provenance.
        threat: What it was allowed.
    """

    adversarial: Tensor
    success: Tensor
    distance: Tensor
    norm: Norm
    loss: Tensor | None
    forwards: Tensor
    backwards: Tensor
    attack: Any
    threat: Threat


class Attack(Protocol):
    """A frozen dataclass whose fields are its hyperparameters."""

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, *, threat: Threat, rng: Stream) -> Attacked:
        """Look for misclassified inputs within the threat."""
        ...


def norm_of(delta: Tensor, norm: Norm) -> Tensor:
    """(n,) float64 norms of (n, ...) perturbations."""
    flat = delta.detach().flatten(1).double()
    match norm:
        case "L0":
            return (flat != 0).sum(1).double()
        case "L1":
            return flat.abs().sum(1)
        case "L2":
            return flat.norm(dim=1)
        case "Linf":
            return flat.abs().amax(1)


class Queries:
    """A model under attack: every query is counted, every success is kept, and nothing outside the threat counts.

    Args:
        model: (n, ...) -> (n, classes) logits, in evaluation mode.
        x: (n, ...) inputs.
        y: (n,) labels.
        threat: What the perturbation may be.

    Raises:
        InputError: training mode, or shapes and ranges that do not fit.
    """

    def __init__(self, model: nn.Module, x: Tensor, y: Tensor, threat: Threat) -> None:
        check_model(model)
        if x.ndim < 2 or not x.is_floating_point() or y.shape != x.shape[:1]:
            raise InputError(f"need x (n, ...) in floating point and y (n,); got {tuple(x.shape)}, {tuple(y.shape)}")
        box = threat.box
        if box is not None and leaves(x, box):
            raise InputError(f"need inputs in [{box[0]:g}, {box[1]:g}]; got [{float(x.min()):g}, {float(x.max()):g}]")
        self.model, self.x, self.y, self.threat = model, x.detach(), y, threat
        n = x.shape[0]
        self.forwards = torch.zeros(n, dtype=torch.int64)
        self.backwards = torch.zeros(n, dtype=torch.int64)
        self.best = self.x.clone()
        self.distance = torch.full((n,), torch.inf, dtype=torch.float64)

    def logits(self, z: Tensor, live: Tensor | None = None) -> Tensor:
        """Classify z for the live examples (all by default), counting queries and keeping successes.

        Args:
            z: (live, ...) perturbed inputs, one per live example.
            live: Indices of the examples they belong to; one example may have several inputs.

        Returns: (live, classes) logits; they carry a gradient if z does.

        Raises:
            InputError: a logit is NaN or infinite.
        """
        live = self._all() if live is None else live
        logits = self.model(z)
        self.forwards.index_add_(0, live.cpu(), torch.ones_like(live.cpu()))
        if not bool(torch.isfinite(logits).all()):
            raise InputError("the model gave NaN or infinite logits; which class they stand for is undefined")
        self.keep(z.detach(), logits.detach().argmax(1) != self.y[live], live)
        return logits

    def gradient(
        self, z: Tensor, objective: Callable[[Tensor, Tensor], Tensor], live: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The gradient of an objective of (logits, labels) at z.

        Args:
            z: (live, ...).
            objective: (live, classes), (live,) -> (live,), to be increased.
            live: Indices of the examples.

        Returns: gradient (live, ...), objective (live,), logits (live, classes), all detached.
        """
        live = self._all() if live is None else live
        z = z.detach().requires_grad_()
        with torch.enable_grad():
            logits = self.logits(z, live)
            value = objective(logits, self.y[live])
            (gradient,) = torch.autograd.grad(value.sum(), z)
        self.backwards.index_add_(0, live.cpu(), torch.ones_like(live.cpu()))
        return gradient, value.detach(), logits.detach()

    def _all(self) -> Tensor:
        return torch.arange(self.x.shape[0], device=self.x.device)

    def keep(self, z: Tensor, wrong: Tensor, live: Tensor) -> None:
        """Keep z where it is wrong, inside ball and box, and nearer than what was kept before.

        Args:
            z: (live, ...).
            wrong: (live,) bool, whether each is misclassified.
            live: Indices of the examples they belong to.
        """
        if not bool(wrong.any()):
            return
        z, live = z[wrong], live[wrong]
        norm, eps = self.threat.norm, self.threat.eps
        distance = norm_of(z.double() - self.x[live].double(), norm)
        # z is x + delta rounded to its own precision: at eps = 2 / 255 alone that exceeds SLACK.
        allowed = distance <= eps * (1 + SLACK) + torch.finfo(z.dtype).eps * norm_of(z, norm)
        if self.threat.box is not None:
            inside = (z >= self.threat.box[0]) & (z <= self.threat.box[1])
            allowed &= inside.flatten(1).all(1)
        better = allowed.cpu() & (distance.cpu() < self.distance[live.cpu()])
        rows = better.nonzero()[:, 0]
        if rows.numel() == 0:
            return
        # The nearest of each example's: by distance, then stably by example, then the first of each run.
        rows = rows[distance.cpu()[rows].argsort(stable=True)]
        rows = rows[live.cpu()[rows].argsort(stable=True)]
        owner = live.cpu()[rows]
        rows = rows[torch.cat([torch.ones(1, dtype=torch.bool), owner[1:] != owner[:-1]])]
        self.best[live[rows.to(live.device)]] = z[rows.to(z.device)].to(self.best.dtype)
        self.distance[live.cpu()[rows]] = distance.cpu()[rows]

    @property
    def success(self) -> Tensor:
        """(n,) bool: whether a counterexample is kept."""
        return torch.isfinite(self.distance)

    def result(self, attack: object, loss: Tensor | None = None) -> Attacked:
        """What was found."""
        return Attacked(
            adversarial=self.best,
            success=self.success,
            distance=self.distance,
            norm=self.threat.norm,
            loss=loss,
            forwards=self.forwards,
            backwards=self.backwards,
            attack=attack,
            threat=self.threat,
        )
