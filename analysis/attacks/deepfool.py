"""DeepFool: step to the nearest boundary of the linearised classifier, again and again; and its differentiable form."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from analysis.attacks.attacked import Attacked, Queries
from analysis.attacks.geometry import into_box
from certify.errors import InputError
from certify.rng import Stream
from certify.threat import Threat
from certify.voting import check_model

# Added to a gap between logits, so that a point on the boundary still moves, and to squared slopes, which may vanish.
_GUARD = 1e-6
_TINY = 1e-12
# Class gradients held at once: ten classes need one pass, and a thousand do not fill the memory.
_AT_ONCE = 16

DualNorm = Literal["L2", "Linf"]


def _check(steps: int, overshoot: float, candidates: int | None) -> None:
    if steps < 1:
        raise InputError(f"need steps >= 1; got {steps}")
    if not (math.isfinite(overshoot) and overshoot >= 0):
        raise InputError(f"need a finite overshoot >= 0; got {overshoot!r}")
    if candidates is not None and candidates < 2:
        raise InputError(f"need candidates >= 2, the label among them, or None; got {candidates}")


def _dual(slope: Tensor, norm: DualNorm) -> Tensor:
    """(n,) dual norms of flat slopes: a gap of g is closed at distance g / dual norm."""
    return slope.abs().sum(1) if norm == "Linf" else slope.norm(dim=1)


def _length(delta: Tensor, norm: DualNorm) -> Tensor:
    """(n,) norms of flat perturbations."""
    return delta.abs().amax(1) if norm == "Linf" else delta.norm(dim=1)


def _to_boundary(gap: Tensor, slope: Tensor, norm: DualNorm) -> Tensor:
    """(n, d) smallest steps along which linear functions of these slopes gain `gap`; differentiable even at slope 0."""
    gap = gap[:, None].abs() + _GUARD
    if norm == "Linf":
        return gap * slope.sign() / (slope.abs().sum(1, keepdim=True) + _TINY)
    return gap * slope / (slope.square().sum(1, keepdim=True) + _TINY)


def _nearest(logits: Tensor, z: Tensor, label: Tensor, others: Tensor, norm: DualNorm) -> tuple[Tensor, Tensor, Tensor]:
    """The class whose linearised boundary with the label is nearest.

    Args:
        logits: (n, classes), a function of z; its graph is kept.
        z: (n, ...).
        label: (n,) the class to leave.
        others: (n, k) classes to consider.
        norm: Of the distance.

    Returns: class (n,), gap (n,) and slope (n, d) of class minus label there, all detached.
    """
    rows = torch.arange(len(z), device=z.device)
    rises = logits.gather(1, others) - logits.gather(1, label[:, None])
    shortest = torch.full_like(rises[:, 0].detach(), torch.inf)
    nearest, gap = others[:, 0].clone(), torch.zeros_like(shortest)
    slope = torch.zeros_like(z.detach().flatten(1))
    # All slopes by one batched backward pass, a few classes at a time where there are many.
    for first in range(0, others.shape[1], _AT_ONCE):
        rise, classes = rises[:, first : first + _AT_ONCE], others[:, first : first + _AT_ONCE]
        k = rise.shape[1]
        each = torch.eye(k, dtype=rise.dtype, device=rise.device)[:, None].expand(k, len(z), k)
        (slopes,) = torch.autograd.grad(rise, z, each, retain_graph=True, is_grads_batched=True)
        slopes, rise = slopes.flatten(2), rise.detach()
        length = _dual(slopes.flatten(0, 1), norm).view(k, -1).T
        distance, best = torch.where(length > 0, rise.abs() / length, torch.inf).min(1)
        closer = distance < shortest
        shortest = torch.where(closer, distance, shortest)
        nearest = torch.where(closer, classes[rows, best], nearest)
        gap = torch.where(closer, rise[rows, best], gap)
        slope = torch.where(closer[:, None], slopes[best, rows], slope)
    return nearest, gap, slope


def _others(logits: Tensor, label: Tensor, candidates: int | None) -> Tensor:
    """(n, k) the classes other than the label, by descending logit; k = candidates - 1, or all of them."""
    if logits.shape[1] < 2:
        raise InputError(f"need at least 2 classes; got {logits.shape[1]}")
    count = logits.shape[1] - 1 if candidates is None else min(candidates, logits.shape[1]) - 1
    return logits.detach().scatter(1, label[:, None], -torch.inf).topk(count, dim=1).indices


@dataclass(frozen=True, slots=True)
class DeepFool:
    """DeepFool in L2 or Linf: linearise the classifier, step to the nearest boundary, repeat until it errs.

    A weak attack on networks that resist linearisation: report it with DDN beside it. The walk ignores eps; only a
    success within the threat counts.

    Args:
        steps: Most linearisations per example; >= 1.
        overshoot: The perturbation is lengthened by this share so as to cross the boundary; >= 0.
        candidates: Consider the classes with the largest logits at x, this many with the label; >= 2, None for all.

    Raises:
        InputError: a field is out of range.

    Source: Moosavi-Dezfooli et al. (2016), "DeepFool", algorithm 2 and its Linf form; like the authors' code it
        linearises at the lengthened perturbation.
    """

    steps: int = 50
    overshoot: float = 0.02
    candidates: int | None = 10

    def __post_init__(self) -> None:
        _check(self.steps, self.overshoot, self.candidates)

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, *, threat: Threat, rng: Stream | Sequence[Stream] | None = None
    ) -> Attacked:
        """Look for a near misclassified input.

        Args:
            model: (n, ...) -> (n, classes) logits, in evaluation mode.
            x: (n, ...) inputs, in the box if there is one.
            y: (n,) labels.
            threat: L2 or Linf.
            rng: Not read: the attack draws nothing.

        Returns: The success of each example. An example classified correctly that took t linearisations costs 1 + t
            forwards and t (candidates - 1) backwards; it then leaves the batch. The others cost 1 forward.

        Raises:
            InputError: another norm, or what `Queries` refuses.
        """
        norm = threat.norm
        if norm not in ("L2", "Linf"):
            raise InputError(f"need an L2 or Linf threat for DeepFool; got {norm}")
        queries = Queries(model, x, y, threat)
        live = torch.arange(x.shape[0], device=x.device)
        total = torch.zeros_like(queries.x.flatten(1))
        z, others = queries.x, torch.empty(0)
        for step in range(self.steps + 1):
            with torch.enable_grad():
                z = z.detach().requires_grad_()
                logits = queries.logits(z, live)
                if step == 0:
                    others = _others(logits, y, self.candidates)
                right = (logits.argmax(1) == y[live]).nonzero()[:, 0]
                if step == self.steps or not len(right):
                    break
                _, gap, slope = _nearest(logits, z, y[live], others[live], norm)
            live, gap, slope = live[right], gap[right], slope[right]
            queries.backwards[live.cpu()] += others.shape[1]
            total[live] += _to_boundary(gap, slope, norm)
            origin = queries.x[live]
            z = into_box(origin + (1 + self.overshoot) * total[live].view_as(origin), threat)
            if threat.box is not None:
                total[live] = (z - origin).flatten(1) / (1 + self.overshoot)
        return queries.result(self)


@dataclass(frozen=True, slots=True, eq=False)
class Walk:
    """Where the differentiable DeepFool led each example.

    Attributes:
        perturbation: (n, ...) lengthened by the overshoot, attached to the parameters. An example that is still not
            across after the last linearisation keeps its partial perturbation.
        iterations: (n,) int64 linearisations per example.
        target: (n,) int64 the class that the last of them moved towards.
        across: (n,) bool, whether the class to leave was left, or the class to reach was reached.
        lost: (n,) bool, whether a step would have led beyond `farthest`; that step is not taken, and the walk ends.
    """

    perturbation: Tensor
    iterations: Tensor
    target: Tensor
    across: Tensor
    lost: Tensor


def deepfool_walk(
    model: nn.Module,
    x: Tensor,
    logits: Tensor,
    label: Tensor,
    away: Tensor,
    *,
    steps: int = 5,
    overshoot: float = 0.02,
    candidates: int | None = None,
    norm: DualNorm = "L2",
    farthest: Tensor | None = None,
) -> Walk:
    """The DeepFool recursion x_(t+1) = x_t + r_t as a differentiable function of the model's parameters.

    An example goes `away` from its label to the nearest other class, chosen anew at every point, or to its label from
    the class, among the others, that is predicted at that point. The choices and the moment of stopping are constants;
    the recursion is differentiated whole. An example that is across leaves the batch. With t linearisations it costs t
    forwards behind the one that the caller made, t batches of class gradients if it goes away, and t backwards that
    are differentiated.

    Args:
        model: (n, ...) -> (n, classes) logits, in evaluation mode; its own gradients are left alone.
        x: (n, ...) inputs that require a gradient.
        logits: (n, classes) model(x), with its graph.
        label: (n,) the class to leave or to reach.
        away: (n,) bool.
        steps: Most linearisations per example; >= 1.
        overshoot: Stop once x plus the perturbation, lengthened by this share, has changed sides; >= 0.
        candidates: Consider this many classes, the label among them, by logit at x; >= 2, None for all.
        norm: "L2" or "Linf".
        farthest: (n,) longest perturbation, in `norm`, before it is lengthened; None for no bound.

    Raises:
        InputError: an argument is out of range, or a model in training mode.

    Source: Yan, Guo & Zhang (2018), "Deep Defense", section 3.2; linearised, as there, at x plus the perturbation
        without overshoot.
    """
    _check(steps, overshoot, candidates)
    if norm not in ("L2", "Linf"):
        raise InputError(f"need norm L2 or Linf; got {norm!r}")
    check_model(model)
    others = _others(logits, label, candidates)
    iterations = torch.zeros(x.shape[0], dtype=torch.int64, device=x.device)
    target = label.clone()
    across, lost = torch.zeros_like(away), torch.zeros_like(away)
    live = torch.arange(x.shape[0], device=x.device)
    origin, total = x.detach(), torch.zeros_like(x.detach().flatten(1))
    z = x
    for step in range(steps):
        if step:
            z = origin[live] + total[live].view_as(origin[live])
            logits = model(z)
        gap, slope, target[live] = _rise(logits, z, label[live], others[live], away[live], norm)
        iterations[live] += 1
        stride = _to_boundary(gap, slope, norm)
        if farthest is not None:
            # A step of more than twice the bound leaves it from anywhere inside; this one is free of the guards.
            wanted = (gap.abs() / _dual(slope, norm)).detach()
            within = (wanted <= 2 * farthest[live]) & (_length((total[live] + stride).detach(), norm) <= farthest[live])
            lost[live[~within]] = True
            live, stride = live[within], stride[within]
        total = total.index_add(0, live, stride)
        if len(live):
            with torch.no_grad():
                moved = origin[live] + (1 + overshoot) * total[live].view_as(origin[live])
                over = (model(moved).argmax(1) == label[live]) != away[live]
            across[live[over]] = True
            live = live[~over]
        if not len(live):
            break
    return Walk(((1 + overshoot) * total).view_as(x), iterations, target, across, lost)


def _rise(
    logits: Tensor, z: Tensor, label: Tensor, others: Tensor, away: Tensor, norm: DualNorm
) -> tuple[Tensor, Tensor, Tensor]:
    """How the class to go to rises over the class to leave: gap (n,) and slope (n, d) with their graphs, class (n,).

    Gap and slope speak of the same two classes: those of this very point.
    """
    rival = logits.detach().scatter(1, label[:, None], -torch.inf).argmax(1)
    rows = away.nonzero()[:, 0]
    if len(rows):
        rival[rows] = _nearest(logits, z, label, others, norm)[0][rows]
    own, other = torch.where(away, label, rival), torch.where(away, rival, label)
    gap = logits.gather(1, other[:, None])[:, 0] - logits.gather(1, own[:, None])[:, 0]
    (slope,) = torch.autograd.grad(gap.sum(), z, create_graph=True)
    return gap, slope.flatten(1), other


def deepfool_perturbation(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    steps: int = 5,
    overshoot: float = 0.02,
    candidates: int | None = None,
    norm: DualNorm = "L2",
) -> tuple[Tensor, Tensor]:
    """The DeepFool perturbation as a differentiable function of the model's parameters, for Deep Defense.

    An example that the model classifies correctly at x is moved from its label to the nearest other class; one that it
    misclassifies is moved to its label. `deepfool_walk` says how.

    Departs from the official code: gap and slope always speak of the same two classes, where it keeps the first
    prediction in the gap and takes the current one in the slope; each example stops by itself; and the guard against
    vanishing slopes is 1e-12 in the square, where it adds 5e-6 or 1e-5 to the norm.

    Args:
        model: (n, ...) -> (n, classes) logits, in evaluation mode; its own gradients are left alone.
        x: (n, ...) inputs.
        y: (n,) labels.
        steps: Most linearisations per example; >= 1.
        overshoot: Stop once x plus the perturbation, lengthened by this share, has changed sides; >= 0.
        candidates: Consider this many classes, the label among them, by logit at x; >= 2, None for all.
        norm: "L2" or "Linf".

    Returns: `perturbation` and `iterations` of the `Walk`.

    Raises:
        InputError: an argument is out of range, or a model in training mode.

    Source: Yan, Guo & Zhang (2018), "Deep Defense", section 3.2.
    """
    with torch.enable_grad():
        start = x.detach().requires_grad_()
        logits = model(start)
        walk = deepfool_walk(
            model,
            start,
            logits,
            y,
            logits.argmax(1) == y,
            steps=steps,
            overshoot=overshoot,
            candidates=candidates,
            norm=norm,
        )
    return walk.perturbation, walk.iterations
