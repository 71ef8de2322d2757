"""The density of an operator's eigenvalues, by stochastic Lanczos quadrature."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from analysis.lanczos import Krylov, Operator
from certify.errors import InputError, check_count
from certify.rng import Stream

_TAIL = 8.0
"""Kernel widths beyond the outermost node, past which a Gaussian weighs less than rounding."""


@dataclass(frozen=True, slots=True, eq=False)
class Density:
    """Estimates of an operator's spectral distribution, one per draw; each is a probability measure on its nodes.

    Attributes:
        nodes: (draws, steps) float64; rows of fewer nodes end in copies of the last one, with weight 0.
        weights: (draws, steps) float64 >= 0; every row adds up to 1.
        products: Operator-vector products made.
        method: The frozen method.
        seed: Of the stream it drew from.
    """

    nodes: Tensor
    weights: Tensor
    products: int
    method: "StochasticLanczos"
    seed: int

    def grid(self, points: int = 2000, width: float | None = None) -> Tensor:
        """(points,) values covering all of `density`: its integral over them is 1 if they lie a width apart or less.

        Raises:
            InputError: fewer than two points, or a width that is not positive.
        """
        if points < 2:
            raise InputError(f"need at least two points; got {points}")
        margin = _TAIL * self._width(width)
        low, high = float(self.nodes.min()) - margin, float(self.nodes.max()) + margin
        return torch.linspace(low, high, points, dtype=torch.float64)

    def density(self, at: Tensor, width: float | None = None) -> tuple[Tensor, Tensor]:
        """The share of eigenvalues per unit, each smeared to a Gaussian.

        Args:
            at: (m,) values.
            width: Standard deviation of the Gaussians; None for a hundredth of the spectrum's length.

        Returns: (m,) the mean over draws, and (m,) its standard error.

        Raises:
            InputError: the width is not positive.
        """
        sigma = self._width(width)
        kernel = torch.exp(-(((at.double()[:, None, None] - self.nodes) / sigma) ** 2) / 2)
        return _over_draws((kernel * self.weights).sum(2) / (sigma * math.sqrt(2 * math.pi)))

    def cumulative(self, at: Tensor) -> tuple[Tensor, Tensor]:
        """The share of eigenvalues up to each of (m,) values: the mean over draws, and its standard error."""
        return _over_draws(((self.nodes <= at.double()[:, None, None]) * self.weights).sum(2))

    def _width(self, width: float | None) -> float:
        # A spectrum of one point has no length but rounding to go by.
        length = max(float(self.nodes.max() - self.nodes.min()), 1e-6 * float(self.nodes.abs().max()))
        chosen = (0.01 * length or 1.0) if width is None else width
        if not (math.isfinite(chosen) and chosen > 0):
            raise InputError(f"need a finite width > 0; got {width!r}")
        return chosen


def _over_draws(values: Tensor) -> tuple[Tensor, Tensor]:
    return values.mean(1), values.std(1) / math.sqrt(values.shape[1])


@dataclass(frozen=True, slots=True)
class StochasticLanczos:
    """Spectral density by stochastic Lanczos quadrature with full reorthogonalisation.

    From a random unit vector v, `steps` products give the Gauss quadrature of v's spectral measure: nodes at the Ritz
    values, weights the squared first components. It has the first 2 * steps moments of that measure, whose mean over v
    is the share of eigenvalues at each value.

    Args:
        draws: Random vectors; >= 2, for a standard error.
        steps: Products for each.

    Raises:
        InputError: a value is out of range.

    Source: Golub & Welsch (1969); Lin, Saad & Yang (2016), section 3.2; Ghorbani, Krishnan & Xiao (2019).
    """

    draws: int = 10
    steps: int = 80

    def __post_init__(self) -> None:
        check_count("draws", self.draws)
        check_count("steps", self.steps)
        if self.draws < 2:
            raise InputError(f"need draws >= 2, for a standard error; got {self.draws}")

    def __call__(self, operator: Operator, *, rng: Stream) -> Density:
        """Estimate the density.

        Args:
            operator: Symmetric, (p, p).
            rng: Draw i comes from its child i.

        Raises:
            InputError: the operator gives NaN or infinities.
        """
        rows = [self._quadrature(operator, rng.child(i)) for i in range(self.draws)]
        longest = max(len(nodes) for nodes, _ in rows)
        nodes = torch.stack([torch.cat([n, n[-1:].expand(longest - len(n))]) for n, _ in rows])
        weights = torch.stack([torch.cat([w, w.new_zeros(longest - len(w))]) for _, w in rows])
        return Density(nodes, weights, sum(len(n) for n, _ in rows), self, rng.seed)

    def _quadrature(self, operator: Operator, rng: Stream) -> tuple[Tensor, Tensor]:
        krylov = Krylov(operator, rng, keep_images=False)
        # In an invariant subspace the quadrature is exact, and there is nothing to go on with.
        krylov.step()
        while len(krylov) < min(self.steps, operator.shape[0]) and krylov.remainder > 0:
            krylov.step()
        values, vectors = krylov.ritz()
        return torch.from_numpy(values.copy()), torch.from_numpy(vectors[0] ** 2)
