"""FMN: the nearest misclassified input.

Source: Pintor et al. (2021), "Fast minimum-norm adversarial attacks through adaptive norm constraints".
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from analysis.attacks.attacked import Attacked, Queries, norm_of
from analysis.attacks.geometry import into_box, simplex_projection, unit
from analysis.attacks.losses import margin
from certify.errors import InputError, check_count
from certify.rng import Stream
from certify.threat import Norm, Threat

_DUAL: dict[str, Norm] = {"Linf": "L1", "L2": "L2", "L1": "Linf"}
_TINY = 1e-12


def _onto_ball(delta: Tensor, radius: Tensor, norm: Norm) -> Tensor:
    """Project flat perturbations (n, d) onto balls of their own radii (n, 1)."""
    match norm:
        case "Linf":
            return delta.clamp(-radius, radius)
        case "L2":
            return delta * (radius / delta.norm(dim=1, keepdim=True).clamp_min(_TINY)).clamp_max(1.0)
        case _:
            return simplex_projection(delta.abs(), radius) * delta.sign()


@dataclass(frozen=True, slots=True)
class FMN:
    """Gradient steps inside a ball that shrinks where the point is misclassified and grows where it is not.

    `threat.eps` caps the ball: it may be large, and only what lies within it counts. Deterministic: the stream is not
    used. What is kept is the nearest counterexample of the whole path.

    Args:
        steps: Gradients per example; >= 1.
        step_size: Length (L2) of the first step in input units, annealed along a cosine to a hundredth; > 0.
        shrink: Relative change of the radius per step at first, annealed along a cosine to `final_shrink`; 0 < shrink
            < 1.
        final_shrink: The last one; 0 < final_shrink <= shrink.

    Raises:
        InputError: a field is out of its range.

    Source: Pintor et al. (2021), Algorithm 1.
    """

    steps: int = 200
    step_size: float = 1.0
    shrink: float = 0.05
    final_shrink: float = 0.001

    def __post_init__(self) -> None:
        check_count("steps", self.steps)
        if not 0 < self.step_size < math.inf:
            raise InputError(f"need a finite step_size > 0; got {self.step_size!r}")
        if not 0 < self.final_shrink <= self.shrink < 1:
            raise InputError(f"need 0 < final_shrink <= shrink < 1; got {self.final_shrink!r}, {self.shrink!r}")

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, *, threat: Threat, rng: Stream) -> Attacked:
        """Look for the nearest misclassified inputs within the threat.

        Args:
            model: (n, ...) -> (n, classes) logits, in evaluation mode.
            x: (n, ...) inputs.
            y: (n,) labels.
            threat: In Linf, L2 or L1; eps caps the distance.
            rng: Not used.

        Returns: What was found; `loss` is the margin at each step's starting point.

        Raises:
            InputError: another norm, a model in training mode, or shapes that do not fit.
        """
        del rng
        if threat.norm not in _DUAL:
            raise InputError(f"need a threat in Linf, L2 or L1 for FMN; got {threat.norm}")
        queries = Queries(model, x, y, threat)
        trace = torch.full((len(x), self.steps), torch.nan, device=x.device)
        live, z = torch.arange(len(x), device=x.device), queries.x
        radius, crossed = torch.zeros(len(x), 1), torch.zeros(len(x), 1, dtype=torch.bool)
        tiny = torch.finfo(x.dtype).eps
        for i in range(self.steps):
            gradient, value, logits = queries.gradient(z, margin, live)
            trace[live, i] = value.float()
            wrong = logits.argmax(1) != queries.y[live]
            if i == 0:  # What is misclassified as it is needs no search.
                live, z, gradient, value, wrong = (t[~wrong] for t in (live, z, gradient, value, wrong))
                radius = torch.zeros(len(live), 1, dtype=x.dtype, device=x.device)
                crossed = torch.zeros_like(radius, dtype=torch.bool)
            if not len(live):
                break
            x_live = queries.x[live]
            slope, delta = gradient.flatten(1), (z - x_live).flatten(1)
            cosine = (1 + math.cos(math.pi * i / self.steps)) / 2
            step = self.step_size * (0.01 + 0.99 * cosine)
            shrink = self.final_shrink + (self.shrink - self.final_shrink) * cosine
            # The radius: where the boundary of a linear model would be, until it was crossed once.
            wrong, crossed = wrong[:, None], crossed | wrong[:, None]
            best = queries.distance[live.cpu()].to(radius)[:, None]
            away = value.abs() / norm_of(slope, _DUAL[threat.norm]).clamp_min(_TINY).to(value.dtype)
            # Departs from paper: a little beyond, or rounding could leave the point just short of it for ever.
            linear = (norm_of(delta, threat.norm).to(radius)[:, None] + away[:, None]).clamp_min(tiny) * (1 + shrink)
            inwards, outwards = torch.minimum(radius * (1 - shrink), best), radius * (1 + shrink)
            radius = torch.where(wrong, inwards, torch.where(crossed, outwards, linear)).clamp_max(threat.eps)
            # The step: along the gradient, onto the ball, into the box.
            delta = delta + step * unit(slope, "L2")
            z = into_box(x_live + _onto_ball(delta, radius, threat.norm).view_as(x_live), threat)
        if len(live):
            with torch.no_grad():
                queries.logits(z, live)
        return queries.result(self, trace)
