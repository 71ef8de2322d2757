"""Interval bound propagation: where a network's layers can go while its input moves in a ball.

A set of inputs is a `Ball` until the first affine layer, which maps it exactly, by the dual norm; from there on it is
an `Interval`, a lower and an upper end for each unit. Rules are keyed by a layer's exact type: a subclass may compute
something else, so it has no rule.

Source: Gowal et al. (2018); Mirman et al. (2018). Rounding: Higham (2002), section 3.1, for sums in any order.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from certify.certificate import Certificate
from certify.errors import InputError, UnsupportedModule
from certify.layers import Normalize, Residual, check_channels
from certify.threat import Threat
from certify.verification import certify_predictions, check_logits
from certify.voting import check_model

_FEW = 32
"""Classes up to which all pairs of them are bounded at once."""

Visit = Callable[[nn.Module, "Interval"], None]


@dataclass(frozen=True, slots=True, eq=False)
class Interval:
    """lower <= value <= upper, unit by unit.

    Attributes:
        lower: (n, ...).
        upper: (n, ...).
        outward: Ends are rounded outward, so that what follows accounts for every rounding error.
    """

    lower: Tensor
    upper: Tensor
    outward: bool = False

    @property
    def center(self) -> Tensor:
        """(n, ...) midpoint."""
        return (self.lower + self.upper) / 2

    @property
    def radius(self) -> Tensor:
        """(n, ...) half-width around `center`; rounded up where `outward`."""
        if self.outward:
            c = self.center
            return _up(torch.maximum(self.upper - c, c - self.lower))
        return (self.upper - self.lower) / 2

    def interval(self) -> "Interval":
        """Itself."""
        return self


@dataclass(frozen=True, slots=True, eq=False)
class Ball:
    """center + scale * d for every d of norm at most eps: the input, up to its first affine layer.

    Attributes:
        center: (n, ...).
        error: (n, ...) bound on the rounding error of `center`, or None where rounding is not accounted for.
        scale: (1, ...) > 0, per input unit.
        eps: (n,) radii.
        norm: "L1" or "L2"; the ball of Linf is an interval.
    """

    center: Tensor
    error: Tensor | None
    scale: Tensor
    eps: Tensor
    norm: str

    def interval(self) -> Interval:
        """The smallest box around it."""
        reach = _column(self.eps, self.center) * self.scale
        if self.error is not None:
            reach = reach + self.error + _slack(12, reach)
        return _around(self.center, reach, self.outward)

    @property
    def outward(self) -> bool:
        """Whether rounding is accounted for."""
        return self.error is not None


Region = Interval | Ball


def _up(t: Tensor) -> Tensor:
    return torch.nextafter(t, torch.full_like(t, torch.inf))


def _down(t: Tensor) -> Tensor:
    return torch.nextafter(t, torch.full_like(t, -torch.inf))


def _column(eps: Tensor, like: Tensor) -> Tensor:
    return eps.view(-1, *[1] * (like.ndim - 1))


def _around(center: Tensor, radius: Tensor, outward: bool) -> Interval:
    lower, upper = center - radius, center + radius
    return Interval(_down(lower), _up(upper), True) if outward else Interval(lower, upper)


def _slack(terms: int, value: Tensor) -> Tensor:
    """A bound on the rounding error of a sum of `terms` products, from the computed sum of their magnitudes.

    Twice the classical m u / (1 - m u), with 8 operations to spare for how the terms themselves came about, also covers
    the errors of computing it; the constant covers underflow.
    """
    return 2 * (terms + 8) * (torch.finfo(value.dtype).eps / 2) * value + 1e-300


def _affine(
    region: Region, apply: Callable[[Tensor, Tensor], Tensor], weight: Tensor, bias: Tensor | None, reach: Tensor | None
) -> Interval:
    """Weight x + bias over the region, where apply(x, weight) is the product.

    Args:
        region: Before the layer.
        apply: The layer's product, bilinear.
        weight: Its weight.
        bias: Of the output's shape up to broadcasting, or None.
        reach: For a ball, the dual norm of each row of the weight; for an interval None.
    """
    center = apply(region.center, weight)
    center = center if bias is None else center + bias
    if isinstance(region, Ball):
        assert reach is not None
        radius = _column(region.eps, center) * reach
    else:
        radius = apply(region.radius, weight.abs())
    if region.outward:
        terms = weight[0].numel()
        magnitude = apply(region.center.abs(), weight.abs())
        magnitude = magnitude if bias is None else magnitude + bias.abs()
        if isinstance(region, Ball):
            assert region.error is not None
            radius = radius + apply(region.error, weight.abs())
        radius = radius + _slack(terms, radius + magnitude)
    return _around(center, radius, region.outward)


def _linear(module: nn.Linear, region: Region) -> Interval:
    weight, bias = _parameters(module, region.center)
    return _affine(region, functional.linear, weight, bias, _row_norms(weight, region))


def _row_norms(weight: Tensor, region: Region) -> Tensor | None:
    """Dual norms of a matrix's rows on a ball's own axes.

    Args:
        weight: (rows, columns); or (n, rows, columns), for a region of (n, columns).
        region: Of (n, ..., columns): the matrix is applied along the last axis, and each place has scales of its own.

    Returns: (1 or n, ..., rows), or None for an interval.
    """
    if not isinstance(region, Ball):
        return None
    order = torch.inf if region.norm == "L1" else 2
    return torch.linalg.vector_norm(weight * region.scale.unsqueeze(-2), order, dim=-1)


def convolve(module: nn.Conv2d, x: Tensor, weight: Tensor, groups: int | None = None) -> Tensor:
    """A layer's convolution with another weight and no bias: linear in x and in the weight."""
    groups = module.groups if groups is None else groups
    return functional.conv2d(x, weight, None, module.stride, module.padding, module.dilation, groups)


