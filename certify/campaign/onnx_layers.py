"""The graph that onnx2torch makes of an ONNX network, as a sequence of layers with a rule."""

import math
from typing import Any

import torch
from torch import Tensor, fx, nn

from certify.errors import UnsupportedModule
from certify.interval import RULES
from certify.layers import Normalize, Residual
from certify.property import fixed_linear

LAYERS = (
    *("Conv", "Gemm", "MatMul", "Add", "Sub", "Mul", "Div", "BatchNormalization", "Relu", "LeakyRelu", "Tanh"),
    *("Sigmoid", "MaxPool", "AveragePool", "GlobalAveragePool", "Flatten", "Reshape", "Squeeze", "Identity", "Dropout"),
)
"""The operations that a network may be made of."""

Route = list[tuple[fx.Node, nn.Module]]
"""How a value comes from the input: each layer, with the value behind it."""


def chain(graph: fx.GraphModule, kinds: dict[fx.Node, str]) -> nn.Sequential:
    """The layers from the input to the output; a skip around others is a `Residual`.

    Args:
        graph: From onnx2torch, in evaluation mode; each node knows its shape.
        kinds: The ONNX operation of each call.

    Raises:
        UnsupportedModule: an operation has no layer, or the graph is not a chain with nested skips.
    """
    routes: dict[fx.Node, Route] = {}
    constants: dict[fx.Node, Tensor] = {}
    inside: set[fx.Node] = set()
    for node in graph.graph.nodes:
        if node.op == "placeholder":
            routes[node] = []
        elif node.op == "get_attr":
            constants[node] = graph.get_buffer(str(node.target))
        elif node.op == "call_module" and kinds[node] == "Constant":
            constants[node] = torch.as_tensor(graph.get_submodule(str(node.target)).value)
        elif node.op == "output" and node.args[0] in routes:
            return nn.Sequential(*(layer for _, layer in routes[node.args[0]]))
        elif node.op == "call_module":
            kind, varying = kinds[node], [a for a in node.args if a in routes]
            if kind == "Add" and len(varying) == 2:
                routes[node] = _residual(node, routes[varying[0]], routes[varying[1]], inside)
            elif len(varying) == 1 and kind in LAYERS:
                layer = _layer(kind, graph.get_submodule(str(node.target)), node, constants)
                routes[node] = _append(routes[varying[0]], node, layer)
            elif len(varying) > 1:
                raise UnsupportedModule(f"need {kind} with constants; got two values that depend on the input")
            # What is left computes a shape, which the shapes of the values tell.
    raise UnsupportedModule("need a chain of layers from the input to the output; an operation on shapes lies between")


def _residual(node: fx.Node, first: Route, second: Route, inside: set[fx.Node]) -> Route:
    """The sum of two branches, from where they part.

    Raises:
        UnsupportedModule: a branch passes through another block's inside: each would be computed many times over.
    """
    common = 0
    for (a, _), (b, _) in zip(first, second, strict=False):
        if a is not b:
            break
        common += 1
    branches = [first[common:], second[common:]]
    values = {value for branch in branches for value, _ in branch}
    if values & inside:
        raise UnsupportedModule("need skips that nest; got one into the inside of another")
    inside |= values
    body, shortcut = sorted((nn.Sequential(*(layer for _, layer in b)) for b in branches), key=len, reverse=True)
    return [*first[:common], (node, Residual(body, shortcut if len(shortcut) else nn.Identity()))]


def _append(route: Route, node: fx.Node, layer: nn.Module) -> Route:
    """A route and one more layer, which merges with the last one where two are the parts of one of ours."""
    if type(layer) is nn.Identity:
        return route
    last = route[-1][1] if route else None
    if type(layer) is Normalize and type(last) is Normalize:
        # (x - m) / s and (. - m') / s': in float64, which is exact for a subtraction and then a division
        mean = last.mean.double() + layer.mean.double() * last.std.double()
        std = last.std.double() * layer.std.double()
        return [*route[:-1], (node, _normalize(mean, std))]
    if type(layer) is Normalize and type(last) is nn.Linear and last.bias is None and bool((layer.std == 1).all()):
        return [*route[:-1], (node, fixed_linear(last.weight, -layer.mean))]
    return [*route, (node, layer)]


