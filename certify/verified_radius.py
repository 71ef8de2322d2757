"""The largest eps at which a deterministic method verifies an input, by bisection."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from certify.certificate import ABSTAIN, Certificate
from certify.errors import check_count
from certify.verification import Verifier, predict


@dataclass(frozen=True, slots=True)
class Bisection:
    """The largest eps at which a method verifies each prediction, by bisection up to the method's own.

    Args:
        method: Its threat's eps is the largest radius tried.
        steps: Halvings of [0, eps] after the end itself was tried; the answer is within eps / 2**steps of the point at
            which the method ceases to verify, where there is one such point.

    Raises:
        InputError: steps < 1.
    """

    method: Any
    steps: int = 10

    def __post_init__(self) -> None:
        check_count("steps", self.steps)

    def __call__(self, model: nn.Module, x: Tensor) -> Certificate:
        """Bisect for each prediction.

        Proves: What the method proves at the radius stated, which is one at which it did verify the prediction; nothing
            is inferred from other radii. That a method verifies every smaller eps too is likely, not assumed.

        Args:
            model: A network that the method takes, in evaluation mode.
            x: (n, ...) float inputs in the box.

        Returns: Certificate; ABSTAIN and 0 where nothing was verified.

        Raises:
            InputError: training mode, or inputs outside the box.
            UnsupportedModule: as the method does.
        """
        method: Verifier = self.method
        at_most = method(model, x)
        y = predict(model, x, method.batch)
        # Invariant: `low` is 0 or was verified.
        low = at_most.radius.clone()
        high = torch.full_like(low, method.threat.eps)
        unsettled = (low < high).nonzero()[:, 0]
        for _ in range(self.steps):
            if not len(unsettled):
                break
            middle = (low[unsettled] + high[unsettled]) / 2
            rows = unsettled.to(x.device)
            verified = method.verified(model, x[rows], y[rows], middle.to(x.device)).cpu()
            low[unsettled] = torch.where(verified, middle, low[unsettled])
            high[unsettled] = torch.where(verified, high[unsettled], middle)
        prediction = torch.where(low > 0, y.cpu(), ABSTAIN)
        return replace(at_most, prediction=prediction, radius=low, method=self)


def largest_radius(method: Verifier, model: nn.Module, x: Tensor, *, steps: int = 10) -> Certificate:
    """`Bisection(method, steps)(model, x)`.

    Proves: As `Bisection` does.

    Raises:
        InputError: training mode, inputs outside the box, or steps < 1.
        UnsupportedModule: as the method does.
    """
    return Bisection(method, steps)(model, x)
