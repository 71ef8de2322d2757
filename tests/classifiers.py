"""Classifiers whose every answer is known in closed form."""

import torch
from scipy.special import ndtri
from torch import Tensor, nn


class Threshold(nn.Module):
    """One-dimensional: class 0 below t, class 1 above. Under N(0, sigma^2), P(class 0) = Phi((t - x) / sigma)."""

    def __init__(self, threshold: float) -> None:
        super().__init__()
        self.threshold = threshold

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([torch.zeros_like(x), x - self.threshold], dim=1)


def threshold_with_probability(p: float, sigma: float) -> tuple[nn.Module, float]:
    """A classifier whose class 0 has probability p at the input 0, and its true radius there (negative below 1/2)."""
    radius = sigma * float(ndtri(p))
    return Threshold(radius).eval(), radius


class Affine(nn.Module):
    """K linear scores of a flattened input. Every radius, smoothed or not, is a distance to a hyperplane."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.linear = nn.Linear(weight.shape[1], weight.shape[0])
        with torch.no_grad():
            self.linear.weight.copy_(weight)
            self.linear.bias.copy_(bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.flatten(1))

    def distance(self, x: Tensor) -> Tensor:
        """The L2 distance from each input to the nearest decision boundary, in float64."""
        w, b = self.linear.weight.detach().double(), self.linear.bias.detach().double()
        scores = x.flatten(1).double() @ w.T + b
        top = scores.argmax(1)
        gap = scores.gather(1, top[:, None]) - scores
        norm = (w[top][:, None, :] - w[None]).norm(dim=2)
        ratio = gap / norm
        ratio[norm == 0] = torch.inf
        return ratio.min(1).values


def affine(classes: int, shape: tuple[int, ...], seed: int = 0) -> Affine:
    """A random affine classifier."""
    generator = torch.Generator().manual_seed(seed)
    size = int(torch.tensor(shape).prod())
    weight = torch.randn(classes, size, generator=generator)
    return Affine(weight, torch.randn(classes, generator=generator) * 0.1).eval()