def _layer(kind: str, module: nn.Module, node: fx.Node, constants: dict[fx.Node, Tensor]) -> nn.Module:
    """The layer of an operation on one value that varies; `nn.Identity` where it does nothing.

    Raises:
        UnsupportedModule: there is none for these parameters.
    """
    operands: list[Any] = list(node.args)
    varying = next(i for i, operand in enumerate(operands) if operand not in constants)
    before, after = _shape(operands[varying]), _shape(node)
    others = [constants.get(operand) for i, operand in enumerate(operands) if i != varying]
    match kind:
        case "Identity" | "Dropout":
            return nn.Identity()
        case "Flatten" | "Reshape" | "Squeeze" if after == before:
            return nn.Identity()
        case "Flatten" | "Reshape" | "Squeeze" if after == (before[0], math.prod(before[1:])):
            return nn.Flatten()
        case "GlobalAveragePool" if len(before) == 4:
            return nn.AdaptiveAvgPool2d(1)
        case "Tanh":
            return nn.Tanh()
        case "MatMul" | "Gemm" if type(module) is not nn.Linear and varying == 0 and len(before) == 2:
            return _product(module, others)
        case "Gemm" if type(module) is nn.Linear and module.bias is not None:
            return fixed_linear(module.weight, module.bias.expand(module.out_features))  # it may be one for all
        case "Add" | "Sub" | "Mul" | "Div" if varying == 0 or kind in ("Add", "Mul"):
            return _elementwise(kind, others[0], before, after)
        case _ if type(module) in RULES and type(module) is not nn.Flatten:
            return module
    raise UnsupportedModule(f"no layer for {kind} from shape {before} to {after} ({type(module).__name__})")


def _shape(node: Any) -> tuple[int, ...]:
    return tuple(node.meta["tensor_meta"].shape)


def _product(module: Any, others: list[Tensor | None]) -> nn.Linear:
    """The product of rows with a matrix, perhaps with an offset that is the same for each row.

    Raises:
        UnsupportedModule: the matrix or the offset is no constant of such a shape, or the rows are transposed.
    """
    # onnx2torch's Gemm has these options; its MatMul has none.
    transposed, alpha, beta = (getattr(module, *pair) for pair in (("trans_b", False), ("alpha", 1.0), ("beta", 1.0)))
    matrix, offset = others[0], others[1] if len(others) > 1 else None
    if matrix is None or matrix.ndim != 2 or getattr(module, "trans_a", False) or (len(others) > 1 and offset is None):
        raise UnsupportedModule("need a product of rows with a constant matrix, and a constant offset")
    weight = alpha * (matrix if transposed else matrix.T)
    if offset is None:
        return fixed_linear(weight, None)
    if offset.numel() not in (1, len(weight)) or (offset.ndim and offset.shape[-1] != offset.numel()):
        raise UnsupportedModule(f"need an offset for each of {len(weight)} outputs; got shape {tuple(offset.shape)}")
    return fixed_linear(weight, (beta * offset).flatten().expand(len(weight)))


def _elementwise(kind: str, other: Tensor | None, before: tuple[int, ...], after: tuple[int, ...]) -> Normalize:
    """The normaliser that adds, subtracts, multiplies or divides by a constant per channel.

    Raises:
        UnsupportedModule: it is no constant, differs within a channel, or is a factor that is not positive.
    """
    if other is None:
        raise UnsupportedModule(f"need {kind} of a value and a constant")
    value = _per_channel(kind, other.double(), before, after)
    zero, one = torch.zeros_like(value), torch.ones_like(value)
    if kind in ("Add", "Sub"):
        return _normalize(value if kind == "Sub" else -value, one)
    if not bool((value > 0).all()):
        raise UnsupportedModule(f"need {kind} by positive constants; got {float(value.min()):g}")
    return _normalize(zero, value if kind == "Div" else 1 / value)


def _per_channel(kind: str, value: Tensor, before: tuple[int, ...], after: tuple[int, ...]) -> Tensor:
    """(channels,) of a constant that is the same all over each channel."""
    if before != after or value.ndim > len(after) or (value.ndim == len(after) and value.shape[0] != 1):
        raise UnsupportedModule(f"need {kind} by constants per channel for shape {before}; got {tuple(value.shape)}")
    rows = value.expand(1, *after[1:]).reshape(after[1], -1)
    if not bool((rows == rows[:, :1]).all()):
        raise UnsupportedModule(f"need {kind} by one constant per channel; got values that differ within one")
    return rows[:, 0]


def _normalize(mean: Tensor, std: Tensor) -> Normalize:
    return Normalize(mean.tolist(), std.tolist())
