"""Interval bounds on the Jacobian of a network over a ball: the chain rule, read backwards through intervals.

For ReLU networks the bounds hold for every element of Clarke's Jacobian, which is what a Lipschitz constant needs.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from certify.errors import UnsupportedModule
from certify.interval import RULES, Interval, Region, batch_norm_factor, convolve, layers
from certify.layers import Normalize, Residual

Bounds = Callable[[nn.Module], Interval]
"""Bounds on the output of the first few layers of a network, over the same inputs."""

Method = Callable[[nn.Module, Tensor], Interval]
"""A method's `bounds`: bounds on a network's output around given inputs."""


def around(method: Method | None, x: Tensor) -> Bounds | None:
    """A method's bounds of any first layers around x, in float32, or None."""
    return None if method is None else lambda prefix: method(prefix, x.float())


def pull_back(parts: Iterable[nn.Module], region: Region, out: Interval, tighter: Bounds | None = None) -> Interval:
    """Bound d(out) / d(input) from bounds on d(out) / d(output), over all inputs of the region.

    Proves: Every product of a matrix in `out` with an element of the layers' Jacobian over the region lies between the
        ends, up to rounding.

    Args:
        parts: Layers with a rule, in order.
        region: Their inputs.
        out: (n, rows, ...) over the output's shape.
        tighter: Further bounds on what goes into each activation; both hold, so the tighter end of each counts.

    Returns: (n, rows, ...) over the input's shape.

    Raises:
        UnsupportedModule: a layer has no rule.
    """
    parts = list(parts)
    for module, box in reversed(list(zip(parts, inputs_of(parts, region, tighter), strict=True))):
        out = DERIVATIVES[type(module)](module, box, out)
    return out


def inputs_of(parts: list[nn.Module], region: Region, tighter: Bounds | None = None) -> list[Interval]:
    """The interval that goes into each layer."""
    boxes = []
    for number, module in enumerate(parts):
        box = region.interval()
        if tighter is not None and type(module) in _SLOPES:
            other = tighter(nn.Sequential(*parts[:number]).eval())
            box = Interval(
                torch.maximum(box.lower, other.lower.to(box.lower)), box.upper.minimum(other.upper.to(box.upper))
            )
            region = box
        boxes.append(box)
        region = RULES[type(module)](module, region)
    return boxes


def _of(center: Tensor, radius: Tensor) -> Interval:
    return Interval(center - radius, center + radius)


def transposed(forward: Callable[[Tensor], Tensor], shape: torch.Size) -> Callable[[Tensor], Tensor]:
    """The transpose of a linear map of (m, *shape), by automatic differentiation."""

    def back(g: Tensor) -> Tensor:
        with torch.enable_grad():
            x = g.new_zeros((len(g), *shape), requires_grad=True)
            (pulled,) = torch.autograd.grad(forward(x), x, g)
        return pulled

    return back


def _linear(module: nn.Linear, box: Interval, out: Interval) -> Interval:
    weight = module.weight.detach().to(out.lower.dtype)
    return _of(out.center @ weight, out.radius @ weight.abs())


def _conv(module: nn.Conv2d, box: Interval, out: Interval) -> Interval:
    shape = box.lower.shape[1:]

    def by(weight: Tensor) -> Callable[[Tensor], Tensor]:
        return transposed(lambda x: convolve(module, x, weight), shape)

    weight = module.weight.detach().to(out.lower.dtype)
    return _unflatten(_of(by(weight)(out.center.flatten(0, 1)), by(weight.abs())(out.radius.flatten(0, 1))), out)


def _unflatten(rows: Interval, out: Interval) -> Interval:
    size = out.lower.shape[:2]
    return Interval(rows.lower.unflatten(0, size), rows.upper.unflatten(0, size))


def _average(module: nn.Module, box: Interval, out: Interval) -> Interval:
    back = transposed(module, box.lower.shape[1:])
    return _unflatten(_of(back(out.center.flatten(0, 1)), back(out.radius.flatten(0, 1))), out)


def _scaled(out: Interval, low: Tensor, high: Tensor) -> Interval:
    """The product with slopes in [low, high], 0 <= low <= high."""
    lower = torch.minimum(out.lower * low, out.lower * high)
    return Interval(lower, torch.maximum(out.upper * low, out.upper * high))


def _relu(box: Interval) -> tuple[Tensor, Tensor]:
    # At a kink, lower = 0 or upper = 0, both slopes are possible.
    return (box.lower > 0).to(box.lower), (box.upper >= 0).to(box.lower)


def _leaky_relu(module: nn.LeakyReLU, box: Interval) -> tuple[Tensor, Tensor]:
    low, high = _relu(box)
    ends = module.negative_slope + (1 - module.negative_slope) * torch.stack([low, high])
    return ends.amin(0), ends.amax(0)


def _bell(slope: Callable[[Tensor], Tensor], box: Interval) -> tuple[Tensor, Tensor]:
    """Slopes that fall with the distance from 0."""
    far = torch.maximum(box.lower.abs(), box.upper.abs())
    near = torch.where((box.lower <= 0) & (box.upper >= 0), 0, torch.minimum(box.lower.abs(), box.upper.abs()))
    return slope(far), slope(near)


