"""Carlini and Wagner's L2 attack: distance plus c times the margin, by Adam, with a binary search for c."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from analysis.attacks.attacked import Attacked, Queries
from analysis.attacks.geometry import into_box
from analysis.attacks.losses import margin
from certify.errors import InputError
from certify.rng import Stream
from certify.threat import Threat

# tanh reaches the faces of the box only at infinity: inputs on a face start this far inside, relatively.
_INSIDE = 1e-6


@dataclass(frozen=True, slots=True)
class CarliniWagner:
    """The C&W attack in L2, untargeted: minimise ||delta||^2 + c max(z_y - max_{i != y} z_i, -confidence).

    With a box, delta is written through tanh, so that every iterate lies inside; without one it is free. The search
    ignores eps; the nearest success counts, and only within the threat.

    Args:
        steps: Adam steps for each c; >= 1.
        searches: Values of c tried; >= 1. It grows tenfold until a success, then the bracket is halved.
        step_size: Of Adam, on the variable that tanh maps onto the box, or in input units without a box; > 0.
        initial_c: First weight of the margin; > 0.
        confidence: Margin in logits at which the attack stops pushing; >= 0.

    Raises:
        InputError: a field is out of range.

    Source: Carlini & Wagner (2017), "Towards Evaluating the Robustness of Neural Networks", section VI.
    """

    steps: int = 1000
    searches: int = 9
    step_size: float = 0.01
    initial_c: float = 0.01
    confidence: float = 0.0

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise InputError(f"need steps >= 1; got {self.steps}")
        if self.searches < 1:
            raise InputError(f"need searches >= 1; got {self.searches}")
        if not (math.isfinite(self.step_size) and self.step_size > 0):
            raise InputError(f"need a finite step_size > 0; got {self.step_size!r}")
        if not (math.isfinite(self.initial_c) and self.initial_c > 0):
            raise InputError(f"need a finite initial_c > 0; got {self.initial_c!r}")
        if not (math.isfinite(self.confidence) and self.confidence >= 0):
            raise InputError(f"need a finite confidence >= 0; got {self.confidence!r}")

    def __call__(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        threat: Threat,
        rng: Stream | Sequence[Stream] | None = None,
    ) -> Attacked:
        """Look for the nearest misclassified input.

        Args:
            model: (n, ...) -> (n, classes) logits, in evaluation mode.
            x: (n, ...) inputs, in the box if there is one.
            y: (n,) labels.
            threat: L2.
            rng: Not read: the attack draws nothing.

        Returns: The nearest success of each example. 1 + steps * searches forwards and steps * searches backwards per
            example that is classified correctly, 1 forward for the others.

        Raises:
            InputError: another norm, or what `Queries` refuses.
        """
        if threat.norm != "L2":
            raise InputError(f"need an L2 threat for CarliniWagner; got {threat.norm}")
        queries = Queries(model, x, y, threat)
        with torch.no_grad():
            live = (queries.logits(queries.x).argmax(1) == y).nonzero()[:, 0]
        if not len(live):
            return queries.result(self)
        c = torch.full((len(live),), self.initial_c, dtype=x.dtype, device=x.device)
        lower, upper = torch.zeros_like(c), torch.full_like(c, torch.inf)
        for _ in range(self.searches):
            hit = self._descend(queries, live, c)
            lower, upper = torch.where(hit, lower, c), torch.where(hit, torch.minimum(upper, c), upper)
            c = torch.where(upper.isinf(), 10 * c, (lower + upper) / 2)
        return queries.result(self)

    def _descend(self, queries: Queries, live: Tensor, c: Tensor) -> Tensor:
        """Adam from x with these weights of the margin; (live,) whether the margin passed the confidence on the way."""
        x, threat = queries.x[live], queries.threat
        start = self._to_variable(x, threat) if threat.box is not None else torch.zeros_like(x)
        variable = start.clone().requires_grad_()
        # Elementwise: an example's path depends on no other example.
        adam = torch.optim.Adam([variable], lr=self.step_size)
        hit = torch.zeros_like(c, dtype=torch.bool)
        for _ in range(self.steps):
            with torch.enable_grad():
                z = self._to_input(variable, threat) if threat.box is not None else x + variable
                gain = margin(queries.logits(z, live), queries.y[live])
                # At confidence 0 a tie has no gradient left; it may still be argmax = y.
                loss = (z - x).flatten(1).square().sum(1) + c * (self.confidence - gain).clamp_min(0)
                (variable.grad,) = torch.autograd.grad(loss.sum(), variable)
            queries.backwards[live.cpu()] += 1
            hit |= (gain.detach() > 0) & (gain.detach() >= self.confidence)
            adam.step()
        return hit

    @staticmethod
    def _to_variable(x: Tensor, threat: Threat) -> Tensor:
        low, high = threat.box or (0.0, 1.0)
        return torch.atanh((2 * (x - low) / (high - low) - 1) * (1 - _INSIDE))

    @staticmethod
    def _to_input(variable: Tensor, threat: Threat) -> Tensor:
        low, high = threat.box or (0.0, 1.0)
        return into_box(low + (high - low) * (variable.tanh() + 1) / 2, threat)
