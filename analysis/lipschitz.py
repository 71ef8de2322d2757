"""How fast logits were seen to change: a lower estimate of the constant that `certify.lipschitz` bounds from above.

A ReLU network's Jacobian has no gradient, so the search climbs the difference quotient of a pair of points instead,
which has one in every network, and keeps the largest Jacobian norm that it meets on the way.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from analysis.attacks.geometry import project, random_start, steepest
from certify.errors import InputError, check_count
from certify.rng import Stream
from certify.threat import Threat
from certify.voting import check_inputs, check_model

_DUAL = {"Linf": 1.0, "L2": 2.0}


@dataclass(frozen=True, slots=True, eq=False)
class LipschitzEstimate:
    """The largest slopes that were met: no constant can be smaller.

    Attributes:
        operator: (n,) norm of the logits' Jacobian, from the threat's norm to itself.
        logits: (n, classes) dual norm of each logit's gradient.
        margins: (n, classes) the same of z_y - z_k; 0 at k = y.
        at: (n, ...) where `operator` was met.
        threat: Where was looked.
    """

    operator: Tensor
    logits: Tensor
    margins: Tensor
    at: Tensor
    threat: Threat


def sampled_lipschitz(
    model: nn.Module,
    x: Tensor,
    threat: Threat,
    *,
    rng: Stream,
    y: Tensor | None = None,
    steps: int = 20,
    restarts: int = 3,
) -> LipschitzEstimate:
    """Look for the largest slope within a threat, by gradient ascent from random pairs of points.

    Args:
        model: (n, ...) -> (n, classes) logits, in evaluation mode.
        x: (n, ...) inputs in the box; the first point looked at.
        threat: In Linf or L2.
        rng: Restart r draws from its child r.
        y: (n,) classes of the margins; the predicted ones where None.
        steps: Of ascent per restart; >= 1.
        restarts: Random pairs; >= 1.

    Returns: What was met, in the precision of x.

    Raises:
        InputError: another norm, a model in training mode, inputs outside the box, or a count < 1.
    """
    if threat.norm not in _DUAL:
        raise InputError(f"need a threat in Linf or L2; got {threat.norm}")
    check_count("steps", steps)
    check_count("restarts", restarts)
    check_inputs(x, threat.box)
    check_model(model)
    with torch.no_grad():
        labels = model(x).argmax(1) if y is None else y
    best = _at(model, x, labels, threat)
    for restart in range(restarts):
        generator = rng.child(restart).generator(x.device)
        a, b = (random_start(x, threat, generator) for _ in range(2))
        for step in range(steps):
            best = _larger(best, _at(model, a, labels, threat))
            rate = threat.eps * (1 - step / steps)
            forward, back = _quotient_gradients(model, a, b, threat)
            a, b = (project(p + rate * steepest(g, threat), x, threat) for p, g in ((a, forward), (b, back)))
            # A pair far apart sees a mean slope. Halve the distance: the slope met at the end is a local one.
            b = torch.lerp(b, a, 0.5)
        best = _larger(best, _at(model, a, labels, threat))
    return best


def jacobian(model: nn.Module, x: Tensor) -> Tensor:
    """(n, classes, inputs): the derivative of every logit, one backward pass per class."""
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        logits = model(leaf)
        rows = [torch.autograd.grad(column.sum(), leaf, retain_graph=True)[0] for column in logits.unbind(1)]
    return torch.stack(rows, 1).flatten(2)


def _at(model: nn.Module, z: Tensor, y: Tensor, threat: Threat) -> LipschitzEstimate:
    """The slopes at one point."""
    rows = jacobian(model, z)
    order = _DUAL[threat.norm]
    apart = rows[torch.arange(len(z)), y][:, None] - rows
    operator = rows.abs().sum(2).amax(1) if threat.norm == "Linf" else torch.linalg.matrix_norm(rows, 2)
    each, margins = (torch.linalg.vector_norm(t, order, dim=2) for t in (rows, apart))
    return LipschitzEstimate(operator, each, margins, z, threat)


def _larger(a: LipschitzEstimate, b: LipschitzEstimate) -> LipschitzEstimate:
    column = (b.operator > a.operator).view(-1, *[1] * (a.at.ndim - 1))
    return LipschitzEstimate(
        torch.maximum(a.operator, b.operator),
        torch.maximum(a.logits, b.logits),
        torch.maximum(a.margins, b.margins),
        torch.where(column, b.at, a.at),
        a.threat,
    )


def _quotient_gradients(model: nn.Module, a: Tensor, b: Tensor, threat: Threat) -> tuple[Tensor, Tensor]:
    """The gradients of |f(a) - f(b)| / |a - b| with respect to both points."""
    order = torch.inf if threat.norm == "Linf" else 2
    with torch.enable_grad():
        a, b = a.detach().requires_grad_(), b.detach().requires_grad_()
        change = torch.linalg.vector_norm(model(a) - model(b), order, dim=1)
        distance = torch.linalg.vector_norm((a - b).flatten(1), order, dim=1).clamp_min(1e-12)
        at_a, at_b = torch.autograd.grad((change / distance).sum(), (a, b))
        return at_a, at_b
