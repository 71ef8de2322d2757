"""How far the parameter gradient of the adversarial loss scatters while the adversary moves inside its ball.

The gradient jumps where the adversary switches from one perturbation to another, and no jump is larger than the mean
over the examples of the oscillation osc = sup |grad g(a) - grad g(b)| over two points a, b of a ball. That needs no
smoothness, and so holds for ReLU networks, and for any adversary who stays in the ball.

Source: Liu et al. (2020), "On the loss landscape of adversarial training", Proposition 2, where 2 eps L_theta_x stands
in the place of the oscillation.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal
from itertools import pairwise

import torch
from torch import Tensor, nn

from analysis.adversarial_curvature import AdversarialLoss, Curvature, check_step, unit_columns
from analysis.inner_maximum import check_examples
from analysis.oscillation import Oscillation, example_gradients
from certify.errors import InputError, check_count
from certify.rng import Stream
from certify.threat import Threat

# Norms.


@dataclass(frozen=True, slots=True, eq=False)
class GradientNorms:
    """L2 norms of parameter gradients.

    Attributes:
        examples: (n,) float64, of each example's own loss.
        minibatches: (n // size,) float64, of the mean loss over disjoint random minibatches.
        size: Examples per minibatch.
    """

    examples: Tensor
    minibatches: Tensor
    size: int


def gradient_norms(model: nn.Module, z: Tensor, y: Tensor, *, size: int, rng: Stream) -> GradientNorms:
    """Norms of the cross-entropy's parameter gradients at inputs as they are, such as an adversary's.

    Args:
        model: In evaluation mode.
        z: (n, ...) inputs.
        y: (n,) labels.
        size: Examples per minibatch, at most n; those left over count in no minibatch.
        rng: Of the cut into minibatches.

    Raises:
        InputError: training mode, or shapes and sizes that do not fit.
    """
    check_examples(model, z, y)
    check_count("size", size)
    if size > len(z):
        raise InputError(f"need minibatches of at most the {len(z)} examples; got {size}")
    order = torch.randperm(len(z), generator=rng.generator()).to(z.device)
    examples = torch.empty(len(z), dtype=torch.float64)
    minibatches = []
    for rows in order.split(size):
        gradients = example_gradients(model, z[rows], y[rows]).detach().double()
        examples[rows.cpu()] = gradients.norm(dim=1).cpu()
        if len(rows) == size:
            minibatches.append(gradients.mean(0).norm().cpu())
    return GradientNorms(examples, torch.stack(minibatches), size)


# Neighbouring parameters.


@dataclass(frozen=True, slots=True, eq=False)
class Cosines:
    """How alike the adversary's answers at theta + a v and theta - a v are, along k directions.

    Attributes:
        perturbation: (k,) float64, the mean over the examples of the cosine between their perturbations.
        sign: (k,) float64, the same of the perturbations' signs.
        gradient: (k,) float64, the cosine between the gradients of the mean loss.
        a: The distance.
    """

    perturbation: Tensor
    sign: Tensor
    gradient: Tensor
    a: float


def cosines(loss: AdversarialLoss, directions: Tensor, *, a: float) -> Cosines:
    """Compare theta + a v with theta - a v, the attack run anew at both.

    Two perturbations, or gradients, that are both zero count as 1; where one alone is, as 0.

    Args:
        loss: The adversarial loss around some parameters.
        directions: (p, k) columns, scaled to unit length first: eigenvectors, `random_directions`.
        a: Distance in parameter space; > 0.

    Raises:
        InputError: directions or a distance that do not fit.

    Source: Liu et al. (2020), section 4.
    """
    check_step(a)
    rows = []
    for v in unit_columns(directions, loss.size).T:
        (z, g), (z_, g_) = loss.reattacked(a * v), loss.reattacked(-a * v)
        d, d_ = ((points - loss.x).flatten(1).double() for points in (z, z_))
        rows.append([_cosine(d, d_).mean(), _cosine(d.sign(), d_.sign()).mean(), _cosine(g[None], g_[None]).mean()])
    perturbation, sign, gradient = torch.tensor(rows, dtype=torch.float64).T
    return Cosines(perturbation, sign, gradient, a)


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    """(n,) of the rows of (n, d)."""
    # Scaled to unit length first: products of small lengths would underflow.
    lengths = [t.norm(dim=1, keepdim=True) for t in (a, b)]
    u, w = (t / torch.where(length > 0, length, 1.0) for t, length in zip((a, b), lengths, strict=True))
    both_zero = (lengths[0] + lengths[1] == 0)[:, 0]
    return torch.where(both_zero, 1.0, (u * w).sum(1))


# Switching points.


@dataclass(frozen=True, slots=True, eq=False)
class Jump:
    """How far the gradient of the mean loss jumps where the adversary changes its answers, at one theta.

    Attributes:
        at: Where on the line theta + t v.
        width: Of the bracket around it in which the adversary switches.
        gradient: (p,) float64, the gradient at theta + at v with the answers beyond, less that with those before.
        points: (2, n, ...) those answers, before and beyond.
    """

    at: float
    width: float
    gradient: Tensor
    points: Tensor

    @property
    def size(self) -> float:
        """The jump's L2 norm: at most the sum of the oscillations of the examples switched, at theta + at v, over n."""
        return float(self.gradient.norm())

    @property
    def switched(self) -> Tensor:
        """(n,) bool, the examples whose answers differ."""
        return (self.points[0] != self.points[1]).flatten(1).any(1)


def jump(loss: AdversarialLoss, direction: Tensor, low: float, high: float, *, bisections: int = 0) -> Jump:
    """The jump of the gradient between two points of the line theta + t v, narrowed down to where it is large.

    Both gradients of a jump are taken at the same parameters, so that the curvature of the frozen loss is no part of
    it. Halving keeps the half in which the adversary's answers change the gradient more. What moves smoothly shrinks
    with the bracket; a jump does not.

    Args:
        loss: The adversarial loss around some parameters.
        direction: (p,), scaled to unit length first.
        low: Where the bracket starts.
        high: Where it ends.
        bisections: How often to halve it; >= 0.

    Raises:
        InputError: a direction that does not fit, an empty bracket or a negative count.
    """
    if not low < high:
        raise InputError(f"need a bracket with low < high; got {low!r} and {high!r}")
    if isinstance(bisections, bool) or not isinstance(bisections, int) or bisections < 0:
        raise InputError(f"need an integer bisections >= 0; got {bisections!r}")
    v = unit_columns(direction[:, None], loss.size)[:, 0]
    before, beyond = (loss.reattacked(t * v)[0] for t in (low, high))
    change = _change(loss, v, (low, high), before, beyond)
    for _ in range(bisections):
        middle = (low + high) / 2
        z = loss.reattacked(middle * v)[0]
        first, second = _change(loss, v, (low, middle), before, z), _change(loss, v, (middle, high), z, beyond)
        if float(first.norm()) > float(second.norm()):
            high, beyond, change = middle, z, first
        else:
            low, before, change = middle, z, second
    return Jump((low + high) / 2, high - low, change.cpu(), torch.stack([before, beyond]))


def _change(loss: AdversarialLoss, v: Tensor, bracket: tuple[float, float], before: Tensor, beyond: Tensor) -> Tensor:
    """What other answers make of the gradient in the middle of a bracket."""
    if torch.equal(before, beyond):
        return torch.zeros_like(v)
    step = sum(bracket) / 2 * v
    return loss.held(step, beyond) - loss.held(step, before)


@dataclass(frozen=True, slots=True, eq=False)
class GradientLine:
    """The slope v'grad along theta + t v, and a jump met there.

    Attributes:
        t: (m,) float64.
        frozen: (m,) float64, with the perturbations of theta.
        reattacked: (m,) float64, with an attack at every point.
        jump: In the step of the grid over which other answers change the gradient most, narrowed down.
    """

    t: Tensor
    frozen: Tensor
    reattacked: Tensor
    jump: Jump


def gradient_line(loss: AdversarialLoss, direction: Tensor, t: Tensor, *, bisections: int = 12) -> GradientLine:
    """Follow the gradient along a line in parameter space.

    Args:
        loss: The adversarial loss around some parameters.
        direction: (p,), scaled to unit length first.
        t: (m,) rising distances, m >= 2.
        bisections: Of the bracket around the jump; >= 0.

    Raises:
        InputError: a direction or distances that do not fit.
    """
    if t.ndim != 1 or len(t) < 2 or not bool((t.diff() > 0).all()):
        raise InputError(f"need at least two rising distances; got {t.tolist()}")
    v = unit_columns(direction[:, None], loss.size)[:, 0]
    places = t.tolist()
    frozen = torch.stack([v @ loss.held(s * v, loss.center) for s in places])
    answers = [loss.reattacked(s * v) for s in places]
    reattacked = torch.stack([v @ gradient for _, gradient in answers])
    steps = list(pairwise(places))
    changes = [
        float(_change(loss, v, step, before, beyond).norm())
        for step, ((before, _), (beyond, _)) in zip(steps, pairwise(answers), strict=True)
    ]
    found = jump(loss, v, *steps[changes.index(max(changes))], bisections=bisections)
    return GradientLine(t.double().cpu(), frozen.cpu(), reattacked.cpu(), found)


# All of it.


@dataclass(frozen=True, slots=True, eq=False)
class Scattering:
    """What was measured around one theta at one budget.

    Attributes:
        threat: What the adversary was allowed.
        attack: What it ran; its repr is the provenance.
        seed: Of all randomness.
        n: Examples.
        norms: At the adversary's answers.
        curvature: Along some directions.
        cosines: Along the same ones.
        line: Along the first of them.
        oscillation: Of some examples, at theta; None where it was not asked for.
        bound: Proved upper bound on the jump, the sum of the oscillations of the examples that switch, at the jump's
            theta, over n; nan where it was not asked for.
    """

    threat: Threat
    attack: object
    seed: int
    n: int
    norms: GradientNorms
    curvature: Curvature
    cosines: Cosines
    line: GradientLine
    oscillation: Oscillation | None
    bound: float


def scattering_table(results: Sequence[Scattering]) -> tuple[list[str], list[list[str]]]:
    """Header and cells: median norms, curvature and cosines along the first direction, and mean oscillations.

    Lower bounds are rounded down and upper ones up.
    """
    header = [
        "eps",
        "norm",
        "n",
        "attack",
        "seed",
        "gradient norm",
        "of minibatches",
        "h",
        "frozen curvature",
        "re-attacked",
        "scattering index",
        "cosine of perturbations",
        "of gradients",
        "jump",
        "jump <=",
        "oscillation >=",
        "oscillation <=",
        "examples of it",
    ]
    body = []
    for r in results:
        first = [r.curvature.frozen, r.curvature.reattacked, r.curvature.scattering_index]
        first += [r.cosines.perturbation, r.cosines.gradient]
        o = r.oscillation
        ends = ["", "", "0"]
        if o is not None:
            met, proved = float(o.sampled.mean()), float(o.certified.mean())
            ends = [_digits(met, ROUND_FLOOR), _digits(proved, ROUND_CEILING), str(len(o.sampled))]
        body.append(
            [
                f"{r.threat.eps:g}",
                r.threat.norm,
                str(r.n),
                repr(r.attack),
                str(r.seed),
                f"{float(r.norms.examples.median()):.4g}",
                f"{float(r.norms.minibatches.median()):.4g} ({r.norms.size})",
                f"{r.curvature.h:g}",
                *(f"{float(value[0]):.4g}" for value in first),
                f"{r.line.jump.size:.4g}",
                _digits(r.bound, ROUND_CEILING) if math.isfinite(r.bound) else "",
                *ends,
            ]
        )
    return header, body


def _digits(value: float, rounding: str) -> str:
    return f"{Context(prec=4, rounding=rounding).create_decimal(Decimal(value)):g}"
