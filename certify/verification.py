"""What deterministic methods share: what they must offer, and the certificate of what they verified."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from certify.certificate import ABSTAIN, Certificate, Deterministic
from certify.errors import InputError
from certify.threat import Threat
from certify.voting import check_inputs, check_model


class Verifier(Protocol):
    """What a method must offer: `IBP` and `CROWN` do."""

    @property
    def threat(self) -> Threat:
        """The threat; its eps is the radius where none is given."""
        ...

    @property
    def batch(self) -> int:
        """Examples bounded together."""
        ...

    def __call__(self, model: nn.Module, x: Tensor) -> Certificate:
        """Verify each prediction at the threat's eps."""
        ...

    def verified(self, model: nn.Module, x: Tensor, y: Tensor, eps: Tensor | None = None) -> Tensor:
        """(n,) bool: whether all inputs within eps (n,) of x are classified as y."""
        ...


def check_logits(shape: Sequence[int]) -> None:
    """Refuse a network's output that is not one row of logits per input.

    Raises:
        InputError: the rule is broken.
    """
    if len(shape) != 2:
        raise InputError(f"need a network with logits (n, classes); got {tuple(shape)}")


def predict(model: nn.Module, x: Tensor, batch: int) -> Tensor:
    """(n,) int64: the model's own prediction.

    Raises:
        InputError: its output is not (n, classes).
    """
    with torch.no_grad():
        logits = [model(part) for part in x.split(batch)]
    check_logits(logits[0].shape)
    return torch.cat([z.argmax(1) for z in logits])


def certify_predictions(method: Verifier, model: nn.Module, x: Tensor, arithmetic: str) -> Certificate:
    """Verify each prediction at the method's eps.

    Proves: What the method's `verified` does, for the class that f predicts, where that is not ABSTAIN.

    Args:
        method: Becomes the certificate's method.
        model: In evaluation mode.
        x: (n, ...) float inputs in the box.
        arithmetic: In which `verified` holds.

    Returns: Certificate with radius eps where verified, ABSTAIN and 0 elsewhere.

    Raises:
        InputError: training mode, inputs outside the box, or an output that is not (n, classes).
        UnsupportedModule: as the method does.
    """
    threat = method.threat
    check_inputs(x, threat.box)
    check_model(model)
    prediction = predict(model, x, method.batch)
    verified = method.verified(model, x, prediction).cpu()
    return Certificate(
        prediction=torch.where(verified, prediction.cpu(), ABSTAIN),
        radius=verified.double() * threat.eps,
        norm=threat.norm,
        subject="f",
        guarantee=Deterministic(),
        method=method,
        samples=torch.zeros(len(x), dtype=torch.int64),
        region="box" if threat.norm == "Linf" and threat.box is not None else "ball",
        arithmetic=arithmetic,
    )
