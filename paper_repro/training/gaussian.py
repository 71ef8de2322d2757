"""Gaussian data augmentation: the usual training of a base classifier for smoothing."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

from certify import Gaussian, Stream
from paper_repro.training.erm import descend


@dataclass(frozen=True, slots=True)
class GaussianAugmentation:
    """Minimise CE(f(x + e), y), e ~ N(0, sigma^2 I) drawn afresh at every step, not clipped.

    Source: Lecuyer et al. (2019); Cohen et al. (2019), section 3.3.
    """

    sigma: float

    def __post_init__(self) -> None:
        Gaussian(self.sigma)  # one rule for sigma

    def update(self, model: nn.Module, optimizer: Optimizer, x: Tensor, y: Tensor, *, rng: Stream) -> Tensor:
        """One optimiser step on a noisy batch; returns the loss before it."""
        noisy = torch.empty_like(x)
        Gaussian(self.sigma).perturb(noisy, x, rng.generator(x.device))
        return descend(optimizer, cross_entropy(model(noisy), y))
