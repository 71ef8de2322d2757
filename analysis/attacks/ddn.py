"""DDN: the direction by gradient descent, the norm by a walk across the boundary."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor, nn

from analysis.attacks.attacked import Attacked, Queries, norm_of
from analysis.attacks.geometry import into_box
from analysis.attacks.losses import LossName, log_odds, loss_named
from certify.errors import InputError
from certify.rng import Stream
from certify.threat import Threat
from certify.voting import label_streams


@dataclass(frozen=True, slots=True)
class DDN:
    """Decoupled direction and norm: a minimal-norm L2 attack.

    A perturbation follows the normalised gradient and is rescaled to a norm that shrinks by a factor 1 - gamma after a
    misclassified point and grows by 1 + gamma after a correct one. The nearest success counts, and only within the
    threat; the walk itself ignores eps.

    Args:
        steps: Gradients per example; >= 1.
        gamma: Relative change of the norm per step; 0 < gamma < 1.
        initial_norm: First norm tried, in input units; > 0.
        levels: Round perturbed inputs to this many values in the box; >= 2, or None for no rounding.
        loss: What the direction increases: "cross_entropy" (the paper's), "margin" or "dlr".

    Raises:
        InputError: a field is out of range.

    Source: Rony et al. (2019), "Decoupling Direction and Norm for Efficient Gradient-Based L2 Adversarial Attacks and
        Defenses", algorithm 1.
    """

    steps: int = 100
    gamma: float = 0.05
    initial_norm: float = 1.0
    levels: int | None = None
    loss: LossName = "cross_entropy"

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise InputError(f"need steps >= 1; got {self.steps}")
        if not 0 < self.gamma < 1:
            raise InputError(f"need 0 < gamma < 1; got {self.gamma!r}")
        if not (math.isfinite(self.initial_norm) and self.initial_norm > 0):
            raise InputError(f"need a finite initial_norm > 0; got {self.initial_norm!r}")
        if self.levels is not None and self.levels < 2:
            raise InputError(f"need levels >= 2, or None; got {self.levels}")
        if self.loss not in get_args(LossName):
            raise InputError(f"need a loss among {', '.join(get_args(LossName))}; got {self.loss!r}")

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, *, threat: Threat, rng: Stream | Sequence[Stream]
    ) -> Attacked:
        """Look for the nearest misclassified input.

        Args:
            model: (n, ...) -> (n, classes) logits, in evaluation mode.
            x: (n, ...) inputs, in the box if there is one.
            y: (n,) labels.
            threat: L2.
            rng: One stream, or one per example; read only where a gradient is exactly zero.

        Returns: The nearest success of each example. 1 + steps forwards and `steps` backwards per example that is
            classified correctly, 1 forward for the others.

        Raises:
            InputError: another norm, rounding without a box, or what `Queries` refuses.
        """
        if threat.norm != "L2":
            raise InputError(f"need an L2 threat for DDN; got {threat.norm}")
        if self.levels is not None and threat.box is None:
            raise InputError(f"need a box to round inputs to {self.levels} levels; got None")
        # Departs from paper: only the direction of the gradient is used; that of the log-odds is the same as of the
        # cross-entropy, and stays where the probability of the label rounds to 1.
        unsaturated = self.loss == "cross_entropy"
        objective = (lambda logits, labels: -log_odds(logits, labels)) if unsaturated else loss_named(self.loss)
        queries = Queries(model, x, y, threat)
        generators = [s.child("ddn").generator() for s in label_streams(rng, x.shape[0])]
        with torch.no_grad():
            clean = queries.logits(queries.x)
        live = (clean.argmax(1) == y).nonzero()[:, 0]
        trace = torch.full((x.shape[0], self.steps), torch.nan)
        if not len(live):
            return queries.result(self, trace)
        origin = queries.x[live].flatten(1)
        z, delta = origin, torch.zeros_like(origin)
        norm = torch.full((len(live), 1), self.initial_norm, dtype=origin.dtype, device=origin.device)
        for step in range(self.steps):
            gradient, value, logits = queries.gradient(z.view(-1, *x.shape[1:]), objective, live)
            trace[live.cpu(), step] = value.float().cpu()
            gradient = gradient.flatten(1)
            for row in (norm_of(gradient, "L2") == 0).nonzero()[:, 0].tolist():
                noise = torch.randn(gradient.shape[1], generator=generators[int(live[row])], dtype=gradient.dtype)
                gradient[row] = noise.to(gradient)
            rate = 0.01 + 0.99 * (1 + math.cos(math.pi * step / self.steps)) / 2
            delta = delta + rate * gradient / norm_of(gradient, "L2")[:, None].to(gradient)
            wrong = logits.argmax(1) != y[live]
            norm = torch.where(wrong[:, None], norm * (1 - self.gamma), norm * (1 + self.gamma))
            length = norm_of(delta, "L2").clamp_min(1e-12)[:, None].to(delta)
            z = self._rounded(into_box(origin + norm * delta / length, threat), threat)
            delta = z - origin
        return queries.result(self, trace)

    def _rounded(self, z: Tensor, threat: Threat) -> Tensor:
        if self.levels is None or threat.box is None:
            return z
        low, high = threat.box
        unit = (high - low) / (self.levels - 1)
        return into_box(low + ((z - low) / unit).round() * unit, threat)
