"""The trace of a symmetric operator: an estimate with its standard error, and an interval that holds."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, stdev

import torch
from scipy.special import lambertw
from torch import Tensor

from analysis.lanczos import Operator
from certify.binomial import check_alpha
from certify.errors import InputError, check_count
from certify.rng import Stream

_FROBENIUS_SHARE = 0.3
"""Of alpha. The interval is within 3 % of the best split's for 10 to 200 draws at alpha between 0.001 and 0.2."""

_TOGETHER = 8
"""Draws worked on together: a batch is differentiated once for all of them, and more would only take memory."""


@dataclass(frozen=True, slots=True)
class TraceEstimate:
    """A trace, estimated.

    Attributes:
        value: Unbiased.
        standard_error: Of the value given the sketch, from the spread of the draws; descriptive.
        interval: Holds the trace with probability at least 1 - alpha; wider than two standard errors.
        products: Operator-vector products made.
        method: The frozen method.
        seed: Of the stream it drew from.
    """

    value: float
    standard_error: float
    interval: tuple[float, float]
    products: int
    method: "HutchPlusPlus"
    seed: int

    def __str__(self) -> str:
        low, high = self.interval
        level = 100 * (1 - self.method.alpha)
        return (
            f"trace {self.value:.6g} +- {self.standard_error:.2g}, [{low:.6g}, {high:.6g}] at {level:g} %, "
            f"{self.products} products"
        )


@dataclass(frozen=True, slots=True)
class HutchPlusPlus:
    """Trace by Hutch++: exactly on a random sketch of the operator's range, by Gaussian draws on the rest.

    With Q an orthonormal basis of the sketch and P = I - Q Q', tr H = tr(Q' H Q) + tr(P H P), and g' P H P g has the
    mean tr(P H P) for Gaussian g. The large eigenvalues go into the sketch; what is left is small and flat.

    A t-interval over the draws would not hold: where one eigenvalue dominates the rest, a draw is a chi-square with one
    degree of freedom, and 95 % from ten draws become 88 %. `interval_factor` says what is used in its place.

    Args:
        sketch: Vectors of the sketch, two products each; 0 leaves all to the draws.
        draws: Gaussian draws, one product each; >= 2.
        alpha: Failure probability of the interval; 0 < alpha < 1.

    Raises:
        InputError: a value is out of range.

    Source: Meyer, Musco, Musco & Woodruff (2021), Hutch++; Girard (1989), Hutchinson (1990).
    """

    sketch: int = 20
    draws: int = 40
    alpha: float = 0.05

    def __post_init__(self) -> None:
        if self.sketch != 0:
            check_count("sketch", self.sketch)
        check_count("draws", self.draws)
        if self.draws < 2:
            raise InputError(f"need draws >= 2, for a standard error; got {self.draws}")
        check_alpha(self.alpha)

    def __call__(self, operator: Operator, *, rng: Stream) -> TraceEstimate:
        """Estimate the trace.

        Proves: with probability at least 1 - alpha over the draws, for every symmetric operator and whatever the
            sketch came out as, the interval holds the trace; products taken as exact.

        Args:
            operator: Symmetric, (p, p).
            rng: The sketch comes from its child "sketch", draw i from its child ("draw", i).

        Raises:
            InputError: what the operator refuses.
        """
        p = operator.shape[0]
        sketch = min(self.sketch, p)
        q = torch.empty((p, 0), dtype=torch.float64, device=operator.device)
        known = 0.0
        if sketch:
            start = _gaussians([rng.child("sketch", i) for i in range(sketch)], operator)
            q = torch.linalg.qr(operator.matmat(start).double()).Q
            known = float((q * operator.matmat(q)).sum())
        forms, squares = [], []
        for first in range(0, self.draws, _TOGETHER):
            streams = [rng.child("draw", i) for i in range(first, min(first + _TOGETHER, self.draws))]
            g = _without(q, _gaussians(streams, operator))
            image = _without(q, operator.matmat(g).double())
            forms += (g * image).sum(0).tolist()
            squares += (image * image).sum(0).tolist()
        value = known + mean(forms)
        half = interval_factor(self.draws, self.alpha) * math.sqrt(mean(squares))
        return TraceEstimate(
            value=value,
            standard_error=stdev(forms) / math.sqrt(self.draws),
            interval=(value - half, value + half),
            products=2 * sketch + self.draws,
            method=self,
            seed=rng.seed,
        )


def interval_factor(draws: int, alpha: float) -> float:
    """How far the mean of Gaussian quadratic forms can be from its own, per root mean square of ||R g||.

    For symmetric R with eigenvalues l_j and n draws g_i let T = mean g_i' R g_i and S = mean ||R g_i||^2, whose own
    means are tr R and F^2 = sum l_j^2. Both are sums of independent chi-squares, so Chernoff's bound is explicit:

    * S: E exp(-s S) = prod_j (1 + 2 s l_j^2 / n)^(-n/2) <= (1 + 2 s F^2 / n)^(-n/2), as prod (1 + a_j) >= 1 + sum a_j.
      Hence P(S <= x F^2) <= exp(-n (x - 1 - log x) / 2) for x < 1.
    * T: with phi(u) = -u - log(1 - 2 u) / 2, log E exp(n s (T - tr R)) = n sum_j phi(s l_j). As phi(u) / u^2 rises
      with u, the sum is at most phi(s F). Hence P(T - tr R >= y F) <= exp(-n (y - log(1 + y)) / 2); so for -R.

    In both the worst case is a single eigenvalue.

    Proves: P(|T - tr R| <= factor * sqrt(S)) >= 1 - alpha for every symmetric R and every number n of draws fixed in
        advance.

    Args:
        draws: n >= 1.
        alpha: Failure probability; 0 < alpha < 1.

    Returns: y / sqrt(x), at which the probabilities above add up to alpha.

    Source: the Chernoff bounds of Laurent & Massart (2000), lemma 1, before they are relaxed.
    """
    # u - log(1 + u) = t has the roots -1 - W(-exp(-1 - t)) on the two branches of Lambert's W: x - 1 and y.
    x = -lambertw(-math.exp(-1 - 2 * math.log(1 / (_FROBENIUS_SHARE * alpha)) / draws), 0).real
    y = -lambertw(-math.exp(-1 - 2 * math.log(2 / ((1 - _FROBENIUS_SHARE) * alpha)) / draws), -1).real - 1
    return float(y / math.sqrt(x))


def _without(q: Tensor, v: Tensor) -> Tensor:
    return v - q @ (q.T @ v)


def _gaussians(streams: Sequence[Stream], operator: Operator) -> Tensor:
    columns = [torch.randn(operator.shape[0], generator=s.generator(), dtype=torch.float64) for s in streams]
    return torch.stack(columns, dim=1).to(operator.device)
