"""A certified upper bound on how far the loss's parameter gradient can move while the input moves in a ball.

It stands where a Lipschitz constant of that gradient would, and needs no smoothness: for ReLU networks there is none.

Source: interval arithmetic on the backward pass; the quantity is the one of Liu et al. (2020), Proposition 2, where the
paper assumes eps L_theta_x.
"""

import torch
from torch import Tensor, nn

from certify.errors import InputError, UnsupportedModule
from certify.interval import IBP, Interval, Region, convolve, input_region, layers
from certify.jacobian import DERIVATIVES, Bounds, Method, around, inputs_of
from certify.layers import Residual
from certify.threat import Threat
from certify.voting import check_inputs, check_model


def gradient_oscillation(
    model: nn.Module, x: Tensor, y: Tensor, threat: Threat, *, tighter: Method | None = None
) -> Tensor:
    """Bound |grad g(a) - grad g(b)| over all a, b in the threat, g the cross-entropy and grad over all parameters.

    Proves: The L2 distance between the parameter gradients of the cross-entropy at any two inputs of the threat around
        x[i] is at most entry i; at kinks, for every choice of subgradient. In float64, up to rounding.

    Args:
        model: A sequence of layers that have a rule, in evaluation mode.
        x: (n, ...) inputs in the box.
        y: (n,) labels.
        threat: In Linf (within the box), L2 or L1 (the whole ball).
        tighter: (first layers, x in float32) -> bounds on what comes out of them all over the threat around x, for what
            goes into each activation. The proof rests on them too; of them and of intervals the tighter end counts.

    Returns: (n,) float64.

    Raises:
        InputError: a model in training mode, inputs outside the box, or shapes that do not fit.
        UnsupportedModule: a layer has no rule, or a parameter is in two places.
    """
    check_inputs(x, threat.box)
    check_model(model)
    if y.shape != (len(x),):
        raise InputError(f"need y of shape ({len(x)},); got {tuple(y.shape)}")
    _check_places(model)
    squares = []
    with torch.no_grad():
        for i in range(len(x)):  # One example at a time: a layer's gradient has the size of its weight.
            point = x[i : i + 1].double()
            error = _softmax(model, point, threat)
            shift = nn.functional.one_hot(y[i : i + 1], error.lower.shape[1]).double()
            out = Interval((error.lower - shift)[:, None], (error.upper - shift)[:, None])
            squares.append(_widths(list(layers(model)), input_region(point, threat), out, around(tighter, point))[1])
    return torch.stack(squares).sqrt()


def _check_places(model: nn.Module) -> None:
    """Refuse a parameter in two places: its gradient is the sum of theirs, whose widths add up, not their squares.

    Raises:
        UnsupportedModule: the rule is broken.
    """
    names: dict[int, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if (first := names.setdefault(id(parameter), name)) != name:
            raise UnsupportedModule(f"need each parameter in one place; got one in two, {first} and {name}")


def _softmax(model: nn.Module, point: Tensor, threat: Threat) -> Interval:
    """Bounds on the probabilities, from bounds on differences of logits: p_k = 1 / sum_j exp(z_j - z_k)."""
    method = IBP(threat)
    size = method.bounds(model, point).lower.shape[1]
    # Entry (k, j) bounds z_k - z_j from below.
    below = torch.cat([method.margins(model, point, torch.full((1,), k, device=point.device)) for k in range(size)])
    below.fill_diagonal_(0.0)
    return Interval(1 / (-below).exp().sum(1)[None], 1 / below.T.exp().sum(1)[None])


def _widths(parts: list[nn.Module], region: Region, out: Interval, tighter: Bounds | None) -> tuple[Interval, Tensor]:
    """The gradient before the layers, and the sum of squared widths of all their parameters' gradients."""
    total = out.lower.new_zeros(())
    for module, box in reversed(list(zip(parts, inputs_of(parts, region, tighter), strict=True))):
        if type(module) is Residual:
            sides = [_widths(list(layers(b)), box, out, None) for b in (module.body, module.shortcut)]
            (a, first), (b, second) = sides
            out = Interval(a.lower + b.lower, a.upper + b.upper)
            total = total + first + second
        else:
            total = total + _own_widths(module, box, Interval(out.lower[:, 0], out.upper[:, 0]))
            out = DERIVATIVES[type(module)](module, box, out)
    return out, total


def _own_widths(module: nn.Module, box: Interval, out: Interval) -> Tensor:
    """Sum of squared widths of the gradients of a layer's own weight and bias, for one example."""
    if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
        return _batch_norm_widths(module, box, out)
    if not isinstance(module, nn.Linear | nn.Conv2d):
        return out.lower.new_zeros(())
    width = out.upper - out.lower
    total = out.lower.new_zeros(())
    if module.bias is not None:
        # One entry per output, a sum over positions: a linear layer has its outputs along the last axis.
        outputs = -1 if isinstance(module, nn.Linear) else 1
        total = width.movedim(outputs, 0).flatten(1).sum(1).square().sum()

    def of(h: Tensor, g: Tensor) -> Tensor:
        """The weight's gradient, for input h and gradient g of the output."""
        if isinstance(module, nn.Linear):
            return g.flatten(0, -2).T @ h.flatten(0, -2)
        with torch.enable_grad():
            weight = torch.zeros_like(module.weight, dtype=h.dtype).requires_grad_()
            (gradient,) = torch.autograd.grad(convolve(module, h, weight), weight, g)
        return gradient

    if bool((box.lower >= 0).all()):
        # Each product of an interval with one of h >= 0 in closed form, and the widths add up along the sum.
        widths = of(box.upper, out.upper.clamp_min(0) - out.lower.clamp_max(0)) + of(
            box.lower, out.upper.clamp_max(0) - out.lower.clamp_min(0)
        )
    else:
        widths = 2 * (of(box.radius, out.center.abs() + out.radius) + of(box.center.abs(), out.radius))
    return total + widths.square().sum()


def _batch_norm_widths(module: nn.BatchNorm1d | nn.BatchNorm2d, box: Interval, out: Interval) -> Tensor:
    if module.weight is None:
        return out.lower.new_zeros(())
    assert module.running_mean is not None
    assert module.running_var is not None
    shape = (1, -1) + (1,) * (box.lower.ndim - 2)
    scale = (module.running_var.double() + module.eps).sqrt().view(shape)
    low, high = ((t - module.running_mean.double().view(shape)) / scale for t in (box.lower, box.upper))
    corners = torch.stack([g * h for g in (out.lower, out.upper) for h in (low, high)])
    width = torch.stack([corners.amax(0) - corners.amin(0), out.upper - out.lower])
    # A channel's gradient is a sum over its positions.
    return (width.flatten(3).sum(3) if width.ndim > 3 else width).square().sum()
