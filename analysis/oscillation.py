"""How far apart the loss's parameter gradients at two points of a ball were seen to be, beside what was proved.

The distance is a lower estimate of the oscillation that `certify.oscillation` bounds from above. A ReLU network's
parameter gradient is piecewise smooth in the input, so that a search can climb it.
"""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from analysis.attacks.geometry import project, random_start, steepest
from analysis.hessian import cross_entropies
from analysis.inner_maximum import Advance, check_examples
from certify.errors import Contradiction, check_count
from certify.oscillation import gradient_oscillation
from certify.rng import Stream
from certify.threat import Threat

_ROUNDING = 1e-9
"""What a float64 norm of a difference of gradients may exceed its bound by, relatively."""


@dataclass(frozen=True, slots=True, eq=False)
class Oscillation:
    """Two ends of sup |grad g(a) - grad g(b)| over two points a, b of each ball; g the loss, grad over all parameters.

    Attributes:
        sampled: (n,) float64, the largest that was met.
        certified: (n,) float64, an upper bound that is proved.
        points: (2, n, ...) float64, the pair that `sampled` was met at.
        threat: The ball.
        search: The method.
    """

    sampled: Tensor
    certified: Tensor
    points: Tensor
    threat: Threat
    search: "OscillationSearch"


@dataclass(frozen=True, slots=True)
class OscillationSearch:
    """Gradient ascent on the distance between the parameter gradients at two points of a ball, from random pairs.

    Args:
        steps: Of ascent per restart; the first is eps long, the others shrink linearly.
        restarts: Random pairs.
        batch: Examples climbing together; no part of the result.

    Raises:
        InputError: a count < 1.
    """

    steps: int = 20
    restarts: int = 3
    batch: int = 25

    def __post_init__(self) -> None:
        check_count("steps", self.steps)
        check_count("restarts", self.restarts)
        check_count("batch", self.batch)

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, *, threat: Threat, rng: Stream, advance: Advance | None = None
    ) -> Oscillation:
        """Search, beside the certified bound; in float64.

        Args:
            model: A sequence of layers that have an interval rule, in evaluation mode.
            x: (n, ...) in the box.
            y: (n,) labels.
            threat: In Linf, L2 or L1.
            rng: The pair of restart r of example i comes from its child (r, i).
            advance: Told of examples as they are finished.

        Raises:
            InputError: training mode, inputs outside the box, or shapes that do not fit.
            UnsupportedModule: a layer has no rule.
            Contradiction: what was met exceeds the bound: one of the two is wrong.
        """
        check_examples(model, x, y)
        network, x = deepcopy(model).double(), x.detach().double()
        sampled, certified, pairs = [], [], []
        for first in range(0, len(x), self.batch):
            part = slice(first, first + self.batch)
            certified.append(gradient_oscillation(network, x[part], y[part], threat).detach().cpu())
            streams = [[rng.child(r, first + i) for i in range(len(x[part]))] for r in range(self.restarts)]
            found, points = self._climb(network, x[part], y[part], threat, streams)
            sampled.append(found.cpu())
            pairs.append(points)
            if advance is not None:
                advance(len(found))
        lower, upper = torch.cat(sampled), torch.cat(certified)
        if bool((lower > upper * (1 + _ROUNDING) + _ROUNDING**2).any()):
            worst = int((lower - upper).argmax())
            raise Contradiction(
                f"gradients {float(lower[worst]):.9g} apart were met for example {worst}, where at most "
                f"{float(upper[worst]):.9g} was proved"
            )
        return Oscillation(lower, upper, torch.cat(pairs, 1), threat, self)

    def _climb(
        self, model: nn.Module, x: Tensor, y: Tensor, threat: Threat, streams: Sequence[Sequence[Stream]]
    ) -> tuple[Tensor, Tensor]:
        best, at = torch.zeros(len(x), dtype=torch.float64, device=x.device), torch.stack([x, x])
        for row in streams:
            generators = [stream.generator(x.device) for stream in row]
            pair = torch.stack(
                [torch.cat([random_start(x[i : i + 1], threat, g) for i, g in enumerate(generators)]) for _ in range(2)]
            )
            for step in range(self.steps + 1):
                apart, (toward, away) = _apart(model, pair, y)
                better = apart > best
                best = torch.where(better, apart, best)
                at[:, better] = pair[:, better]
                rate = threat.eps * (1 - step / self.steps)
                pair = torch.stack(
                    [
                        project(p + rate * steepest(g, threat), x, threat)
                        for p, g in zip(pair, (toward, away), strict=True)
                    ]
                )
        return best, at


def example_gradients(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Gradients of each example's cross-entropy in all parameters, (n, p); differentiable in x."""
    theta = {name: p.detach() for name, p in model.named_parameters()}
    fixed = dict(model.named_buffers())

    def loss(theta: dict[str, Tensor], point: Tensor, label: Tensor) -> Tensor:
        return cross_entropies(functional_call(model, {**theta, **fixed}, (point[None],)), label[None]).sum()

    gradients = vmap(grad(loss), in_dims=(None, 0, 0))(theta, x, y)
    return torch.cat([g.flatten(1) for g in gradients.values()], 1)


def _apart(model: nn.Module, pair: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """(n,) distance between the parameter gradients at a pair (2, n, ...), and the gradient of its square in both."""
    with torch.enable_grad():
        pair = pair.detach().requires_grad_()
        first, second = (example_gradients(model, points, y) for points in pair)
        squared = (first - second).square().sum(1)
        (gradient,) = torch.autograd.grad(squared.sum(), pair)
    return squared.detach().sqrt(), gradient
