"""MACER: maximise the certified radius itself."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import nll_loss
from torch.optim import Optimizer

from certify import Gaussian, InputError
from certify.errors import check_count
from certify.noise import check_scale
from paper_repro.training.copies import check_weight, log_mean_softmax, logits_of, noisy_copies
from paper_repro.training.step import Step, descend


@dataclass(frozen=True, slots=True)
class Macer:
    """Minimise NLL(mean softmax) + weight * sigma / 2 * [argmax s = y] * max(0, gamma - (PhiInv(s_1) - PhiInv(s_2))).

    s is the mean over copies of softmax(beta * logits), s_1 and s_2 its two largest entries: sigma / 2 times the last
    difference is the certified radius of a smoothed classifier whose votes are so soft. The mean is over the batch,
    examples without a radius counting 0. Cost: `samples` forward and backward passes per example.

    The defaults are those of MNIST at sigma = 0.25 and 0.5, where the published runs also had `deferred` = 31 of 90
    epochs; at sigma = 1 the weight was 6. CIFAR-10 at sigma = 0.25: weight 12.
    The radius wants a small learning rate: those runs turn it on at 0.001; at 0.02 a LeNet is lost.

    Args:
        noise: Gaussian, not clipped.
        weight: Of the radius (lambda); >= 0.
        gamma: Where the hinge lets go; > 0. A radius beyond gamma * sigma / 2 is not pushed further.
        beta: Inverse temperature; > 0.
        samples: Noisy copies (k); >= 1.
        deferred: Epochs without the radius, so that a network at high noise learns something first; >= 0.

    Raises:
        InputError: another noise, or a value out of range.

    Source: Zhai et al. (2020), "MACER: attack-free and scalable robust training via maximizing certified radius"; the
        MNIST settings from Jeong & Shin (2020).
    """

    noise: Gaussian
    weight: float = 16.0
    gamma: float = 8.0
    beta: float = 16.0
    samples: int = 16
    deferred: float = 0.0

    def __post_init__(self) -> None:
        if not isinstance(self.noise, Gaussian):
            raise InputError(f"need Gaussian noise, whose radius is the loss; got {self.noise!r}")
        check_weight("weight", self.weight)
        check_scale("gamma", self.gamma)
        check_scale("beta", self.beta)
        check_count("samples", self.samples)
        check_weight("deferred", self.deferred)

    def update(self, model: nn.Module, optimizer: Optimizer, x: Tensor, y: Tensor, *, step: Step) -> Tensor:
        """One optimiser step on noisy copies of a batch; returns the loss before it."""
        logits = logits_of(model, noisy_copies(self.noise, x, self.samples, step.rng.generator(x.device)))
        loss = nll_loss(log_mean_softmax(logits), y)
        if step.epoch >= self.deferred:
            width, top = soft_width(logits, self.beta)
            hinge = (top == y) * (self.gamma - width).relu()
            loss = loss + self.weight * self.noise.sigma / 2 * hinge.mean()
        return descend(optimizer, loss)


def soft_width(logits: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """PhiInv(s_1) - PhiInv(s_2) for the mean s of softmax(beta * logits), and its largest class.

    PhiInv(s_1) is taken from the sum of the other entries, which is 1 - s_1 without cancellation: in float32 the width
    is right up to 25, where s_1 itself would be 1 from a width of 11 on. Beyond, value and gradient stay finite.

    Args:
        logits: (samples, n, classes).
        beta: Inverse temperature.

    Returns: (n,) widths and (n,) classes.
    """
    s = (beta * logits).softmax(-1).mean(0)
    top = s.argmax(1, keepdim=True)
    others = s.scatter(1, top, 0.0)
    tiny = torch.finfo(s.dtype).tiny
    missing, second = others.sum(1).clamp_min(tiny), others.amax(1).clamp_min(tiny)
    return -torch.special.ndtri(missing) - torch.special.ndtri(second), top[:, 0]
