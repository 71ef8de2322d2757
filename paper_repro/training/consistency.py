"""Consistency regularisation: noisy copies of an input should be classified alike."""

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

from certify import InputError
from certify.errors import check_count
from certify.noise import Noise
from paper_repro.training.copies import check_weight, log_mean_softmax, logits_of, noisy_copies
from paper_repro.training.step import Step, descend


@dataclass(frozen=True, slots=True)
class Consistency:
    """Minimise mean_i [CE(f(x_i), y) + weight * KL(pbar || p_i)] + eta * H(pbar) over noisy copies x_i of x.

    p_i = softmax f(x_i) and pbar is their mean; gradient flows through both. Cost: `samples` forward and backward
    passes per example.

    The defaults are those of MNIST at sigma = 0.5 and 1; at sigma = 0.25 the weight was 10. The published runs cut
    a batch of 256 into `samples` parts and take a step on each: a batch of 128 here.

    Args:
        noise: Not clipped.
        weight: Of the divergence from the mean (lambda); >= 0.
        eta: Of the mean's entropy; >= 0.
        samples: Noisy copies (m); >= 2.

    Raises:
        InputError: a value is out of range.

    Source: Jeong & Shin (2020), "Consistency regularization for certified robustness of smoothed classifiers".
    """

    noise: Noise
    weight: float = 5.0
    eta: float = 0.5
    samples: int = 2

    def __post_init__(self) -> None:
        check_weight("weight", self.weight)
        check_weight("eta", self.eta)
        check_count("samples", self.samples)
        if self.samples < 2:
            raise InputError(f"need samples >= 2, one copy being consistent with itself; got {self.samples}")

    def update(self, model: nn.Module, optimizer: Optimizer, x: Tensor, y: Tensor, *, step: Step) -> Tensor:
        """One optimiser step on noisy copies of a batch; returns the loss before it."""
        logits = logits_of(model, noisy_copies(self.noise, x, self.samples, step.rng.generator(x.device)))
        log_mean = log_mean_softmax(logits)
        mean = log_mean.exp()
        divergence = (mean * (log_mean - logits.log_softmax(-1))).sum(-1).mean()
        entropy = -(mean * log_mean).sum(-1).mean()
        labelled = cross_entropy(logits.flatten(0, 1), y.repeat(self.samples))
        return descend(optimizer, labelled + self.weight * divergence + self.eta * entropy)
