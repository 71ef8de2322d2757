"""The loss over two directions of the input: the adversary's and a random one."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from analysis.attacks.attacked import SLACK, norm_of
from analysis.attacks.geometry import into_box, project, random_start, steepest, unit
from analysis.attacks.losses import cross_entropy
from analysis.attacks.pgd import PGD
from analysis.inner_maximum import Advance, Forward, check_examples, largest_loss
from certify.errors import InputError, check_count
from certify.rng import Stream
from certify.threat import Threat


@dataclass(frozen=True, slots=True, eq=False)
class Surface:
    """The mean loss at x + a eps s + b eps r, clipped to the box, and what it says about masking.

    All numbers are observed, none is a bound.

    Attributes:
        axis: (m,) float64, the values of a, and of b, in units of eps.
        loss: (m, m) float64, the mean cross-entropy over the examples; a runs along the rows.
        clipped: (m, m) float64, the share of coordinates that the box moved.
        inside: (m, m) bool, whether every example's clipped point lies within eps.
        clean: The mean loss at x.
        highest: The largest mean loss on the grid.
        highest_inside: The largest mean loss on the grid within eps.
        bend: The mean |second difference| of the loss along s, per eps^2.
        cosine: The mean cosine between the gradients at x and at x + delta, delta being the adversary's perturbation of
            size eps along s, clipped; a gradient of zero counts as 0.
        nonlinearity: The mean over the examples of |L(x + d) - L(x) - d . grad L(x)|, the largest that gradient ascent
            finds within the threat.
        surface: The method.
        threat: Norm, budget and box.
    """

    axis: Tensor
    loss: Tensor
    clipped: Tensor
    inside: Tensor
    clean: float
    highest: float
    highest_inside: float
    bend: float
    cosine: float
    nonlinearity: float
    surface: "InputSurface"
    threat: Threat


@dataclass(frozen=True, slots=True)
class InputSurface:
    """The loss over the plane of s, the adversary's direction, and r, a random one.

    s is the step in which the linearised loss grows most, the sign of the gradient for Linf, or the perturbation that
    an attack finds, divided by eps. r has independent random signs, scaled to norm 1.

    Args:
        reach: The largest |a| and |b|, in units of eps; > 0.
        points: Grid points per axis, odd so that x is one of them; >= 3.
        attack: Where s comes from; None for the gradient.
        steps: Of the ascent for `nonlinearity`; >= 1.
        batch: Inputs classified at once; no part of the result.

    Raises:
        InputError: a field is out of its range.

    Source: Shafahi et al. (2019), "Adversarial training for free!", figure 3; Qin et al. (2019), "Adversarial
    robustness through local linearization", for `nonlinearity`.
    """

    reach: float = 2.0
    points: int = 41
    attack: PGD | None = None
    steps: int = 20
    batch: int = 1000

    def __post_init__(self) -> None:
        if not (math.isfinite(self.reach) and self.reach > 0):
            raise InputError(f"need a finite reach > 0; got {self.reach!r}")
        check_count("points", self.points)
        if self.points < 3 or self.points % 2 == 0:
            raise InputError(f"need an odd number of points >= 3; got {self.points}")
        check_count("steps", self.steps)
        check_count("batch", self.batch)

    def axis(self) -> Tensor:
        """(points,) float64, the values of a and of b; the middle one is 0."""
        half = torch.arange(self.points, dtype=torch.float64) - self.points // 2
        return half * (self.reach / (self.points // 2))

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, *, threat: Threat, rng: Stream, advance: Advance | None = None
    ) -> Surface:
        """Draw the surface around the examples; losses are averaged over them, each with its own s and r.

        Args:
            model: (n, ...) -> (n, classes) logits, in evaluation mode.
            x: (n, ...) in the box.
            y: (n,) labels.
            threat: Linf or L2, eps > 0.
            rng: r of example i comes from its child ("direction", i): the same for every model.
            advance: Told of grid points as they are finished.

        Returns: The surface.

        Raises:
            InputError: another norm, eps = 0, training mode, or inputs that do not fit.
        """
        check_examples(model, x, y)
        if threat.norm not in ("Linf", "L2") or threat.eps == 0:
            raise InputError(f"need a threat in Linf or L2 with eps > 0; got {threat}")
        if not torch.equal(into_box(x, threat), x):
            raise InputError(f"need inputs in {threat.box}; got [{float(x.min()):g}, {float(x.max()):g}]")
        x = x.detach()
        clean, gradient = loss_and_gradient(model, x, y)
        s = self._adversary(model, x, y, gradient, threat, rng.child("attack"))
        r = unit(torch.stack([_signs(x[i], rng.child("direction", i)) for i in range(len(x))]), threat.norm)
        loss, clipped, inside = self._grid(model, x, y, s, r, threat, advance or (lambda _: None))
        _, ahead = loss_and_gradient(model, into_box(x + threat.eps * s, threat), y)
        step = 2 * self.reach / (self.points - 1)
        return Surface(
            axis=self.axis(),
            loss=loss,
            clipped=clipped,
            inside=inside,
            clean=float(clean.mean()),
            highest=float(loss.max()),
            highest_inside=float(loss[inside].max()),
            bend=float(loss.diff(n=2, dim=0).abs().mean()) / step**2,
            cosine=float((unit(gradient, "L2") * unit(ahead, "L2")).double().flatten(1).sum(1).mean()),
            nonlinearity=float(nonlinearity(model, x, y, threat, self.steps, rng.child("nonlinearity")).mean()),
            surface=self,
            threat=threat,
        )

    def _adversary(
        self, model: nn.Module, x: Tensor, y: Tensor, gradient: Tensor, threat: Threat, rng: Stream
    ) -> Tensor:
        if self.attack is None:
            return steepest(gradient, threat)
        return (largest_loss(model, x, y, self.attack, threat=threat, rng=rng) - x) / threat.eps

    def _grid(
        self, model: nn.Module, x: Tensor, y: Tensor, s: Tensor, r: Tensor, threat: Threat, advance: Advance
    ) -> tuple[Tensor, Tensor, Tensor]:
        places = torch.cartesian_prod(self.axis(), self.axis()).to(x)
        loss, clipped, inside = [], [], []
        at_once = max(1, self.batch // len(x))
        for part in places.split(at_once):
            a, b = part.view(-1, 2, *[1] * x.ndim).unbind(1)
            wanted = x + threat.eps * (a * s + b * r)
            z = into_box(wanted, threat)
            with torch.no_grad():
                logits = torch.cat([model(piece) for piece in z.flatten(0, 1).split(self.batch)])
            value = cross_entropy(logits.double(), y.repeat(len(part))).view(len(part), len(x))
            distance = norm_of((z.double() - x.double()).flatten(0, 1), threat.norm).view(len(part), len(x))
            limit = threat.eps * (1 + SLACK) + torch.finfo(x.dtype).eps * norm_of(x, threat.norm)
            loss.append(value.mean(1))
            clipped.append((z != wanted).flatten(1).double().mean(1))
            inside.append((distance <= limit).all(1))
            advance(len(part))
        square = (self.points, self.points)
        return (torch.cat(loss).view(square), torch.cat(clipped).view(square), torch.cat(inside).view(square))


def loss_and_gradient(forward: Forward, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The cross-entropy of each example (n,) and its gradient in the input (n, ...), both detached.

    Raises:
        InputError: the loss is NaN or infinite.
    """
    z = x.detach().requires_grad_()
    with torch.enable_grad():
        loss = cross_entropy(forward(z), y)
        (gradient,) = torch.autograd.grad(loss.sum(), z)
    if not bool(torch.isfinite(loss).all() and torch.isfinite(gradient).all()):
        raise InputError("need finite losses and gradients at the inputs; the model gave NaN or infinite ones")
    return loss.detach(), gradient


