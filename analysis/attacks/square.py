"""Square attack: random search with square patches, no gradients.

Source: Andriushchenko et al. (2020), "Square Attack: a query-efficient black-box adversarial attack via random search".
"""

import math
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn

from analysis.attacks.attacked import Attacked, Queries
from analysis.attacks.geometry import into_box, reach
from analysis.attacks.losses import margin
from certify.errors import InputError, check_count
from certify.rng import Stream
from certify.threat import Threat

# Of 10,000 iterations, those after which the share of pixels that a patch covers halves.
_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
# Random numbers are drawn for this many iterations at a time.
_BLOCK = 64
_TINY = 1e-12


def share_of_pixels(iteration: int, queries: int, p: float) -> float:
    """The share of pixels that a patch covers at an iteration, the schedule being stretched to the budget.

    Args:
        iteration: From 0.
        queries: The budget.
        p: The first share.
    """
    scaled = int(iteration / queries * 10_000)
    return p / 2 ** sum(scaled > mark for mark in _HALVINGS)


def _pyramid(height: int, width: int) -> Tensor:
    """A bump: concentric rectangles from the middle outwards, the k-th adding 1 / k^2."""
    bump = torch.zeros(height, width)
    row, column = height // 2, width // 2
    for k in range(max(height, width) // 2 + 1):
        bump[max(row - k, 0) : row + k + 1, max(column - k, 0) : column + k + 1] += 1 / (k + 1) ** 2
    return bump


@cache
def _pattern(side: int) -> Tensor:
    """The patch of the L2 attack: a bump up beside a bump down, of unit norm. Section 4.2 of the paper."""
    up, down = _pyramid(side // 2, side), _pyramid(side - side // 2, side)
    pattern = torch.cat([up / up.norm().clamp_min(_TINY), -down / down.norm()])
    return pattern / pattern.norm()


class _Tape:
    """Uniform numbers for each iteration, from one generator per example, so that no example sees the others."""

    def __init__(self, count: int, width: int, rng: Stream, device: torch.device) -> None:
        self.generators = [rng.child(i).generator(device) for i in range(count)]
        self.width, self.device = width, device
        self.block = torch.empty(count, 0, width, device=device)

    def start(self, width: int, live: Tensor) -> Tensor:
        """(live, width) numbers for the starting point."""
        return torch.stack([self._draw(i, width) for i in live.tolist()])

    def at(self, iteration: int, live: Tensor) -> Tensor:
        """(live, width) numbers for an iteration; iterations come in order, and only those live are served."""
        if iteration % _BLOCK == 0:
            self.block = torch.zeros(len(self.generators), _BLOCK, self.width, device=self.device)
            for i in live.tolist():
                self.block[i] = self._draw(i, _BLOCK * self.width).view(_BLOCK, self.width)
        return self.block[live, iteration % _BLOCK]

    def _draw(self, i: int, count: int) -> Tensor:
        return torch.rand(count, generator=self.generators[i], device=self.device)


def _signs(uniform: Tensor) -> Tensor:
    return torch.where(uniform < 0.5, -1.0, 1.0)


def _corner(uniform: Tensor, places: int) -> Tensor:
    # Departs from the authors' code, which never uses the last row and column of places.
    return (uniform * places).long().clamp_max(places - 1)


def _window(corner: Tensor, side: int, length: int) -> Tensor:
    """(n, length) bool: where a window of that side lies along an axis."""
    index = torch.arange(length, device=corner.device)
    return (index >= corner[:, None]) & (index < corner[:, None] + side)


def _stripes(x: Tensor, threat: Threat, uniform: Tensor) -> Tensor:
    """Vertical stripes of width 1 at +-eps."""
    low, high = reach(x, threat)
    return torch.where(uniform.view(len(x), x.shape[1], 1, x.shape[3]) < 0.5, low, high)


def _patch(x: Tensor, best: Tensor, threat: Threat, side: int, u: Tensor) -> Tensor:
    """A square patch at +-eps, one sign per channel."""
    (c, h, w), (low, high) = x.shape[1:], reach(x, threat)
    rows = _window(_corner(u[:, 0], h - side + 1), side, h)
    columns = _window(_corner(u[:, 1], w - side + 1), side, w)
    inside = rows[:, None, :, None] & columns[:, None, None, :]
    return torch.where(inside, torch.where(u[:, 6 : 6 + c, None, None] < 0.5, low, high), best)


def _scaled(x: Tensor, delta: Tensor, threat: Threat) -> Tensor:
    """The perturbation stretched to norm eps, added, then into the box."""
    length = delta.flatten(1).norm(dim=1).clamp_min(_TINY).view(-1, 1, 1, 1)
    return into_box(x + delta * (threat.eps / length), threat)


def _patterns(side: int, flip: Tensor, signs: Tensor) -> Tensor:
    """(n, c, side, side): the pattern, upright or lying, with a sign per channel."""
    pattern = _pattern(side).to(signs)
    chosen = torch.where((flip < 0.5)[:, None, None], pattern, pattern.T)
    return chosen[:, None] * signs[:, :, None, None]


def _tiles(x: Tensor, threat: Threat, uniform: Tensor) -> Tensor:
    """A grid of 5 x 5 patterns."""
    (n, c, h, w), side = x.shape, max(x.shape[2] // 5, 1)
    delta, offset = torch.zeros_like(x), (h - side * 5) // 2 if h >= 5 else 0
    u = uniform.view(n, h // side, w // side, 1 + c)
    for i in range(h // side):
        for j in range(w // side):
            tile = _patterns(side, u[:, i, j, 0], _signs(u[:, i, j, 1:]))
            room = delta[:, :, offset + i * side :, offset + j * side :][:, :, :side, :side]
            room += tile[:, :, : room.shape[2], : room.shape[3]]
    return _scaled(x, delta, threat)


def _shift_mass(x: Tensor, best: Tensor, threat: Threat, side: int, u: Tensor) -> Tensor:
    """Move the norm of one window into another, in the shape of the old perturbation there plus the pattern."""
    n, c, h, w = x.shape
    delta = best - x
    span = torch.arange(side, device=x.device)
    top, left = _corner(u[:, 0], h - side + 1), _corner(u[:, 1], w - side + 1)
    into = (
        torch.arange(n, device=x.device)[:, None, None, None],
        torch.arange(c, device=x.device)[None, :, None, None],
        (top[:, None] + span)[:, None, :, None],
        (left[:, None] + span)[:, None, None, :],
    )
    second = _window(_corner(u[:, 2], h - side + 1), side, h), _window(_corner(u[:, 3], w - side + 1), side, w)
    taken = second[0][:, None, :, None] & second[1][:, None, None, :]
    either = taken | (_window(top, side, h)[:, None, :, None] & _window(left, side, w)[:, None, None, :])
    spare = (threat.eps**2 - delta.square().sum((1, 2, 3), keepdim=True)).clamp_min(0.0) / c
    budget = (spare + (delta * either).square().sum((2, 3), keepdim=True)).sqrt()
    old = delta[into]
    old = old / old.square().sum((2, 3), keepdim=True).sqrt().clamp_min(_TINY)
    new = old + _patterns(side, u[:, 4], _signs(u[:, 6 : 6 + c]))
    new = new * (budget / new.square().sum((2, 3), keepdim=True).sqrt().clamp_min(_TINY))
    delta = delta.masked_fill(taken, 0.0)
    delta[into] = new
    return _scaled(x, delta, threat)


@dataclass(frozen=True, slots=True)
class Square:
    """Random search with square patches: the model is only asked for logits.

    A misclassified example leaves the batch at once; `forwards` counts what it took.

    Args:
        queries: Perturbed inputs classified per example, at most; >= 1.
        p: The share of pixels that the first patches cover; it shrinks along the budget; 0 < p <= 1.

    Raises:
        InputError: a field is out of its range.

    Source: Andriushchenko et al. (2020), Algorithms 1 to 3.
    """

    queries: int = 5000
    p: float = 0.8

    def __post_init__(self) -> None:
        check_count("queries", self.queries)
        if not 0 < self.p <= 1:
            raise InputError(f"need 0 < p <= 1; got {self.p!r}")

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, *, threat: Threat, rng: Stream) -> Attacked:
        """Look for misclassified inputs within the threat.

        Args:
            model: (n, c, h, w) -> (n, classes) logits, in evaluation mode.
            x: (n, c, h, w) images.
            y: (n,) labels.
            threat: In Linf or L2.
            rng: Example i draws from its child i.

        Returns: What was found; `loss` is the margin of the best point after each query.

        Raises:
            InputError: another norm, inputs that are no images, a model in training mode, or shapes that do not fit.
        """
        if threat.norm not in ("Linf", "L2"):
            raise InputError(f"need a threat in Linf or L2 for Square; got {threat.norm}")
        if x.ndim != 4:
            raise InputError(f"need images (n, channels, height, width) for Square; got {tuple(x.shape)}")
        queries = Queries(model, x, y, threat)
        with torch.no_grad():
            queries.logits(queries.x)
            trace = self._search(queries, rng)
        return queries.result(self, trace)

    def _search(self, queries: Queries, rng: Stream) -> Tensor:
        threat, (n, c, h, w) = queries.threat, queries.x.shape
        trace = torch.full((n, self.queries), torch.nan, device=queries.x.device)
        live = (~queries.success).nonzero()[:, 0].to(queries.x.device)
        if not len(live):
            return trace
        x, linf = queries.x[live], threat.norm == "Linf"
        tape = _Tape(n, 6 + c, rng, x.device)
        tiles = (h // max(h // 5, 1)) * (w // max(h // 5, 1))
        start = tape.start(c * w if linf else tiles * (1 + c), live)
        best = _stripes(x, threat, start) if linf else _tiles(x, threat, start)
        value = margin(queries.logits(best, live), queries.y[live])
        trace[live, 0] = value.float()
        for i in range(self.queries - 1):
            alive = ~queries.success.to(live.device)[live]
            if not alive.all():
                live, x, best, value = (t[alive] for t in (live, x, best, value))
            if not len(live):
                break
            side = round(math.sqrt(share_of_pixels(i, self.queries, self.p) * h * w))
            side = max(side, 1) if linf else max(side, 3) | 1  # odd for L2
            move = _patch if linf else _shift_mass
            z = move(x, best, threat, min(side, h, w), tape.at(i, live))
            moved = margin(queries.logits(z, live), queries.y[live])
            better = moved > value
            value = torch.where(better, moved, value)
            best = torch.where(better.view(-1, 1, 1, 1), z, best)
            trace[live, i + 1] = value.float()
        return trace
