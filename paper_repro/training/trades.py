"""TRADES: accuracy on the inputs, and agreement between each input and its worst neighbour."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div, log_softmax
from torch.optim import Optimizer

from analysis.attacks.geometry import project
from certify import InputError, Threat
from certify.errors import check_count
from paper_repro.training.inner import check_step_size, climb, rescaled
from paper_repro.training.schedules import Ramp, threat_now
from paper_repro.training.step import Step, descend, evaluating

START = 0.001
"""Standard deviation of the start: at x itself the divergence is at its minimum, and has no gradient."""


@dataclass(frozen=True, slots=True)
class Trades:
    """Minimise CE(f(x), y) + beta * KL(p(x) || p(z)), where z in the ball maximises that divergence, p = softmax f.

    Args:
        threat: Norm, budget and box.
        beta: Weight of the divergence; the paper's 1 / lambda, 6 in its main results.
        steps: Gradient steps of the maximisation.
        step_size: Length of a step in input units under the full budget, scaled with it along a ramp; None for
            2.5 * eps / steps.
        ramp: How eps grows; None keeps it.

    Raises:
        InputError: a hyperparameter is out of range.

    Source: Zhang et al. (2019), "Theoretically principled trade-off between robustness and accuracy", algorithm 1,
        with the details of its released code.
    """

    threat: Threat
    beta: float = 6.0
    steps: int = 10
    step_size: float | None = None
    ramp: Ramp | None = None

    def __post_init__(self) -> None:
        check_count("steps", self.steps)
        check_step_size(self.step_size)
        if not 0 <= self.beta < math.inf:
            raise InputError(f"need a finite beta >= 0; got {self.beta!r}")

    def update(self, model: nn.Module, optimizer: Optimizer, x: Tensor, y: Tensor, *, step: Step) -> Tensor:
        """One optimiser step on a batch and its neighbours; returns the loss before it.

        The attack sees the network in evaluation mode, the update in training mode, as in the source. The gradient
        flows through both sides of the divergence.
        """
        now = threat_now(self.threat, self.ramp, step)
        z = self._neighbours(model, x, now, step.rng.generator(x.device))
        logits = model(x)
        clean, perturbed = log_softmax(logits, 1), log_softmax(model(z), 1)
        divergence = kl_div(perturbed, clean, reduction="batchmean", log_target=True)
        return descend(optimizer, cross_entropy(logits, y) + self.beta * divergence)

    def _neighbours(self, model: nn.Module, x: Tensor, now: Threat, generator: torch.Generator) -> Tensor:
        # Departs from paper: any norm ascends along its steepest direction, L2 too, where the released code runs SGD.
        start = project(x + START * torch.empty_like(x).normal_(generator=generator), x, now)
        step_size = rescaled(self.step_size, self.steps, self.threat, now)
        with evaluating(model):
            with torch.no_grad():  # the source computes it anew at each step, with the same result
                clean = log_softmax(model(x), 1)

            def divergence(z: Tensor) -> Tensor:
                return kl_div(log_softmax(model(z), 1), clean, reduction="none", log_target=True).sum(1)

            return climb(start, x, divergence, now, self.steps, step_size)
