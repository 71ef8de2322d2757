"""SmoothMix: mix inputs with far adversaries of the smoothed classifier, towards which confidence should fade."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

from analysis.attacks.geometry import into_box, project, unit
from certify import InputError, Threat
from certify.errors import check_count
from certify.noise import Noise, check_scale
from certify.threat import Box, check_box
from certify.voting import check_inputs
from paper_repro.training.copies import (
    check_weight,
    log_mean_softmax,
    logits_of,
    noisy_copies,
    smoothed_gradient,
    warmed_up,
)
from paper_repro.training.step import Step, descend, evaluating


@dataclass(frozen=True, slots=True)
class SmoothMix:
    """Minimise mean_i CE(f(x + e_i), y) + eta * [argmax pbar = y] * mean_i KL(t || p(x_mix + e_i)).

    pbar is the mean softmax over the copies x + e_i. With u uniform on [0, 1/2], one for each image,
    x_mix = (1 - u) x + u x_adv and t = (1 - u) pbar + u / classes, where x_adv has climbed -log pbar_y, under the same
    noise and with the model in evaluation mode, by steps of one length and without a budget. t carries gradient.
    Cost: samples * (steps + 2) forward and as many backward passes per example.

    The defaults are those of MNIST at sigma = 0.5; steps were 2 at sigma = 0.25 and 8 at sigma = 1. The published runs
    cut a batch of 256 into `samples` parts and take a step on each: a batch of 64 here.

    Args:
        noise: Not clipped.
        eta: Weight of the mixed term; >= 0.
        samples: Noisy copies (m); >= 1.
        steps: Gradient steps of the attack (T); >= 1.
        step_size: Length of one in L2 (alpha), input units; > 0.
        one_step: Put the attack's first point in the place of x, everywhere in the loss.
        warmup: Epochs in which eta, and the length of that first step, are raised from a share 1 / warmup; >= 1.
        box: Where x_adv must lie.

    Raises:
        InputError: a value is out of range.

    Source: Jeong et al. (2021), "SmoothMix: training confidence-calibrated smoothed classifiers for certified
        robustness".
    """

    noise: Noise
    eta: float = 5.0
    samples: int = 4
    steps: int = 4
    step_size: float = 1.0
    one_step: bool = False
    warmup: int = 10
    box: Box = (0.0, 1.0)

    def __post_init__(self) -> None:
        check_weight("eta", self.eta)
        for name in ("samples", "steps", "warmup"):
            check_count(name, getattr(self, name))
        check_scale("step_size", self.step_size)
        check_box(self.box)
        if self.one_step and self.steps < 2:
            raise InputError(f"need steps >= 2 to mix the attack's first point with its last; got {self.steps}")

    def update(self, model: nn.Module, optimizer: Optimizer, x: Tensor, y: Tensor, *, step: Step) -> Tensor:
        """One optimiser step on noisy copies of a batch and of its mixtures; returns the loss before it.

        Raises:
            InputError: an input is outside the box.
        """
        check_inputs(x, self.box)
        generator = step.rng.generator(x.device)
        noisy = noisy_copies(self.noise, x, self.samples, generator)
        share = warmed_up(step, self.warmup)
        with evaluating(model):
            near, far = self._climb(model, noisy, x, y, share)
        logits = logits_of(model, noisy + (near - x))
        mean = log_mean_softmax(logits).exp()
        labelled = cross_entropy(logits.flatten(0, 1), y.repeat(self.samples))

        u = x.new_empty(len(x)).uniform_(0, 0.5, generator=generator)
        mixed = near + u.view(-1, *[1] * (x.ndim - 1)) * (far - near)
        target = ((1 - u[:, None]) * mean + u[:, None] / mean.shape[1]).clamp_min(torch.finfo(x.dtype).tiny)
        log_p = logits_of(model, noisy + (mixed - x)).log_softmax(-1)
        divergence = (target * (target.log() - log_p)).sum(-1)
        right = mean.argmax(1) == y
        return descend(optimizer, labelled + share * self.eta * (right * divergence).mean())

    def _climb(self, model: nn.Module, noisy: Tensor, x: Tensor, y: Tensor, share: float) -> tuple[Tensor, Tensor]:
        """What stands for x in the loss, and the attack's end."""
        reach = Threat("L2", share * self.step_size, self.box)
        near = z = x
        for taken in range(self.steps):
            gradient, _ = smoothed_gradient(model, noisy, z - x, y)
            z = into_box(z + self.step_size * unit(gradient, "L2"), reach)
            if self.one_step and taken == 0:
                near = project(z, x, reach)
        return near, z
