"""Random perturbations: what an attack with gradients must beat."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from analysis.attacks.attacked import Attacked, Queries
from analysis.attacks.geometry import project, unit
from analysis.attacks.pgd import look, remaining
from certify.errors import InputError, check_count
from certify.noise import symmetric_uniform
from certify.rng import Stream
from certify.threat import Threat


@dataclass(frozen=True, slots=True)
class RandomNoise:
    """Many points, uniform in the ball, then brought into the box; the nearest misclassified one counts.

    Args:
        draws: Points per example.
        corners: Draw corners of the cube instead; Linf only.
        chunk: Points per forward pass, and per stream: a change moves the points.

    Raises:
        InputError: a count is not positive.

    Source: Carlini et al. (2019), "On evaluating adversarial robustness": random noise as a check on gradients.
    """

    draws: int = 1000
    corners: bool = False
    chunk: int = 256

    def __post_init__(self) -> None:
        check_count("draws", self.draws)
        check_count("chunk", self.chunk)

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, *, threat: Threat, rng: Stream) -> Attacked:
        """Look for misclassified inputs within the threat.

        Args:
            model: (n, ...) -> (n, classes) logits, in evaluation mode.
            x: (n, ...) inputs in the box.
            y: (n,) labels.
            threat: An Linf, L2 or L1 ball.
            rng: The points of example i come from its children (i, first point of the chunk).

        Returns: Attacked, without a loss. Every example costs 1 + draws forward passes, or 1 if it is misclassified as
            it is.

        Raises:
            InputError: training mode, inputs that do not fit, or corners of a ball that has none.
        """
        if self.corners and threat.norm != "Linf":
            raise InputError(f"need an Linf threat for corners; got {threat.norm}")
        queries = Queries(model, x, y, threat)
        look(queries)
        for i in remaining(queries, early_stop=True).tolist():
            for first in range(0, self.draws, self.chunk):
                size = min(self.chunk, self.draws - first)
                around = queries.x[i : i + 1].expand(size, *x.shape[1:])
                generator = rng.child(i, first).generator(x.device)
                delta = uniform_in_ball(around, threat, generator)
                if self.corners:
                    delta = threat.eps * torch.where(delta < 0, -1.0, 1.0).to(x.dtype)
                with torch.no_grad():
                    queries.logits(
                        project(around + delta, around, threat), torch.full((size,), i, device=queries.x.device)
                    )
        return queries.result(self)


def uniform_in_ball(like: Tensor, threat: Threat, generator: torch.Generator) -> Tensor:
    """(n, ...) points uniform in the ball around 0.

    Raises:
        InputError: the norm is not Linf, L2 or L1.
    """
    uniform = symmetric_uniform(torch.empty_like(like, memory_format=torch.contiguous_format), generator)
    n, d = uniform.flatten(1).shape
    match threat.norm:
        case "Linf":
            return threat.eps * uniform
        case "L2":
            direction = torch.empty_like(uniform).normal_(generator=generator)
        case "L1":
            # On the sphere: independent Laplace variables, finite as |uniform| < 1, over their sum of absolute values.
            direction = -torch.log1p(-uniform.abs()) * uniform.sign()
        case _:
            raise InputError(f"need an Linf, L2 or L1 threat; got {threat.norm}")
    length = torch.rand(n, generator=generator, device=like.device).double() ** (1 / d)
    return threat.eps * unit(direction, threat.norm) * length.to(like.dtype).view(-1, *[1] * (like.ndim - 1))