def _conv(module: nn.Conv2d, region: Region) -> Interval:
    if module.padding_mode != "zeros":
        raise UnsupportedModule(f"need padding_mode 'zeros' in Conv2d; got {module.padding_mode!r}")
    if region.center.ndim != 4:  # torch takes three axes for one image: the batch would become channels
        raise InputError(f"need images (n, channels, height, width) before Conv2d; got {tuple(region.center.shape)}")
    if region.outward and region.center.device.type != "cpu":
        raise InputError("need the CPU for a convolution with outward rounding: elsewhere its algorithm is not known")
    weight, bias = _parameters(module, region.center)

    def apply(x: Tensor, w: Tensor) -> Tensor:
        return convolve(module, x, w)

    reach = None
    if isinstance(region, Ball):
        # One scale per channel: only `Normalize` and batch norm come before. Channel c of a group meets its own.
        scale = region.scale.flatten(2).amax(2).view(module.groups, -1)
        scaled = weight * scale.repeat_interleave(len(weight) // module.groups, 0)[:, :, None, None]
        if region.norm == "L2":
            # The sum of squares of the taps that meet the image rather than its padding.
            reach = apply(torch.ones_like(region.center[:1]), scaled.square())
            reach = reach.clamp_min(1e-30).sqrt()
        else:
            height, width = weight.shape[2:]
            taps = torch.eye(height * width, dtype=weight.dtype, device=weight.device).view(-1, 1, height, width)
            met = convolve(module, torch.ones_like(region.center[:1, :1]), taps, groups=1)
            largest = scaled.abs().amax(1).flatten(1)
            reach = (largest[None, :, :, None, None] * met[:, None]).amax(2)
    return _affine(region, apply, weight, None if bias is None else bias[:, None, None], reach)


def _parameters(module: nn.Linear | nn.Conv2d, like: Tensor) -> tuple[Tensor, Tensor | None]:
    return module.weight.to(like.dtype), None if module.bias is None else module.bias.to(like.dtype)


def _elementwise(region: Region, shift: Tensor, factor: Tensor, bias: Tensor) -> Region:
    """(x - shift) * factor + bias, per channel."""
    shape = (1, -1) + (1,) * (region.center.ndim - 2)
    shift, factor, bias = (t.to(region.center.dtype).view(shape) for t in (shift, factor, bias))
    if isinstance(region, Interval) and not region.outward:
        # A line maps ends to ends; where it falls they change places.
        a, b = ((end - shift) * factor + bias for end in (region.lower, region.upper))
        return Interval(torch.minimum(a, b), torch.maximum(a, b)) if bool((factor < 0).any()) else Interval(a, b)
    center = (region.center - shift) * factor + bias
    if isinstance(region, Ball) and region.error is None:
        return Ball(center, None, region.scale * factor.abs(), region.eps, region.norm)
    # `factor` itself comes from a division and a root; a dozen operations bound it all.
    magnitude = (region.center.abs() + shift.abs()) * factor.abs() + bias.abs()
    if isinstance(region, Ball):
        assert region.error is not None
        error = region.error * factor.abs() + _slack(12, magnitude)
        return Ball(center, error, region.scale * factor.abs(), region.eps, region.norm)
    radius = region.radius * factor.abs()
    return _around(center, radius + _slack(12, radius + magnitude), True)


def _normalize(module: Normalize, region: Region) -> Region:
    check_channels(module, region.center)
    std = module.std.to(region.center.dtype)
    return _elementwise(region, module.mean, 1 / std, torch.zeros_like(std))


def batch_norm_factor(module: nn.BatchNorm1d | nn.BatchNorm2d, dtype: torch.dtype) -> Tensor:
    """(channels,) what a batch norm in evaluation mode, with running statistics, multiplies by."""
    assert module.running_var is not None
    factor = 1 / (module.running_var.to(dtype) + module.eps).sqrt()
    return factor if module.weight is None else module.weight.to(dtype) * factor


def _batch_norm(module: nn.BatchNorm1d | nn.BatchNorm2d, region: Region) -> Region:
    if module.training or module.running_mean is None or module.running_var is None:
        raise UnsupportedModule(f"need {type(module).__name__} in evaluation mode, with running statistics")
    factor = batch_norm_factor(module, region.center.dtype)
    return _elementwise(
        region, module.running_mean, factor, torch.zeros_like(factor) if module.bias is None else module.bias
    )


def _monotone(module: nn.Module, region: Region) -> Interval:
    """A layer that computes no sum and rises with each input: its ends are the images of the ends."""
    box = region.interval()
    return Interval(module(box.lower), module(box.upper), box.outward)


def _smooth(module: nn.Module, region: Region) -> Interval:
    """A monotone function per unit, computed to within 4 units in the last place."""
    ends = _monotone(module, region)
    if not ends.outward:
        return ends
    lower, upper = ends.lower, ends.upper
    for _ in range(4):
        lower, upper = _down(lower), _up(upper)
    return Interval(lower, upper, True)


def _leaky_relu(module: nn.LeakyReLU, region: Region) -> Interval:
    if module.negative_slope < 0:
        raise UnsupportedModule(f"need negative_slope >= 0 in LeakyReLU; got {module.negative_slope}")
    return _smooth(module, region)


def _average(module: nn.AvgPool2d | nn.AdaptiveAvgPool2d, region: Region) -> Interval:
    divisor = module.divisor_override if isinstance(module, nn.AvgPool2d) else None
    if divisor is not None and divisor <= 0:
        raise UnsupportedModule(f"need AvgPool2d with a divisor > 0; got {divisor}")
    ends = _monotone(module, region)
    if not ends.outward:
        return ends
    box = region.interval()
    terms = box.lower[0].numel()
    return Interval(
        _down(ends.lower - _slack(terms, module(box.lower.abs()))),
        _up(ends.upper + _slack(terms, module(box.upper.abs()))),
        True,
    )


def _max_pool(module: nn.MaxPool2d, region: Region) -> Interval:
    if module.return_indices:
        raise UnsupportedModule("need MaxPool2d without return_indices")
    return _monotone(module, region)


def _flatten(module: nn.Flatten, region: Region) -> Region:
    if module.start_dim != 1 or module.end_dim != -1:
        raise UnsupportedModule(f"need Flatten() of all but the batch; got {module!r}")
    if isinstance(region, Interval):
        return Interval(region.lower.flatten(1), region.upper.flatten(1), region.outward)
    scale = region.scale.expand(1, *region.center.shape[1:]).flatten(1)
    error = None if region.error is None else region.error.flatten(1)
    return Ball(region.center.flatten(1), error, scale, region.eps, region.norm)


def _identity(module: nn.Module, region: Region) -> Region:
    return region


def _residual(module: Residual, region: Region) -> Interval:
    a, b = (_through(layers(part), region, None).interval() for part in (module.body, module.shortcut))
    if a.lower.shape != b.lower.shape:  # a sum that repeats one of them has other derivatives and norms
        raise UnsupportedModule(
            f"need a Residual of equal shapes; got {tuple(a.lower.shape)} and {tuple(b.lower.shape)}"
        )
    lower, upper = a.lower + b.lower, a.upper + b.upper
    return Interval(_down(lower), _up(upper), True) if a.outward else Interval(lower, upper)


RULES: dict[type[nn.Module], Callable[..., Region]] = {
    nn.Linear: _linear,
    nn.Conv2d: _conv,
    nn.ReLU: _monotone,
    nn.LeakyReLU: _leaky_relu,
    nn.Tanh: _smooth,
    nn.Sigmoid: _smooth,
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
"""The sound rule of each layer: (module, region before it) -> region after it."""


def layers(model: nn.Module) -> Iterator[nn.Module]:
    """A network's layers in order, nested `nn.Sequential` opened.

    Raises:
        UnsupportedModule: a layer has no rule, or a hook that could change what it computes.
    """
    if model._forward_hooks or model._forward_pre_hooks:
        raise UnsupportedModule(f"need layers without forward hooks; {type(model).__name__} has one")
    if type(model) is nn.Sequential:
        for part in model:
            yield from layers(part)
    elif type(model) in RULES:
        yield model
    else:
        known = ", ".join(t.__name__ for t in RULES)
        raise UnsupportedModule(f"no interval rule for {type(model).__name__}; need nn.Sequential of {known}")


def _through(parts: Iterable[nn.Module], region: Region, visit: Visit | None) -> Region:
    for module in parts:
        if visit is not None:
            visit(module, region.interval())
        region = RULES[type(module)](module, region)
    return region


def input_region(x: Tensor, threat: Threat, eps: Tensor | None = None, *, outward: bool = False) -> Region:
    """The set of inputs that a threat allows: for Linf within the box, for L1 and L2 the whole ball.

    Args:
        x: (n, ...).
        threat: Its eps is the radius where `eps` is None.
        eps: (n,) radii of their own.
        outward: Account for rounding.
    """
    eps = torch.full((len(x),), threat.eps, dtype=torch.float64) if eps is None else eps
    eps = eps.to(x)
    if threat.norm == "Linf":
        box = _around(x, _column(eps, x), outward)
        if threat.box is None:
            return box
        # The box holds x; min and max keep it inside where rounding or a negative zero would not.
        return Interval(box.lower.clamp_min(threat.box[0]), box.upper.clamp_max(threat.box[1]), outward)
    return Ball(x, torch.zeros_like(x) if outward else None, torch.ones_like(x[:1]), eps, threat.norm)


def _merged(head: nn.Linear, region: Region, y: Tensor) -> Tensor:
    """Lower ends of z_y - z_k behind a last linear layer, whose rows are subtracted before they meet the region."""
    weight, bias = _parameters(head, region.center)
    if isinstance(region, Interval) and not region.outward and len(weight) <= _FEW:
        # One product with all pairs of rows is faster than a product of each example with its own.
        logits = functional.linear(region.center, weight, bias)
        pairs = (weight[:, None] - weight).abs().flatten(0, 1)
        reach = functional.linear(region.radius, pairs).unflatten(1, (len(weight), len(weight)))
        return logits.gather(1, y[:, None]) - logits - reach[torch.arange(len(y)), y]
    rows = weight[y][:, None] - weight
    offset = None if bias is None else bias[y][:, None] - bias
    # With outward rounding, the one rounding of each difference is among the operations that the slack has to spare.
    return _affine(region, lambda t, w: torch.einsum("nkh,nh->nk", w, t), rows, offset, _row_norms(rows, region)).lower


@dataclass(frozen=True, slots=True)
class IBP:
    """Interval bound propagation over a threat.

    Args:
        threat: Linf: the ball within the box, if there is one; L1, L2: the whole ball.
        outward: Round every end outward, so that the bounds hold in exact arithmetic too.
        batch: Examples bounded together.

    Raises:
        InputError: another norm, or batch < 1.

    Source: Gowal et al. (2018), section 3; the last layer is merged with the margins as in their section 3.2.
    """

    threat: Threat
    outward: bool = False
    batch: int = 1000

    def __post_init__(self) -> None:
        if self.threat.norm not in ("Linf", "L2", "L1"):
            raise InputError(f"need a threat in Linf, L2 or L1; got {self.threat.norm}")
        if self.batch < 1:
            raise InputError(f"need batch >= 1; got {self.batch!r}")

    def bounds(self, model: nn.Module, x: Tensor, eps: Tensor | None = None, *, visit: Visit | None = None) -> Interval:
        """Bound the logits, in the precision of x; differentiable.

        Proves: For every input in the threat around x, logits lie between the ends; with `outward` (x in float64) as a
            statement about the network's function in exact arithmetic, without it up to rounding.

        Args:
            model: A sequence of layers that have a rule.
            x: (n, ...) inputs.
            eps: (n,) radii in place of the threat's.
            visit: Called with each layer and the interval of its input.

        Returns: (n, classes) ends.

        Raises:
            UnsupportedModule: a layer has no rule.
        """
        return _through(layers(model), input_region(x, self.threat, eps, outward=self.outward), visit).interval()

    def margins(
        self, model: nn.Module, x: Tensor, y: Tensor, eps: Tensor | None = None, *, visit: Visit | None = None
    ) -> Tensor:
        """Bound logit y minus every logit from below, in the precision of x; differentiable.

        Proves: For every input in the threat around x, z_y - z_k is at least entry k; arithmetic as for `bounds`.

        Args:
            model: A sequence of layers that have a rule.
            x: (n, ...) inputs.
            y: (n,) classes.
            eps: (n,) radii in place of the threat's.
            visit: Called with each layer but a merged one and the interval of its input.

        Returns: (n, classes); about 0 at k = y. A last linear layer is merged: its rows are subtracted first.

        Raises:
            UnsupportedModule: a layer has no rule.
            InputError: the output is not (n, classes).
        """
        region = input_region(x, self.threat, eps, outward=self.outward)
        *parts, last = layers(model)
        if type(last) is not nn.Linear:
            ends = _through([*parts, last], region, visit).interval()
            check_logits(ends.lower.shape)
            difference = ends.lower.gather(1, y[:, None]) - ends.upper
            return _down(difference) if self.outward else difference
        region = _through(parts, region, visit)
        check_logits((*region.center.shape[:-1], last.out_features))
        return _merged(last, region, y)

    def verified(self, model: nn.Module, x: Tensor, y: Tensor, eps: Tensor | None = None) -> Tensor:
        """Whether every input in the threat around x is classified as y, in float64.

        Proves: Where True, so it is; arithmetic as for `bounds`.

        Args:
            model: A sequence of layers that have a rule, in evaluation mode.
            x: (n, ...) inputs.
            y: (n,) classes.
            eps: (n,) radii in place of the threat's.

        Returns: (n,) bool.

        Raises:
            UnsupportedModule: a layer has no rule.
            InputError: the model is in training mode, or its output is not (n, classes).
        """
        check_model(model)
        parts = []
        with torch.no_grad():
            for rows in torch.arange(len(x), device=x.device).split(self.batch):
                lower = self.margins(model, x[rows].double(), y[rows], None if eps is None else eps[rows].double())
                parts.append((lower.scatter(1, y[rows][:, None], torch.inf) > 0).all(1))
        return torch.cat(parts)

    def __call__(self, model: nn.Module, x: Tensor) -> Certificate:
        """Verify each prediction at the threat's eps.

        Proves: Where the prediction is not ABSTAIN, f predicts it everywhere in the closed ball of radius eps in the
            threat's norm, for Linf as far as the box goes. Deterministic. In float64: without `outward` up to rounding,
            with it for the network's function in exact arithmetic.

        Args:
            model: A sequence of layers that have a rule, in evaluation mode.
            x: (n, ...) float inputs in the box.

        Returns: Certificate with radius eps where verified, ABSTAIN and 0 elsewhere.

        Raises:
            InputError: training mode, inputs outside the box, or an output that is not (n, classes).
            UnsupportedModule: a layer has no rule.
        """
        arithmetic = "exact" if self.outward else "float64, rounding not accounted for"
        return certify_predictions(self, model, x, arithmetic)
