"""SmoothAdv: adversarial training of the smoothed classifier."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

from analysis.attacks.attacked import norm_of
from analysis.attacks.geometry import into_box, project, unit
from certify import InputError, Threat
from certify.errors import check_count
from certify.noise import Noise, check_scale
from certify.threat import Box
from certify.voting import check_inputs
from paper_repro.training.copies import logits_of, noisy_copies, smoothed_gradient, warmed_up
from paper_repro.training.step import Step, descend, evaluating

AttackName = Literal["pgd", "ddn"]
_GAMMA = 0.05  # relative change of DDN's norm in a step


@dataclass(frozen=True, slots=True)
class SmoothAdvTraining:
    """Minimise the mean over copies of CE(f(z + e_i), y), z an L2 adversary of x for the smoothed classifier.

    z increases -log of the label's mean softmax over the same noises e_1 .. e_m that the update then sees, with the
    model in evaluation mode. Cost: samples * (steps + 1) forward and as many backward passes per example.

    The defaults are those of MNIST at every sigma. The published runs cut a batch of 256 into `samples` parts and
    take a step on each: a batch of 64 here.

    Args:
        noise: Not clipped.
        eps: L2 budget in input units; > 0.
        steps: Gradient steps of the attack; >= 1.
        samples: Noisy copies (m); >= 1.
        warmup: Epochs in which the budget is raised to eps, from eps / warmup in the first; >= 1.
        attack: "pgd": normalised gradients in steps of 2 * eps / steps, from x. "ddn": the nearest point that most
            copies get wrong, cut back to the budget, or x where none was found.
        box: Where z must lie.

    Raises:
        InputError: a value is out of range.

    Source: Salman et al. (2019), "Provably robust deep learning via adversarially trained smoothed classifiers"; its
        MNIST settings from Jeong & Shin (2020); Rony et al. (2019) for "ddn".
    """

    noise: Noise
    eps: float = 255 / 256
    steps: int = 10
    samples: int = 4
    warmup: int = 10
    attack: AttackName = "pgd"
    box: Box = (0.0, 1.0)

    def __post_init__(self) -> None:
        check_scale("eps", self.eps)
        for name in ("steps", "samples", "warmup"):
            check_count(name, getattr(self, name))
        if self.attack not in get_args(AttackName):
            raise InputError(f"need an attack among {', '.join(get_args(AttackName))}; got {self.attack!r}")
        Threat("L2", self.eps, self.box)  # checks the box

    def update(self, model: nn.Module, optimizer: Optimizer, x: Tensor, y: Tensor, *, step: Step) -> Tensor:
        """One optimiser step on noisy copies of adversaries; returns the loss before it.

        Raises:
            InputError: an input is outside the box.
        """
        check_inputs(x, self.box)
        noisy = noisy_copies(self.noise, x, self.samples, step.rng.generator(x.device))
        threat = Threat("L2", warmed_up(step, self.warmup) * self.eps, self.box)
        search = ascend if self.attack == "pgd" else nearest
        with evaluating(model):
            z = search(model, noisy, x, y, threat, self.steps)
        logits = logits_of(model, noisy + (z - x))
        return descend(optimizer, cross_entropy(logits.flatten(0, 1), y.repeat(self.samples)))


def ascend(model: nn.Module, noisy: Tensor, x: Tensor, y: Tensor, threat: Threat, steps: int) -> Tensor:
    """PGD from x on -log of the mean softmax, the noise held fixed."""
    z = x
    for _ in range(steps):
        gradient, _ = smoothed_gradient(model, noisy, z - x, y)
        z = project(z + 2 * threat.eps / steps * unit(gradient, "L2"), x, threat)
    return z


def nearest(model: nn.Module, noisy: Tensor, x: Tensor, y: Tensor, threat: Threat, steps: int) -> Tensor:
    """DDN from x on -log of the mean softmax, the noise held fixed; its first norm is the budget."""
    flat = (-1, *[1] * (x.ndim - 1))
    delta, best = torch.zeros_like(x), torch.zeros_like(x)
    norm = x.new_full((len(x),), threat.eps)
    low, high = threat.box or (-math.inf, math.inf)
    farthest = norm_of(torch.maximum(x - low, high - x), "L2").to(x)
    shortest = torch.full_like(norm, torch.inf)
    for step in range(steps):
        gradient, logits = smoothed_gradient(model, noisy, delta, y)
        wrong = logits.argmax(-1).mode(0).values != y
        length = norm_of(delta, "L2").to(x)
        better = wrong & (length < shortest)
        shortest = torch.where(better, length, shortest)
        best = torch.where(better.view(flat), delta, best)
        norm = torch.where(wrong, norm * (1 - _GAMMA), norm * (1 + _GAMMA)).minimum(farthest)
        rate = 0.01 + 0.99 * (1 + math.cos(math.pi * step / steps)) / 2
        moved = unit(delta + rate * unit(gradient, "L2"), "L2")
        # Departs from paper: perturbed inputs are not rounded to 8 bits, which the noise on top of them would undo.
        delta = into_box(x + norm.view(flat) * moved, threat) - x
    return project(x + best, x, threat)
