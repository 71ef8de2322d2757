"""Linear bound propagation (CROWN) through auto_LiRPA, fenced off where its rules are not sound.

auto_LiRPA bounds a traced graph. Of that graph only nodes are let through whose rule is sound for their parameters
(`RULES`). What it gets wrong for L1 and L2 balls is put right: a leading `Normalize` is taken off and the ball mapped
past it, the first layer that remains must be linear or a convolution, and the interval of a first convolution is ours.
"""

import copy
import importlib
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.jit import TracerWarning  # pyright: ignore[reportPrivateImportUsage]

from certify.certificate import Certificate
from certify.errors import InputError, UnsupportedModule, check_count
from certify.layers import Normalize, check_channels
from certify.lirpa_repairs import auto_lirpa
from certify.threat import Threat
from certify.verification import certify_predictions, check_logits
from certify.voting import check_model

Slopes = Literal["adaptive", "fast_lin", "optimized"]
Intermediate = Literal["crown", "ibp"]

_ORDER = {"L1": 1.0, "L2": 2.0, "Linf": float("inf")}
_DUAL = {"L1": float("inf"), "L2": 2.0}


def _always(node: Any) -> bool:
    return True


def _tiles(node: Any) -> bool:
    """Windows that tile the input: the only pooling whose backward rule is right."""
    (high, wide), kernel = node.input_shape[-2:], list(node.kernel_size)
    return kernel == list(node.stride) and not any(node.padding) and high % kernel[0] == wide % kernel[1] == 0


RULES: dict[str, Callable[[Any], bool]] = {
    "Input": _always,
    "Flatten": _always,
    "Reshape": _always,
    "Linear": _always,
    "Conv": lambda node: len(node.stride) == 2 and len(set(node.dilation)) == 1,
    "BatchNormalization": _always,
    "Relu": _always,
    "LeakyRelu": lambda node: 0 <= node.alpha <= 1,
    "Tanh": _always,
    "Sigmoid": _always,
    "AveragePool": _tiles,
    "GlobalAveragePool": _always,
    "MaxPool": _tiles,
    "Add": _always,
    "Sub": _always,
    "Div": lambda node: not node.inputs[1].perturbed,
}
"""The graph's nodes with a sound rule, each with the condition under which it is."""