def nonlinearity(forward: Forward, x: Tensor, y: Tensor, threat: Threat, steps: int, rng: Stream) -> Tensor:
    """How far the loss departs from its linearisation at x within the threat: |L(x + d) - L(x) - d . grad L(x)|.

    Args:
        forward: The model.
        x: (n, ...) in the box.
        y: (n,) labels.
        threat: Linf, L2 or L1.
        steps: Of gradient ascent, each eps / 4 long; at x itself the departure has no gradient, so a random point is
            one start and its mirror image another, from which the loss falls where it rose.
        rng: The start of example i comes from its child i.

    Returns: (n,) float64, the largest on the way: an estimate from below.

    Source: Qin et al. (2019), equation 5.
    """
    clean, slope = loss_and_gradient(forward, x, y)
    start = torch.cat([random_start(x[i : i + 1], threat, rng.child(i).generator(x.device)) for i in range(len(x))])
    most = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    for side in (1, -1):
        z = project(x + side * (start - x), x, threat)
        for _ in range(steps):
            loss, gradient = loss_and_gradient(forward, z, y)
            departure = loss.double() - clean - ((z - x).double() * slope).flatten(1).sum(1)
            most = torch.maximum(most, departure.abs())
            sign = departure.sign().to(x.dtype).view(-1, *[1] * (x.ndim - 1))
            z = project(z + threat.eps / 4 * steepest(sign * (gradient - slope), threat), x, threat)
        loss, _ = loss_and_gradient(forward, z, y)
        most = torch.maximum(most, (loss.double() - clean - ((z - x).double() * slope).flatten(1).sum(1)).abs())
    return most


def _signs(like: Tensor, rng: Stream) -> Tensor:
    draw = torch.rand(like.shape, generator=rng.generator(like.device), device=like.device)
    return torch.where(draw < 0.5, -1.0, 1.0).to(like.dtype)
