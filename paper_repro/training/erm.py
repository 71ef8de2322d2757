"""Empirical risk minimisation: plain training."""

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

from certify import Stream


@dataclass(frozen=True, slots=True)
class Erm:
    """Minimise CE(f(x), y)."""

    def update(self, model: nn.Module, optimizer: Optimizer, x: Tensor, y: Tensor, *, rng: Stream) -> Tensor:
        """One optimiser step on a batch; returns the loss before it."""
        return descend(optimizer, cross_entropy(model(x), y))


def descend(optimizer: Optimizer, loss: Tensor) -> Tensor:
    """One backward pass and one optimiser step."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return loss.detach()