_SLOPES: dict[type[nn.Module], Callable[..., tuple[Tensor, Tensor]]] = {
    nn.ReLU: lambda module, box: _relu(box),
    nn.LeakyReLU: _leaky_relu,
    nn.Tanh: lambda module, box: _bell(lambda t: 1 - t.tanh().square(), box),
    nn.Sigmoid: lambda module, box: _bell(lambda t: t.sigmoid() * (-t).sigmoid(), box),
}
"""Bounds on the slope of each activation over an interval of its input."""


def _activation(module: nn.Module, box: Interval, out: Interval) -> Interval:
    low, high = _SLOPES[type(module)](module, box)
    return _scaled(out, low[:, None], high[:, None])


def _max_pool(module: nn.MaxPool2d, box: Interval, out: Interval) -> Interval:
    """Each window's derivative goes to a unit that can be its maximum, all of it where no other can be."""
    kernel, stride, padding = (pair(v) for v in (module.kernel_size, module.stride, module.padding))
    if pair(module.dilation) != (1, 1) or module.ceil_mode:
        raise UnsupportedModule("need MaxPool2d without dilation and ceil_mode for derivatives")
    if box.lower.ndim != 4:
        raise UnsupportedModule(
            f"need images (n, channels, height, width) before MaxPool2d for derivatives; got {tuple(box.lower.shape)}"
        )
    n, channels, *size = box.lower.shape
    settings = {"kernel_size": kernel, "stride": stride}

    def windows(t: Tensor, fill: float) -> Tensor:
        padded = nn.functional.pad(t, (padding[1], padding[1], padding[0], padding[0]), value=fill)
        return nn.functional.unfold(padded, **settings).view(n, channels, kernel[0] * kernel[1], -1)

    # Padding never is the maximum. Large finite values: unfold multiplies nothing, but infinities would meet 0 in fold.
    floor = -torch.finfo(box.lower.dtype).max
    lower, upper = windows(box.lower, floor), windows(box.upper, floor)
    possible = upper >= lower.amax(2, keepdim=True)
    alone = possible & (possible.sum(2, keepdim=True) == 1)

    rows = out.lower.shape[1]

    def back(g: Tensor, least: Callable[[Tensor], Tensor]) -> Tensor:
        g = g.reshape(n, rows, channels, 1, -1)
        shares = torch.where(alone[:, None], g, torch.where(possible[:, None], least(g), 0.0))
        padded = (size[0] + 2 * padding[0], size[1] + 2 * padding[1])
        folded = nn.functional.fold(shares.reshape(n * rows, -1, shares.shape[-1]), padded, **settings)
        inner = folded[:, :, padding[0] : padding[0] + size[0], padding[1] : padding[1] + size[1]]
        return inner.unflatten(0, (n, rows))

    return Interval(back(out.lower, lambda g: g.clamp_max(0)), back(out.upper, lambda g: g.clamp_min(0)))


def pair(value: int | tuple[int, int]) -> tuple[int, int]:
    """Along the height and along the width."""
    return (value, value) if isinstance(value, int) else value


def _per_channel(out: Interval, factor: Tensor) -> Interval:
    factor = factor.detach().to(out.lower.dtype).view(1, 1, -1, *[1] * (out.lower.ndim - 3))
    a, b = out.lower * factor, out.upper * factor
    return Interval(torch.minimum(a, b), torch.maximum(a, b))


def _normalize(module: Normalize, box: Interval, out: Interval) -> Interval:
    return _per_channel(out, 1 / module.std.to(out.lower.dtype))


def _batch_norm(module: nn.BatchNorm1d | nn.BatchNorm2d, box: Interval, out: Interval) -> Interval:
    return _per_channel(out, batch_norm_factor(module, out.lower.dtype))


def _flatten(module: nn.Flatten, box: Interval, out: Interval) -> Interval:
    shape = (*out.lower.shape[:2], *box.lower.shape[1:])
    return Interval(out.lower.reshape(shape), out.upper.reshape(shape))


def _identity(module: nn.Module, box: Interval, out: Interval) -> Interval:
    return out


def _residual(module: Residual, box: Interval, out: Interval) -> Interval:
    a, b = (pull_back(layers(branch), box, out) for branch in (module.body, module.shortcut))
    return Interval(a.lower + b.lower, a.upper + b.upper)


DERIVATIVES: dict[type[nn.Module], Callable[..., Interval]] = {
    nn.Linear: _linear,
    nn.Conv2d: _conv,
    **dict.fromkeys(_SLOPES, _activation),
    nn.AvgPool2d: _average,
    nn.AdaptiveAvgPool2d: _average,
    nn.MaxPool2d: _max_pool,
    nn.Flatten: _flatten,
    nn.Identity: _identity,
    nn.BatchNorm1d: _batch_norm,
    nn.BatchNorm2d: _batch_norm,
    Normalize: _normalize,
    Residual: _residual,
}
"""How each layer pulls a Jacobian back: (module, interval of its input, bounds behind it) -> bounds before it."""
