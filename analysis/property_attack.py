"""Inputs that break a property: random points of its box, and gradient descent from there on what its rows lack."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from certify.errors import check_count
from certify.property import Case
from certify.rng import Stream
from certify.voting import check_model


def breaks(model: nn.Module, case: Case, x: Tensor) -> Tensor:
    """(n,) bool: whether inputs (n, ...) lie in the case's box and have logits that satisfy every row, exactly.

    The logits are the model's own, in its own precision; rows and limits meet them in float64.
    """
    with torch.no_grad():
        values = model(x).double().cpu() @ case.rows.T
    z = x.double().cpu()
    within = ((z >= case.lower) & (z <= case.upper)).flatten(1).all(1)
    return within & (values <= case.limits).all(1) & values.isfinite().all(1)


@dataclass(frozen=True, slots=True)
class BoxAttack:
    """Projected gradient descent in a box, on the sum of what the rows exceed their limits by.

    Steps go along the gradient's sign, first a quarter of each edge long and then ever shorter.

    Args:
        steps: Gradient steps.
        restarts: Points to start from, uniform in the box and attacked together.

    Raises:
        InputError: a count < 1.
    """

    steps: int = 100
    restarts: int = 10

    def __post_init__(self) -> None:
        check_count("steps", self.steps)
        check_count("restarts", self.restarts)

    def __call__(self, model: nn.Module, case: Case, *, rng: Stream) -> Tensor | None:
        """Look for a counterexample.

        Args:
            model: (n, ...) -> (n, classes) logits in float32, in evaluation mode.
            case: What to find.
            rng: Of the starts.

        Returns: (...) float32 input for which `breaks` is True, or None where none was found.

        Raises:
            InputError: the model is in training mode.
        """
        check_model(model)
        low, high = _above(case.lower), -_above(-case.upper)
        if bool((low > high).any()):
            return None  # no float32 lies in the box
        share = torch.rand(self.restarts, *low.shape, generator=rng.generator())
        z = (low + share * (high - low)).clamp(low, high)
        rows, limits = case.rows.float(), case.limits.float()
        for step in range(self.steps + 1):
            found = breaks(model, case, z)
            if bool(found.any()):
                return z[found][0]
            with torch.enable_grad():
                z = z.detach().requires_grad_()
                excess = (model(z) @ rows.T - limits).relu().sum()
                (gradient,) = torch.autograd.grad(excess, z)
            length = 0.25 * (1 - step / self.steps) * (high - low)
            z = (z.detach() - length * gradient.sign()).clamp(low, high)
        return None


def _above(value: Tensor) -> Tensor:
    """The smallest float32 that is not below."""
    near = value.float()
    return torch.where(near < value, torch.nextafter(near, torch.full_like(near, torch.inf)), near)
