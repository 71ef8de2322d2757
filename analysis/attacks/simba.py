"""SimBA: try one basis vector after another, and keep what makes the label less likely."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from analysis.attacks.attacked import Attacked, Queries
from analysis.attacks.geometry import project
from analysis.attacks.losses import log_odds
from certify.errors import InputError
from certify.rng import Stream
from certify.threat import Threat
from certify.voting import label_streams

Basis = Literal["pixel", "dct"]


def _cosines(size: int) -> Tensor:
    """(size, size) float64, row k the k-th orthonormal cosine (DCT-II)."""
    k, t = torch.arange(size, dtype=torch.float64)[:, None], torch.arange(size, dtype=torch.float64)[None]
    rows = torch.cos(math.pi * (t + 0.5) * k / size) * math.sqrt(2 / size)
    rows[0] /= math.sqrt(2)
    return rows


def _kept(shape: tuple[int, ...], share: float) -> tuple[int, int, int]:
    """Planes of an input (channels), and frequencies kept along the last two dimensions, at least one each."""
    height, width = (1, *shape)[-2:]
    return math.prod(shape) // (height * width), max(1, round(share * height)), max(1, round(share * width))


def pixel_basis(index: Tensor, shape: tuple[int, ...]) -> Tensor:
    """(k, *shape) float64, the coordinate vectors of these indices."""
    return torch.nn.functional.one_hot(index, math.prod(shape)).double().view(-1, *shape)


def dct_basis(index: Tensor, shape: tuple[int, ...], share: float) -> Tensor:
    """(k, *shape) float64, orthonormal cosines over the last two dimensions of one plane, by plane, row and column."""
    planes, rows, columns = _kept(shape, share)
    height, width = (1, *shape)[-2:]
    plane, frequency = index // (rows * columns), index % (rows * columns)
    vertical, horizontal = _cosines(height)[frequency // columns], _cosines(width)[frequency % columns]
    out = torch.zeros(len(index), planes, height, width, dtype=torch.float64)
    out[torch.arange(len(index)), plane] = vertical[:, :, None] * horizontal[:, None, :]
    return out.view(-1, *shape)


@dataclass(frozen=True, slots=True)
class SimBA:
    """Simple black-box attack: reads scores, no gradients, and stops at the first success.

    Each step draws a basis vector without replacement (a new permutation once all are used), and moves by +step_size
    along it, or else by -step_size, if that lowers the probability of the label.

    Args:
        steps: Most basis vectors tried per example; >= 1.
        step_size: Length of a move, in input units; > 0.
        basis: "pixel", single coordinates; "dct", cosines over the last two dimensions, channel by channel.
        share: For "dct", the lowest share of the frequencies along each side that is tried; 0 < share <= 1.

    Raises:
        InputError: a field is out of range.

    Source: Guo et al. (2019), "Simple Black-box Adversarial Attacks", algorithm 1.
    """

    steps: int = 1000
    step_size: float = 0.2
    basis: Basis = "pixel"
    share: float = 1.0

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise InputError(f"need steps >= 1; got {self.steps}")
        if not (math.isfinite(self.step_size) and self.step_size > 0):
            raise InputError(f"need a finite step_size > 0; got {self.step_size!r}")
        if self.basis not in get_args(Basis):
            raise InputError(f"need a basis among {', '.join(get_args(Basis))}; got {self.basis!r}")
        if not 0 < self.share <= 1:
            raise InputError(f"need 0 < share <= 1; got {self.share!r}")

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, *, threat: Threat, rng: Stream | Sequence[Stream]
    ) -> Attacked:
        """Look for a misclassified input within the threat.

        Args:
            model: (n, ...) -> (n, classes) logits, in evaluation mode.
            x: (n, ...) inputs, in the box if there is one.
            y: (n,) labels.
            threat: L2 or Linf.
            rng: One stream, or one per example: the order of the basis vectors.

        Returns: The first success of each example; `loss` holds minus the log-odds of the label after each step. 1
            forward, then 1 per step whose first move is kept or succeeds and 2 per other step.

        Raises:
            InputError: another norm, or what `Queries` refuses.
        """
        if threat.norm not in ("L2", "Linf"):
            raise InputError(f"need an L2 or Linf threat for SimBA; got {threat.norm}")
        queries = Queries(model, x, y, threat)
        streams = [s.child("simba") for s in label_streams(rng, x.shape[0])]
        shape = tuple(x.shape[1:])
        count = math.prod(shape if self.basis == "pixel" else _kept(shape, self.share))
        trace = torch.full((x.shape[0], self.steps), torch.nan)
        with torch.no_grad():
            odds = log_odds(queries.logits(queries.x), y)
            z = queries.x.clone()
            order = torch.empty(0)
            for step in range(self.steps):
                live = (~queries.success).nonzero()[:, 0].to(x.device)
                if not len(live):
                    break
                turn = step % count
                if turn == 0:
                    generators = [s.child(step).generator() for s in streams]
                    order = torch.stack([torch.randperm(count, generator=g) for g in generators])
                index = order[live.cpu(), turn]
                basis = pixel_basis(index, shape) if self.basis == "pixel" else dct_basis(index, shape, self.share)
                move = (self.step_size * basis).to(x)
                kept = self._try(queries, z, odds, live, move)
                rest = ~kept & ~queries.success.to(x.device)[live]
                if bool(rest.any()):
                    self._try(queries, z, odds, live[rest], -move[rest])
                trace[live.cpu(), step] = -odds[live].float().cpu()
        return queries.result(self, trace)

    # Departs from paper: the moved point is projected into ball and box before it is judged; the paper bounds the
    # norm only through the number of steps.
    @staticmethod
    def _try(queries: Queries, z: Tensor, odds: Tensor, live: Tensor, move: Tensor) -> Tensor:
        """Move the live rows of z where that lowers the log-odds; (live,) whether it did."""
        moved = project(z[live] + move, queries.x[live], queries.threat)
        after = log_odds(queries.logits(moved, live), queries.y[live])
        lower = after < odds[live]
        z[live[lower]], odds[live[lower]] = moved[lower], after[lower]
        return lower
