"""Adversarial training with projected gradient ascent."""

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

from analysis.attacks.geometry import random_start
from analysis.attacks.losses import cross_entropy as losses
from certify import InputError, Threat
from certify.errors import check_count
from paper_repro.training.inner import check_step_size, climb, rescaled
from paper_repro.training.schedules import Ramp, threat_now
from paper_repro.training.step import Step, descend, evaluating

StartName = Literal["ball", "step", "none"]
ModeName = Literal["train", "eval"]


@dataclass(frozen=True, slots=True)
class PGDTraining:
    """Minimise CE(f(z), y) at the end z of a projected gradient ascent on the same loss.

    Args:
        threat: Norm, budget and box.
        steps: Gradient steps.
        step_size: Length of a step in input units under the full budget, scaled with it along a ramp; None for
            2.5 * eps / steps.
        start: "ball", a random point of the ball (Madry et al.); "step", one no farther than a step (Liu et al.);
            "none", x itself.
        mode: The mode in which the attack sees the network: "train" (Madry et al.) or "eval" (Liu et al.). It matters
            to batch norm and dropout. The update is in training mode in either case.
        ramp: How eps grows; None keeps it.

    Raises:
        InputError: a hyperparameter is out of range.

    Source: Madry et al. (2018); with ramp, start="step" and mode="eval", Liu et al. (2020).
    """

    threat: Threat
    steps: int = 10
    step_size: float | None = None
    start: StartName = "ball"
    mode: ModeName = "train"
    ramp: Ramp | None = None

    def __post_init__(self) -> None:
        check_count("steps", self.steps)
        check_step_size(self.step_size)
        for name, choices in (("start", get_args(StartName)), ("mode", get_args(ModeName))):
            if getattr(self, name) not in choices:
                raise InputError(f"need a {name} among {', '.join(choices)}; got {getattr(self, name)!r}")

    def update(self, model: nn.Module, optimizer: Optimizer, x: Tensor, y: Tensor, *, step: Step) -> Tensor:
        """One optimiser step on a perturbed batch; returns the loss before it."""
        now = threat_now(self.threat, self.ramp, step)
        step_size = rescaled(self.step_size, self.steps, self.threat, now)
        z = self._start(x, now, step_size, step.rng.generator(x.device))
        with evaluating(model) if self.mode == "eval" else nullcontext():
            z = climb(z, x, lambda z: losses(model(z), y), now, self.steps, step_size)
        return descend(optimizer, cross_entropy(model(z), y))

    def _start(self, x: Tensor, now: Threat, step_size: float, generator: torch.Generator) -> Tensor:
        if self.start == "none":
            return x
        reach = now.eps if self.start == "ball" else min(step_size, now.eps)
        return random_start(x, Threat(now.norm, reach, now.box), generator)
