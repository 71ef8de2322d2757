"""HopSkipJump: walk along the decision boundary, reading nothing but decisions."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from analysis.attacks.attacked import Attacked, Queries, norm_of
from analysis.attacks.geometry import into_box
from certify.errors import InputError
from certify.rng import Stream
from certify.threat import Threat
from certify.voting import label_streams

# Samples per example classified at once. Fixed: what a generator draws depends on the size of the draw.
_BLOCK = 64
# A step halved this often has no length left.
_HALVINGS = 30


@dataclass(frozen=True, slots=True)
class HopSkipJump:
    """HopSkipJump in L2 or Linf, untargeted: a minimal-norm attack that sees only the predicted class.

    From a random misclassified point it repeats: bisect towards x until the boundary; estimate the boundary's normal
    from the decisions at nearby random points; step along it. The walk ignores eps; the nearest success counts, and
    only within the threat.

    Args:
        steps: Boundary points at which the normal is estimated; >= 1.
        initial_samples: Decisions for the first normal, growing with the root of the step; >= 1.
        max_samples: Most decisions for one normal; >= initial_samples.
        gamma: Sets the bisection's tolerance and the samples' distance from the boundary point; > 0.
        starts: Random points tried in search of a misclassified one; >= 1.

    Raises:
        InputError: a field is out of range.

    Source: Chen, Jordan & Wainwright (2020), "HopSkipJumpAttack", algorithms 1 and 2.
    """

    steps: int = 50
    initial_samples: int = 100
    max_samples: int = 10_000
    gamma: float = 1.0
    starts: int = 100

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise InputError(f"need steps >= 1; got {self.steps}")
        if self.initial_samples < 1:
            raise InputError(f"need initial_samples >= 1; got {self.initial_samples}")
        if self.max_samples < self.initial_samples:
            raise InputError(f"need max_samples >= initial_samples = {self.initial_samples}; got {self.max_samples}")
        if not (math.isfinite(self.gamma) and self.gamma > 0):
            raise InputError(f"need a finite gamma > 0; got {self.gamma!r}")
        if self.starts < 1:
            raise InputError(f"need starts >= 1; got {self.starts}")

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, *, threat: Threat, rng: Stream | Sequence[Stream]
    ) -> Attacked:
        """Look for the nearest misclassified input.

        Args:
            model: (n, ...) -> (n, classes) logits, in evaluation mode; only their argmax is read.
            x: (n, ...) inputs, in the box if there is one.
            y: (n,) labels.
            threat: L2 or Linf.
            rng: One stream, or one per example: the starting points and the samples.

        Returns: The nearest success of each example; `loss` holds minus the distance of each boundary point. About
            steps * (initial_samples * sqrt(steps) * 2 / 3 + 20) forwards per example, no backwards.

        Raises:
            InputError: another norm, or what `Queries` refuses.
        """
        if threat.norm not in ("L2", "Linf"):
            raise InputError(f"need an L2 or Linf threat for HopSkipJump; got {threat.norm}")
        queries = Queries(model, x, y, threat)
        streams = [s.child("hop_skip_jump") for s in label_streams(rng, x.shape[0])]
        trace = torch.full((x.shape[0], self.steps), torch.nan)
        with torch.no_grad():
            right = queries.logits(queries.x).argmax(1) == y
            start, found = self._start(queries, right.nonzero()[:, 0], streams)
            walk = _Walk(queries, found, [streams[int(i)] for i in found], self)
            z = walk.to_boundary(start)
            for step in range(1, self.steps + 1):
                if not len(found):
                    break
                distance = norm_of(z - walk.x, threat.norm)
                trace[found.cpu(), step - 1] = -distance.float().cpu()
                normal = walk.normal(z, distance, step)
                z = walk.to_boundary(walk.hop(z, normal, distance / math.sqrt(step)))
        return queries.result(self, trace)

    def _start(self, queries: Queries, live: Tensor, streams: list[Stream]) -> tuple[Tensor, Tensor]:
        """A random misclassified point for each live example for which one is found, and their indices.

        Uniform in the box; without a box, noise around x whose scale doubles every ten tries, from the size of x on.
        """
        start, found = queries.x.clone(), []
        generators = {int(i): streams[int(i)].child("start").generator() for i in live}
        for attempt in range(self.starts):
            if not len(live):
                break
            z = torch.stack([self._noise(queries, int(i), generators[int(i)], attempt) for i in live])
            wrong = queries.logits(z, live).argmax(1) != queries.y[live]
            start[live[wrong]] = z[wrong]
            found.append(live[wrong])
            live = live[~wrong]
        indices = torch.cat(found).sort().values if found else live
        return start[indices], indices

    @staticmethod
    def _noise(queries: Queries, index: int, generator: torch.Generator, attempt: int) -> Tensor:
        x, box = queries.x[index], queries.threat.box
        if box is not None:
            uniform = torch.rand(x.shape, generator=generator, dtype=x.dtype).to(x.device)
            return into_box(box[0] + (box[1] - box[0]) * uniform, queries.threat)
        scale = max(1.0, float(x.abs().max())) * 2.0 ** (attempt // 10)
        return x + scale * torch.randn(x.shape, generator=generator, dtype=x.dtype).to(x.device)


class _Walk:
    """Points of several examples, each at the boundary of its own label. Everything below works row by row."""

    def __init__(self, queries: Queries, live: Tensor, streams: list[Stream], attack: HopSkipJump) -> None:
        self.queries, self.live, self.attack = queries, live, attack
        self.x, self.y, self.threat = queries.x[live], queries.y[live], queries.threat
        self.generators = [s.child("samples").generator() for s in streams]
        self.dimension = math.prod(queries.x.shape[1:])
        power = 1.5 if self.threat.norm == "L2" else 2.0
        self.theta = attack.gamma / self.dimension**power
        # Departs from paper: theta alone is coarse for inputs of a few coordinates.
        self.halvings = math.ceil(math.log2(1 / min(self.theta, 1e-3)))

    def wrong(self, z: Tensor, rows: Tensor) -> Tensor:
        """(rows,) whether z is misclassified; z may hold several points of one example."""
        return self.queries.logits(z, self.live[rows]).argmax(1) != self.y[rows]

    def _rows(self) -> Tensor:
        return torch.arange(len(self.live), device=self.live.device)

    def _per_row(self, values: Tensor) -> Tensor:
        return values.to(self.x).view(-1, *[1] * (self.x.ndim - 1))

    def _between(self, z: Tensor, share: Tensor) -> Tensor:
        """Points on the way from x (share 0) to z (share 1): a segment for L2, shrinking cubes for Linf."""
        delta = z - self.x
        if self.threat.norm == "L2":
            return into_box(self.x + self._per_row(share) * delta, self.threat)
        length = self._per_row(share * norm_of(delta, "Linf"))
        return into_box(self.x + delta.clamp(-length, length), self.threat)

    def to_boundary(self, z: Tensor) -> Tensor:
        """Bisect between x and a misclassified z; the misclassified end."""
        low = torch.zeros(len(z), dtype=torch.float64, device=z.device)
        high, nearest = torch.ones_like(low), z
        for _ in range(self.halvings if len(z) else 0):
            middle = (low + high) / 2
            between = self._between(z, middle)
            wrong = self.wrong(between, self._rows())
            low, high = torch.where(wrong, low, middle), torch.where(wrong, middle, high)
            nearest = torch.where(self._per_row(wrong).bool(), between, nearest)
        return nearest

    def normal(self, z: Tensor, distance: Tensor, step: int) -> Tensor:
        """The direction in which errors lie, from decisions at random points around z: unit in L2, signs for Linf."""
        attack, d = self.attack, self.dimension
        count = min(attack.max_samples, round(attack.initial_samples * math.sqrt(step)))
        # The first point may be far away: the paper then takes a tenth of the range of inputs.
        low, high = self.threat.box or (0.0, 1.0)
        reach = d ** (0.5 if self.threat.norm == "L2" else 1.0) * self.theta * distance
        if step == 1 and self.threat.box is not None:
            reach = torch.full_like(distance, 0.1 * (high - low))
        flat = z.flatten(1)
        total, plain = torch.zeros_like(flat), torch.zeros_like(flat)
        votes, drawn = torch.zeros_like(flat[:, :1]), 0
        while drawn < count:
            block = min(count - drawn, _BLOCK)
            unit = torch.stack([self._samples(g, block) for g in self.generators]).to(z)
            points = flat[:, None] + self._per_row(reach).view(-1, 1, 1) * unit
            points = into_box(points, self.threat)
            # Clipped samples count by where they really are.
            unit = (points - flat[:, None]) / self._per_row(reach.clamp_min(1e-12)).view(-1, 1, 1)
            rows = self._rows().repeat_interleave(block)
            sign = 2.0 * self.wrong(points.view(-1, *self.x.shape[1:]), rows).to(z.dtype).view(-1, block) - 1
            total += (sign[:, :, None] * unit).sum(1)
            plain += unit.sum(1)
            votes += sign.sum(1, keepdim=True)
            drawn += block
        mean = votes / count
        # The mean decision is subtracted to lower the variance, unless all decisions agree.
        normal = torch.where(mean.abs() == 1, total, total - mean * plain)
        if self.threat.norm == "Linf":
            return normal.sign().view_as(z)
        return (normal / norm_of(normal, "L2").clamp_min(1e-12)[:, None].to(normal)).view_as(z)

    def _samples(self, generator: torch.Generator, count: int) -> Tensor:
        """(count, d) random directions of unit L2 length: Gaussian for L2, uniform in the cube for Linf."""
        if self.threat.norm == "L2":
            raw = torch.randn(count, self.dimension, generator=generator)
        else:
            raw = torch.rand(count, self.dimension, generator=generator) * 2 - 1
        return raw / raw.norm(dim=1, keepdim=True).clamp_min(1e-12)

    def hop(self, z: Tensor, normal: Tensor, length: Tensor) -> Tensor:
        """Step along the normal, halved until the point is misclassified; z itself where no length is."""
        landed, rows = z.clone(), self._rows()
        for _ in range(_HALVINGS):
            if not len(rows):
                break
            moved = into_box(z[rows] + self._per_row(length)[rows] * normal[rows], self.threat)
            wrong = self.wrong(moved, rows)
            landed[rows[wrong]] = moved[wrong]
            rows, length = rows[~wrong], length / 2
        return landed