@dataclass(frozen=True, slots=True)
class CROWN:
    """Linear bounds on a network's margins over a threat, propagated backwards.

    Args:
        threat: Linf: the ball within the box, if there is one; L1, L2: the whole ball.
        slopes: The line below an unstable ReLU: "adaptive", 0 or 1, whichever leaves less area (CROWN); "fast_lin",
            parallel to the line above (Fast-Lin; LP-GREEDY); "optimized", by gradient ascent (alpha-CROWN).
        intermediate: Bounds of hidden units: "crown", by linear bounds; "ibp", by intervals (CROWN-IBP), which is
            cheaper and looser.
        steps: Gradient steps for optimised slopes; the best bound of all steps counts.
        batch: Examples bounded together. Memory grows with batch * (units of a layer) * (inputs of the network).

    Raises:
        InputError: another norm, an unknown option, a count < 1, or optimised slopes over interval bounds.

    Source: Zhang et al. (2018), CROWN; Weng et al. (2018), Fast-Lin; Zhang et al. (2020), CROWN-IBP; Xu et al. (2021),
        alpha-CROWN; computed by auto_LiRPA, Xu et al. (2020).
    """

    threat: Threat
    slopes: Slopes = "adaptive"
    intermediate: Intermediate = "crown"
    steps: int = 20
    batch: int = 64

    def __post_init__(self) -> None:
        if self.threat.norm not in _ORDER:
            raise InputError(f"need a threat in Linf, L2 or L1; got {self.threat.norm}")
        if self.slopes not in get_args(Slopes):
            raise InputError(f"need slopes among {', '.join(get_args(Slopes))}; got {self.slopes!r}")
        if self.intermediate not in get_args(Intermediate):
            raise InputError(f"need intermediate among {', '.join(get_args(Intermediate))}; got {self.intermediate!r}")
        if self.slopes == "optimized" and self.intermediate == "ibp":
            raise InputError("need intermediate = 'crown' with optimized slopes; got 'ibp'")
        check_count("steps", self.steps)
        check_count("batch", self.batch)

    def __call__(self, model: nn.Module, x: Tensor) -> Certificate:
        """Verify each prediction at the threat's eps.

        Proves: Where the prediction is not ABSTAIN, f predicts it everywhere in the closed ball of radius eps in the
            threat's norm, for Linf as far as the box goes. Deterministic; in float32, up to rounding.

        Args:
            model: A network of layers with a rule, in evaluation mode; a normaliser as `Normalize`, first.
            x: (n, ...) float inputs in the box.

        Returns: Certificate with radius eps where verified, ABSTAIN and 0 elsewhere.

        Raises:
            InputError: training mode, or inputs outside the box.
            UnsupportedModule: a layer has no sound rule.
            ImportError: auto_LiRPA is not installed.
        """
        return certify_predictions(self, model, x, "float32, rounding not accounted for")

    def verified(self, model: nn.Module, x: Tensor, y: Tensor, eps: Tensor | None = None) -> Tensor:
        """Whether every input in the threat around x is classified as y.

        Proves: Where True, so it is, strictly; in float32, up to rounding.

        Args:
            model: As for `__call__`.
            x: (n, ...) inputs.
            y: (n,) classes.
            eps: (n,) radii in place of the threat's.

        Returns: (n,) bool.

        Raises:
            InputError, UnsupportedModule, ImportError: as for `__call__`.
        """
        # NaN > 0 is False: what overflowed is not verified.
        return (self.margins(model, x, y, eps).scatter(1, y[:, None], torch.inf) > 0).all(1)

    def margins(self, model: nn.Module, x: Tensor, y: Tensor, eps: Tensor | None = None) -> Tensor:
        """Bound logit y minus every logit from below.

        Proves: For every input in the threat around x, z_y - z_k is at least entry k; in float32, up to rounding.

        Args:
            model: As for `__call__`.
            x: (n, ...) inputs.
            y: (n,) classes.
            eps: (n,) radii in place of the threat's.

        Returns: (n, classes) float32; 0 at k = y.

        Raises:
            InputError, UnsupportedModule, ImportError: as for `__call__`.
        """
        check_model(model)
        eps = torch.full((len(x),), self.threat.eps, dtype=torch.float64) if eps is None else eps
        with torch.inference_mode(False), torch.set_grad_enabled(self.slopes == "optimized"), _quiet():
            network = _Network(model, x[: self.batch], self)
            parts = [network.margins(x[rows], y[rows], eps[rows]) for rows in torch.arange(len(x)).split(self.batch)]
        return torch.cat(parts)

    def box_bounds(self, model: nn.Module, lower: Tensor, upper: Tensor, rows: Tensor) -> Tensor:
        """Bound linear functions of the logits over boxes from below; of the threat, its norm alone plays a part.

        Proves: For every input in box i, rows @ logits is at least row i of the result; in float32, up to rounding.

        Args:
            model: As for `__call__`.
            lower: (n, ...) ends of the boxes; rounded down to float32.
            upper: Likewise; rounded up.
            rows: (k, classes).

        Returns: (n, k) float32.

        Raises:
            InputError: training mode, or a norm other than Linf.
            UnsupportedModule, ImportError: as for `__call__`.
        """
        check_model(model)
        if self.threat.norm != "Linf":
            raise InputError(f"need a threat in Linf to bound over boxes; got {self.threat.norm}")
        lower, upper = -_up(-lower), _up(upper)
        with torch.inference_mode(False), torch.set_grad_enabled(self.slopes == "optimized"), _quiet():
            network = _Network(model, lower[: self.batch], self)
            ends = zip(lower.split(self.batch), upper.split(self.batch), strict=True)
            parts = [network.over_boxes(low, high, rows) for low, high in ends]
        return torch.cat(parts)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without auto_LiRPA's warnings: of numpy, for 1 / 0 where an L1 norm's dual is meant, and of old torch calls."""
    with warnings.catch_warnings(), np.errstate(divide="ignore"):
        warnings.simplefilter("ignore")
        yield


def _up(eps: Tensor) -> Tensor:
    """The next float32 that is not below: what is verified at it is verified at eps."""
    near = eps.float()
    return torch.where(near < eps, torch.nextafter(near, torch.full_like(near, torch.inf)), near)


class _Network:
    """A network as auto_LiRPA takes it, checked: what `CROWN.margins` shares between batches."""

    def __init__(self, model: nn.Module, example: Tensor, method: CROWN) -> None:
        self.method, self.threat = method, method.threat
        own = copy.deepcopy(model).float().requires_grad_(False)
        # auto_LiRPA takes views that channels-last weights do not have.
        own = own.to(memory_format=torch.contiguous_format)  # pyright: ignore[reportCallIssue]
        self.normalize, rest = _without_normalizer(own)
        self.like = next(iter(rest.parameters()), example.float())
        example = example.to(self.like)
        with torch.no_grad():
            expected = model(example.to(next(iter(model.parameters()), example))).to(self.like)
        check_logits(expected.shape)
        check_channels(self.normalize, example)
        if not bool((self.normalize.std > 0).all()):
            raise UnsupportedModule(f"need std > 0 in Normalize; got {float(self.normalize.std.min()):g}")
        self.classes = expected.shape[1]
        example = self.normalize(example)
        options = {
            "conv_mode": "patches" if _square(rest, example) else "matrix",
            # Slopes are kept for unstable units alone; its other way, where most are unstable, mixes up shapes.
            "minimum_sparsity": 1.0,
            "relu": "same-slope" if method.slopes == "fast_lin" else "adaptive",
            # It prints where it stops early; it never does with patience for all steps.
            "optimize_bound_args": {"iteration": method.steps, "early_stop_patience": method.steps},
        }
        lirpa = auto_lirpa()
        self.Ball, self.Tensor = lirpa.PerturbationLpNorm, lirpa.BoundedTensor
        bounded = self._perturbed(example, example, example, torch.zeros(len(example)).to(example))
        self.bounded = _parse(lirpa, rest, bounded, options)
        with torch.no_grad():
            parsed = self.bounded(example)
        if parsed.shape != expected.shape or not torch.allclose(
            parsed, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max())
        ):
            raise UnsupportedModule("auto_LiRPA parsed another function than the network computes; nothing is proved")
        self.bounded(bounded)  # marks the nodes that depend on the input
        _check_rules(self.bounded, method)
        if self.threat.norm != "Linf":
            _first_layers(self.bounded, self.threat.norm)

    def _perturbed(self, center: Tensor, lower: Tensor, upper: Tensor, eps: Tensor) -> Tensor:
        if self.threat.norm == "Linf":
            return self.Tensor(center, self.Ball(norm=np.inf, x_L=lower, x_U=upper))
        return self.Tensor(center, self.Ball(norm=_ORDER[self.threat.norm], eps=eps[:, None]))

    def margins(self, x: Tensor, y: Tensor, eps: Tensor) -> Tensor:
        """(n, classes) lower bounds on logit y minus logit k."""
        x, y, eps = x.to(self.like), y.to(self.like.device), _up(eps).to(self.like)
        width, box = eps.view(-1, *[1] * (x.ndim - 1)), self.threat.box
        lower, upper = x - width, x + width
        if box is not None:
            lower, upper = lower.clamp_min(box[0]), upper.clamp_max(box[1])
        # Past the normaliser: exact for Linf and equal std, else inside the ball that the smallest std makes.
        ball = self._perturbed(
            self.normalize(x), self.normalize(lower), self.normalize(upper), eps / self.normalize.std.min()
        )
        other = torch.arange(self.classes, device=y.device) != y[:, None]
        identity = torch.eye(self.classes).to(self.like)
        rows = (identity[y][:, None] - identity)[other].view(len(x), self.classes - 1, self.classes)
        found = self._lower(ball, rows)
        result = torch.zeros(len(x), self.classes).to(found)
        result[other] = found.flatten()
        return result

    def over_boxes(self, lower: Tensor, upper: Tensor, rows: Tensor) -> Tensor:
        """(n, k) lower bounds on rows @ logits."""
        low, high = (self.normalize(end.to(self.like)) for end in (lower, upper))
        ball = self._perturbed((low + high) / 2, low, high, torch.zeros(len(low)).to(low))
        return self._lower(ball, rows.to(self.like).expand(len(low), *rows.shape))

    def _lower(self, ball: Tensor, rows: Tensor) -> Tensor:
        return self.bounded.compute_bounds(x=(ball,), C=rows, bound_upper=False, method=self._name())[0].detach()

    def _name(self) -> str:
        if self.method.slopes == "optimized":
            return "CROWN-Optimized"
        return "CROWN" if self.method.intermediate == "crown" else "CROWN-IBP"


def _layers(model: nn.Module) -> Iterator[nn.Module]:
    """The layers in order, nested `nn.Sequential` opened, without those that do nothing in evaluation mode."""
    if type(model) is nn.Sequential:
        for part in model:
            yield from _layers(part)
    elif not isinstance(model, (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.AlphaDropout)):
        yield model


def _without_normalizer(model: nn.Module) -> tuple[Normalize, nn.Module]:
    """The leading normaliser, or one that changes nothing, and the network behind it, in a form that can be traced."""
    layers = list(_layers(model))
    normalize = Normalize([0.0], [1.0]).to(next((p.device for p in model.parameters()), None))
    if layers and type(layers[0]) is Normalize:
        normalize, layers = layers[0], layers[1:]
    rest = nn.Sequential(*layers)
    for module in rest.modules():
        if isinstance(module, nn.Linear) and module.bias is None:
            # Without a bias it is traced as a product of two matrices, which may come with a rule for neither.
            module.bias = nn.Parameter(module.weight.new_zeros(module.out_features), requires_grad=False)
    return _absorb(normalize, layers), rest.eval()


def _square(network: nn.Module, example: Tensor) -> bool:
    """Whether auto_LiRPA's short form of a convolution's coefficients, about ten times as fast, serves throughout."""
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    sizes = [example.shape[2:], *(s for m in convolutions for s in (m.kernel_size, m.stride, m.padding))]
    plain = all(m.groups == 1 and m.dilation == (1, 1) and m.padding_mode == "zeros" for m in convolutions)
    return plain and all(len(s) == 2 and s[0] == s[1] for s in sizes)


def _absorb(normalize: Normalize, layers: list[nn.Module]) -> Normalize:
    """Divide the first layer's weights by std where that is the same, so that the normaliser only shifts the ball."""
    first = next((layer for layer in layers if type(layer) is not nn.Flatten), None)
    channels = len(normalize.std)
    if type(first) is nn.Conv2d and first is layers[0] and first.groups == 1:
        first.weight.div_(normalize.std[:, None, None])
    # Right behind the normaliser a linear layer meets the channels one by one, or along another axis than theirs.
    elif type(first) is nn.Linear and (first is not layers[0] or channels in (1, first.in_features)):
        first.weight.div_(normalize.std.repeat_interleave(first.in_features // channels))
    else:
        return normalize
    return Normalize(normalize.mean.tolist(), [1.0] * channels).to(normalize.std.device)


def _parse(lirpa: Any, network: nn.Module, example: Tensor, options: dict[str, Any]) -> Any:
    """The network as a graph of bounded nodes.

    Raises:
        UnsupportedModule: the graph cannot be made, or depends on the input's values.
    """
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            bounded = lirpa.BoundedModule(network, example, bound_opts=options, device=example.device)
    except (NotImplementedError, AssertionError, AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise UnsupportedModule(
            f"auto_LiRPA has no rule for {_unknown(network, example) or error}; need a network of {', '.join(RULES)}"
        ) from error
    # A branch on values is traced as the way the example took: a proof about another function.
    if branches := [str(w.message) for w in said if issubclass(w.category, TracerWarning)]:
        raise UnsupportedModule(f"need a network whose graph does not depend on values: {branches[0].split('.')[0]}")
    return bounded


def _unknown(network: nn.Module, example: Tensor) -> str:
    """The names of the operations in a network's graph that auto_LiRPA does not know."""
    parse = importlib.import_module("auto_LiRPA.parse_graph").parse_module
    known = {name.removeprefix("Bound") for name in vars(importlib.import_module("auto_LiRPA.bound_ops"))}
    known |= {name.removeprefix("onnx::") for name in importlib.import_module("auto_LiRPA.bound_op_map").bound_op_map}
    names = {node.attr.get("operator", node.op.removeprefix("onnx::")) for node in parse(network, (example,))[0]}
    return ", ".join(sorted(names - known))


def _check_rules(bounded: Any, method: CROWN) -> None:
    """Refuse a graph with a node whose rule is not known to be sound.

    Raises:
        UnsupportedModule: the message names the node and what would do.
    """
    for node in bounded.children():
        name = type(node).__name__.removeprefix("Bound")
        if not node.perturbed:
            continue
        if name not in RULES:
            raise UnsupportedModule(f"no linear bounds for {name}; need a network of {', '.join(RULES)}")
        if not RULES[name](node):
            raise UnsupportedModule(
                f"the linear bounds for {name} are not sound with these parameters; need pooling windows that tile the "
                "input, LeakyReLU slopes in [0, 1], equal dilations, and division by constants"
            )
        if name == "MaxPool" and method.slopes == "optimized":
            raise UnsupportedModule("auto_LiRPA cannot optimise slopes through MaxPool; need slopes = 'adaptive'")
        if name == "AveragePool":
            _make_contiguous(node)


def _make_contiguous(node: Any) -> None:
    """Its backward rule reshapes coefficients in place, which fails on expanded ones."""
    inner = node.bound_backward

    def bound_backward(lower: Tensor | None, upper: Tensor | None, *x: Any) -> Any:
        return inner(*(None if a is None else a.contiguous() for a in (lower, upper)), *x)

    node.bound_backward = bound_backward


def _first_layers(bounded: Any, norm: str) -> None:
    """Make sure that an L1 or L2 ball meets linear layers and convolutions first, and bound the latter ourselves.

    auto_LiRPA takes the interval of such a ball to be its centre alone wherever another node comes first.

    Raises:
        UnsupportedModule: another node comes first.
    """
    names = list(bounded.input_name[:1])
    while names:
        for user in [bounded[name] for name in bounded[names.pop()].output_name]:
            kind = type(user).__name__.removeprefix("Bound")
            if kind in ("Flatten", "Reshape"):
                names.append(user.name)
            elif kind == "Conv":
                user.interval_propagate = _ball_through(user, _DUAL[norm])
            elif kind != "Linear":
                raise UnsupportedModule(
                    f"need a linear layer or a convolution first for an {norm} ball; got {kind} "
                    "(make certify.layers.Normalize the first layer of an nn.Sequential to normalise)"
                )


def _ball_through(conv: Any, dual: float) -> Callable[..., tuple[Tensor, Tensor]]:
    """The interval of a convolution over a ball with a radius per example: the kernel's dual norm, also at borders."""

    def interval_propagate(ball: Any, *parameters: Any, C: None = None) -> tuple[Tensor, Tensor]:
        center = conv.forward(ball[0], *(p[0] for p in parameters))
        norms = parameters[0][0].flatten(1).norm(dual, dim=1)
        width = (ball.ptb.eps * norms)[:, :, None, None]
        return center - width, center + width

    return interval_propagate
