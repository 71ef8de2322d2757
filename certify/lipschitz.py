"""Certified upper bounds on how fast logits can change with the input, around a point and everywhere.

Source: interval Jacobians: Zhang, Zhang & Hsieh (2019), RecurJac, section 3; the chain rule of Clarke's Jacobian:
Jordan & Dimakis (2020). Norms of convolutions: Singla & Feizi (2021).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from certify.errors import InputError, UnsupportedModule
from certify.interval import IBP, Interval, batch_norm_factor, convolve, input_region, layers
from certify.jacobian import Method, around, pair, pull_back, transposed
from certify.layers import Normalize, Residual
from certify.threat import Threat
from certify.verification import check_logits
from certify.voting import check_inputs, check_model


@dataclass(frozen=True, slots=True, eq=False)
class LipschitzBound:
    """Certified local Lipschitz constants around n inputs.

    Proves: Within the threat around input i, |f(a) - f(b)| <= operator[i] |a - b|, both norms the threat's; |z_k(a) -
        z_k(b)| <= logits[i, k] |a - b|; and the same of z_y - z_k for margins[i, k]. In float64, up to rounding.

    Attributes:
        operator: (n,) the smaller of `interval` and `product`.
        interval: (n,) from the interval Jacobian, valid within the threat.
        product: The product of the layers' norms, valid everywhere.
        logits: (n, classes), each logit by itself, from the interval Jacobian.
        margins: (n, classes); 0 at k = y.
        threat: Where.
    """

    operator: Tensor
    interval: Tensor
    product: float
    logits: Tensor
    margins: Tensor
    threat: Threat


def local_lipschitz(
    model: nn.Module, x: Tensor, threat: Threat, *, y: Tensor | None = None, tighter: Method | None = None
) -> LipschitzBound:
    """Bound the local Lipschitz constants of logits and margins over a threat.

    Proves: As `LipschitzBound` says.

    Args:
        model: A sequence of layers that have a rule, in evaluation mode.
        x: (n, ...) inputs in the box.
        threat: In Linf or L2; its part in the box for Linf, the whole ball for L2.
        y: (n,) classes of the margins; the predicted ones where None.
        tighter: (first layers, x in float32) -> bounds on what comes out of them all over the threat around x, for what
            goes into each activation. The proof rests on them too; interval bounds hold as well, and the tighter end
            counts.

    Raises:
        InputError: another norm, a model in training mode, inputs outside the box, or an output that is not (n,
            classes).
        UnsupportedModule: a layer has no rule.
    """
    if threat.norm not in ("Linf", "L2"):
        raise InputError(f"need a threat in Linf or L2; got {threat.norm}")
    check_inputs(x, threat.box)
    check_model(model)
    x = x.double()
    with torch.no_grad():
        logits = IBP(threat).bounds(model, x).center
        check_logits(logits.shape)
        y = logits.argmax(1) if y is None else y
        size = logits.shape[1]
        identity = torch.eye(size, dtype=x.dtype, device=x.device).expand(len(x), size, size)
        difference = identity[torch.arange(len(x)), y][:, None] - identity
        rows = torch.cat([identity, difference], 1)
        region = input_region(x, threat)
        jacobian = pull_back(layers(model), region, Interval(rows, rows), around(tighter, x))
        jacobian = Interval(jacobian.lower.flatten(2), jacobian.upper.flatten(2))
        largest = torch.maximum(jacobian.lower.abs(), jacobian.upper.abs())
        each = torch.linalg.vector_norm(largest, 1 if threat.norm == "Linf" else 2, dim=2)
        interval = _operator_norm(Interval(jacobian.lower[:, :size], jacobian.upper[:, :size]), threat.norm)
        product = norm_product(model, x.shape[1:], threat.norm)
    return LipschitzBound(interval.clamp_max(product), interval, product, each[:, :size], each[:, size:], threat)


def _operator_norm(matrices: Interval, norm: str) -> Tensor:
    """(n,) bounds on the induced norm of every (rows, inputs) matrix between the ends."""
    largest = torch.maximum(matrices.lower.abs(), matrices.upper.abs())
    if norm == "Linf":
        return largest.sum(2).amax(1)
    # Two bounds on the spectral norm: of the entrywise largest matrix, and by the triangle inequality from the centre.
    spread = torch.linalg.matrix_norm(matrices.center, 2) + torch.linalg.matrix_norm(matrices.radius, 2)
    return torch.minimum(torch.linalg.matrix_norm(largest, 2), spread)


def norm_product(model: nn.Module, shape: torch.Size, norm: str) -> float:
    """The product of the layers' operator norms: a Lipschitz constant of the whole network, everywhere.

    Proves: |f(a) - f(b)| <= it * |a - b| for all inputs a, b, both norms `norm`. In float64, up to rounding.

    Args:
        model: A sequence of layers that have a rule.
        shape: Of one input.
        norm: "Linf" or "L2".

    Raises:
        UnsupportedModule: a layer has no rule.
    """
    total, point = 1.0, torch.zeros((1, *shape), dtype=torch.float64)
    with torch.no_grad():
        for module in layers(model):
            if type(module) is Residual:
                branches = [norm_product(b, point.shape[1:], norm) for b in (module.body, module.shortcut)]
                total *= sum(branches)
            else:
                total *= _layer_norm(module, point, norm)
            point = IBP(Threat("Linf", 0.0, box=None)).bounds(module, point).center
    return total


def _layer_norm(module: nn.Module, point: Tensor, norm: str) -> float:
    if isinstance(module, nn.Linear):
        return float(torch.linalg.matrix_norm(module.weight.double(), 2 if norm == "L2" else torch.inf))
    if isinstance(module, nn.Conv2d):
        weight = module.weight.double()

        def forward(t: Tensor) -> Tensor:
            return convolve(module, t, weight.abs())

        # Sums of magnitudes along rows and columns of the convolution's matrix: its norms in Linf and L1.
        rows = float(forward(torch.ones_like(point)).max())
        if norm == "Linf":
            return rows
        columns = float(transposed(forward, point.shape[1:])(torch.ones_like(forward(point))).max())
        return min(math.sqrt(rows * columns), _reshaped_norm(weight, module.groups))
    if isinstance(module, Normalize):
        return float(1 / module.std.double().abs().min())
    if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
        return float(batch_norm_factor(module, torch.float64).abs().max())
    if isinstance(module, nn.LeakyReLU):
        return max(1.0, module.negative_slope)
    if isinstance(module, nn.Sigmoid):
        return 0.25
    if isinstance(module, nn.MaxPool2d):
        # In L2 an input counts once for each window that it can be the maximum of: tap j of window t meets s t + d j,
        # so that windows of one input have taps j that are equal modulo s / gcd(s, d).
        taps = zip(*(pair(v) for v in (module.kernel_size, module.stride, module.dilation)), strict=True)
        windows = math.prod(-(-k // (s // math.gcd(s, d))) for k, s, d in taps)
        return math.sqrt(windows) if norm == "L2" else 1.0
    if isinstance(module, nn.AvgPool2d | nn.AdaptiveAvgPool2d):
        rows = float(module(torch.ones_like(point)).max())
        columns = float(transposed(module, point.shape[1:])(torch.ones_like(module(point))).max())
        return math.sqrt(rows * columns) if norm == "L2" else rows
    if isinstance(module, nn.ReLU | nn.Tanh | nn.Flatten | nn.Identity):
        return 1.0
    raise UnsupportedModule(f"no norm for {type(module).__name__}")


def _reshaped_norm(weight: Tensor, groups: int) -> float:
    """A bound on the spectral norm of a convolution of any stride: sqrt(taps) times that of its kernel as a matrix.

    A convolution is the kernel's matrix applied to patches, and no input value is in more patches than there are taps.
    """
    taps = math.prod(weight.shape[2:])
    blocks = weight.flatten(1).unflatten(0, (groups, -1))
    return math.sqrt(taps) * float(torch.linalg.matrix_norm(blocks, 2).max())
