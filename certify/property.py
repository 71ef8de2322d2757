"""What a network must not do on a box of inputs, and how bounds on linear functions of its logits rule it out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from certify.errors import InputError, check_count
from certify.interval import RULES, Interval, layers
from certify.verification import check_logits
from certify.voting import check_model

Bounds = Callable[[nn.Module, Tensor, Tensor, Tensor], Tensor]
"""(model, lower, upper, rows) -> (n, k) lower bounds of rows (k, classes) @ logits over n boxes with ends (n, ...).

`interval_bounds` is one, and the `box_bounds` of a `CROWN` for Linf is another.
"""


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """A way to break a property: an input of the box whose logits satisfy every row, rows @ logits <= limits.

    A property is a sequence of cases; it holds where none of them occurs.

    Args:
        lower: (...) float64 ends of the box.
        upper: Likewise.
        rows: (k, classes) float64; without rows, every input of the box breaks the property.
        limits: (k,) float64.

    Raises:
        InputError: shapes do not fit, the box is empty, or a value is not finite.
    """

    lower: Tensor
    upper: Tensor
    rows: Tensor
    limits: Tensor

    def __post_init__(self) -> None:
        if self.lower.shape != self.upper.shape or self.rows.ndim != 2 or self.limits.shape != self.rows.shape[:1]:
            shapes = [tuple(t.shape) for t in (self.lower, self.upper, self.rows, self.limits)]
            raise InputError(f"need ends of one shape, rows (k, classes) and limits (k,); got {shapes}")
        parts = (self.lower, self.upper, self.rows, self.limits)
        if any(t.dtype != torch.float64 for t in parts) or not all(bool(t.isfinite().all()) for t in parts):
            raise InputError("need finite values in float64")
        if not bool((self.lower <= self.upper).all()):
            raise InputError("need lower <= upper; the box is empty")


def interval_bounds(model: nn.Module, lower: Tensor, upper: Tensor, rows: Tensor, *, outward: bool = False) -> Tensor:
    """Bound linear functions of the logits over boxes from below, by intervals, in float64.

    Proves: For every input in box i, rows @ logits is at least row i of the result; with `outward` for the network's
        function in exact arithmetic, without it up to rounding.

    Args:
        model: A sequence of layers that have a rule, in evaluation mode.
        lower: (n, ...) ends of the boxes.
        upper: Likewise.
        rows: (k, classes).
        outward: Round every end outward.

    Returns: (n, k) float64. Without `outward` a last linear layer is merged with the rows.

    Raises:
        InputError: the model is in training mode, or its output is not (n, classes).
        UnsupportedModule: a layer has no rule.

    Source: Gowal et al. (2018), section 3.2.
    """
    check_model(model)
    *parts, last = layers(model)
    head = fixed_linear(rows.double(), None)
    with torch.no_grad():
        if type(last) is nn.Linear and not outward:
            weight, bias = last.weight.double(), last.bias
            head = fixed_linear(head.weight @ weight, None if bias is None else head.weight @ bias.double())
        else:
            parts.append(last)
        region = Interval(lower.double(), upper.double(), outward)
        for layer in [*parts, head]:
            region = RULES[type(layer)](layer, region)
        check_logits(region.center.shape)
        return region.interval().lower


def fixed_linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """A linear layer with these weights, made without drawing others at random."""
    layer = nn.utils.skip_init(nn.Linear, weight.shape[1], weight.shape[0], bias is not None, dtype=weight.dtype)
    assert isinstance(layer, nn.Linear)
    layer.load_state_dict({"weight": weight} if bias is None else {"weight": weight, "bias": bias})
    return layer.to(weight.device).requires_grad_(False)


def holds(bounds: Bounds, model: nn.Module, cases: Sequence[Case], *, boxes: int = 1, batch: int = 64) -> bool:
    """Whether no case occurs, as far as the bounds can tell.

    Proves: Where True, no input of a case's box has logits that satisfy all of its rows; in the arithmetic of the
        bounds. False proves nothing.

    Args:
        bounds: How to bound linear functions of the logits.
        model: (n, ...) -> (n, classes), in evaluation mode; a network that the bounds take.
        cases: The property.
        boxes: How many boxes may be bounded for each of the property's. Where one is not settled it is halved across
            its longest edge; 1 for the box as it is. Halves cover the box, so that nothing is left out.
        batch: Boxes bounded together.

    Returns: True, or False for unknown.

    Raises:
        InputError: no case, a count < 1, or rows of another number of logits; as the bounds do.
        UnsupportedModule: as the bounds do.
    """
    check_count("boxes", boxes)
    check_count("batch", batch)
    if not cases:
        raise InputError("need at least one case")
    example = cases[0].lower[None].to(next(iter(model.parameters()), cases[0].lower))
    with torch.no_grad():
        classes = model(example).shape[1]
    for case in cases:
        if case.rows.shape[1] != classes:
            raise InputError(f"need rows of {classes} logits, as many as the network has; got {case.rows.shape[1]}")
    alike: dict[bytes, list[Case]] = {}
    for case in cases:
        key = torch.stack([case.lower, case.upper]).numpy().tobytes()
        alike.setdefault(key, []).append(case)
    return all(_excluded(bounds, model, group, boxes, batch) for group in alike.values())


def _excluded(bounds: Bounds, model: nn.Module, cases: Sequence[Case], boxes: int, batch: int) -> bool:
    """`holds` for cases about one box."""
    counts = [len(case.rows) for case in cases]
    if not all(counts):
        return False
    rows, limits = (torch.cat([getattr(case, name) for case in cases]) for name in ("rows", "limits"))
    lower, upper = cases[0].lower[None], cases[0].upper[None]
    left = boxes
    while len(lower):
        if len(lower) > left:
            return False
        left -= len(lower)
        parts = zip(lower.split(batch), upper.split(batch), strict=True)
        found = torch.cat([bounds(model, low, high, rows).double().cpu() for low, high in parts])
        # One row that every input violates is enough for a case. What overflowed to nan settles nothing.
        ruled_out = [exceeds.any(1) for exceeds in (found > limits).split(counts, dim=1)]
        unsettled = ~torch.stack(ruled_out).all(0)
        lower, upper = _halves(lower[unsettled], upper[unsettled])
    return True


def _halves(lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """Each box cut across its longest edge, both halves closed: together they cover it."""
    low, high = lower.flatten(1), upper.flatten(1)
    across = torch.arange(len(low)), (high - low).argmax(1) if len(low) else torch.zeros(0, dtype=torch.int64)
    middle = (low[across] + high[across]) / 2
    first, second = high.clone(), low.clone()
    first[across], second[across] = middle, middle
    return torch.cat([low, second]).view(-1, *lower.shape[1:]), torch.cat([first, high]).view(-1, *lower.shape[1:])
