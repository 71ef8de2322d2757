"""Balls and boxes: projection, random starts, and the steepest step in each norm."""

import torch
from torch import Tensor

from analysis.attacks.attacked import norm_of
from certify.errors import InputError
from certify.threat import Norm, Threat

_TINY = 1e-12


def _shape(values: Tensor, like: Tensor) -> Tensor:
    """(n,) values as (n, 1, ...)."""
    return values.to(like.dtype).view(-1, *[1] * (like.ndim - 1))


def unit(v: Tensor, norm: Norm) -> Tensor:
    """(n, ...) scaled to norm 1 each, however small it is; zero stays zero."""
    length = norm_of(v, norm)
    return (v.double() / _shape(torch.where(length > 0, length, 1.0), v.double())).to(v.dtype)


def simplex_projection(flat: Tensor, radius: float | Tensor) -> Tensor:
    """Project rows of absolute values (n, d) onto {v >= 0, sum v <= radius}; radius may be (n, 1).

    Source: Duchi et al. (2008).
    """
    ranked = flat.sort(1, descending=True).values
    excess = ranked.cumsum(1) - radius
    index = torch.arange(1, flat.shape[1] + 1, device=flat.device, dtype=flat.dtype)
    support = (ranked * index > excess).sum(1, keepdim=True).clamp_min(1)
    shift = excess.gather(1, support - 1) / support
    return torch.where(flat.sum(1, keepdim=True) <= radius, flat, (flat - shift).clamp_min(0))


def reach(x: Tensor, threat: Threat) -> tuple[Tensor, Tensor]:
    """The lowest and highest values of each coordinate in the Linf ball around x and the box.

    x - eps and x + eps, rounded towards x, so that no point between them is farther than eps.
    """
    low, high = x - threat.eps, x + threat.eps
    low = torch.where(x - low > threat.eps, torch.nextafter(low, x), low)
    high = torch.where(high - x > threat.eps, torch.nextafter(high, x), high)
    return into_box(low, threat), into_box(high, threat)


def project(z: Tensor, x: Tensor, threat: Threat) -> Tensor:
    """Bring z into the ball around x and into the box.

    For Linf this is the nearest such point. For L2 and L1 the ball comes first and the box after, which only moves
    towards x and so stays in the ball; the point need not be the nearest one.
    """
    if threat.norm == "Linf":
        return z.clamp(*reach(x, threat))
    delta = z - x
    match threat.norm:
        case "L2":
            length = _shape(norm_of(delta, "L2"), delta)
            delta = delta * (threat.eps / length.clamp_min(_TINY)).clamp_max(1.0)
        case "L1":
            flat = delta.flatten(1).double()  # float32 sums of many coordinates would land outside
            delta = (simplex_projection(flat.abs(), threat.eps) * flat.sign()).to(delta.dtype).view_as(delta)
        case _:
            raise InputError(f"no projection onto a ball in {threat.norm}")
    return into_box(x + delta, threat)


def into_box(z: Tensor, threat: Threat) -> Tensor:
    """Clip to the box, if there is one."""
    return z if threat.box is None else z.clamp(*threat.box)


def random_start(x: Tensor, threat: Threat, generator: torch.Generator) -> Tensor:
    """A random point of ball and box: uniform in the cube for Linf, else a random direction and a uniform length."""
    if threat.norm == "Linf":
        delta = torch.empty_like(x).uniform_(-threat.eps, threat.eps, generator=generator)
        return project(x + delta, x, threat)
    delta = torch.empty_like(x).normal_(generator=generator)
    length = torch.rand(x.shape[0], generator=generator, device=x.device)
    delta = delta * _shape(length * threat.eps, x) / _shape(norm_of(delta, threat.norm), x).clamp_min(_TINY)
    return project(x + delta, x, threat)


def steepest(gradient: Tensor, threat: Threat, share: float = 0.01) -> Tensor:
    """The direction of unit norm in which a linear function grows most: sign for Linf, normalised for L2.

    For L1 one coordinate would do, and attacks would crawl: the step is spread over the `share` of coordinates with the
    largest gradient, as sparse attacks do.
    """
    match threat.norm:
        case "Linf":
            return gradient.sign()
        case "L2":
            return unit(gradient, "L2")
        case "L1":
            flat = gradient.flatten(1)
            k = max(1, round(share * flat.shape[1]))
            top = flat.abs().topk(k, dim=1).indices
            step = torch.zeros_like(flat).scatter(1, top, flat.gather(1, top).sign() / k)
            return step.view_as(gradient)
        case _:
            raise InputError(f"no steepest step in {threat.norm}")
